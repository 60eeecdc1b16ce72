"""The judge: a small CNN trained on labelled real images, which measures what generators make of them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from latentia.core.protocols import Dataset
from latentia.data.dataset import TensorDataset
from latentia.errors import InputError
from latentia.metrics.classifier import ConvClassifier
from latentia.metrics.evaluate import class_accuracy
from latentia.metrics.measurement import Measurement
from latentia.training.loop import train
from latentia.training.objectives import ClassificationObjective
from latentia.training.parallel import alone
from latentia.training.phase import Optim, Phase
from latentia.training.settings import Settings


def judge_phase(classifier: ConvClassifier, data: Dataset, steps: int = 400, batch_size: int = 64) -> Phase:
    """Cross entropy on `data` with AdamW and a cosine schedule."""
    optim = Optim(lr=3e-3, weight_decay=0.05, schedule="cosine", warmup=min(20, steps))
    return Phase("judge", ClassificationObjective(classifier), data, steps, batch_size, optim)


def train_judge(
    name: str, train_data: Dataset, test_data: Dataset, seed: int = 0, steps: int = 400, progress: bool = True
) -> tuple[ConvClassifier, Measurement]:
    """A classifier trained on `train_data`, in evaluation mode, and its accuracy on `test_data`.

    `name` names the ruler: its Fréchet distance is `frechet_<name>`. A process trains its judge by itself, under
    `torchrun` too, so that the ruler is the same on any number of them. Raises `InputError` without at least two
    classes.
    """
    images, labels = everything(train_data)
    num_classes = int(labels.max()) + 1
    if num_classes < 2:
        raise InputError(f"a judge of {name!r} needs labelled images of at least 2 classes, got {num_classes}")
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        classifier = ConvClassifier(name=name, num_classes=num_classes, in_channels=images.shape[1])
    phase = judge_phase(classifier, TensorDataset({"x": images, "label": labels}), steps)
    settings = Settings(seed=seed, device="cpu", progress=progress, tensorboard=False)
    with tempfile.TemporaryDirectory() as folder, alone():
        train([("judge", lambda: phase)], Path(folder), settings)
    test_images, test_labels = everything(test_data)
    return classifier.eval(), class_accuracy(classifier, test_images, test_labels)


def digits_judge(size: int) -> ConvClassifier:
    """The judge of what codecs make of digits: one network for all of them, trained on the digits as they are.

    A codec may learn from turned ones as well; a judge that did would measure something else.
    """
    from latentia.data.digits import digits

    return train_judge("digits", digits("train", size), digits("test", size), progress=False)[0]


def everything(data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """All images (N, C, H, W) and labels (N,) of a data set, in memory; labels are 0 where it has none."""
    batch = data.batch(range(len(data)))
    return batch["x"], batch.get("label", torch.zeros(len(data), dtype=torch.int64))
