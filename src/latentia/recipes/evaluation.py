"""Judge a saved pipeline or codec against real images; every number carries its ruler, its n and its seed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from latentia.core.config import to_json
from latentia.core.files import read_json, write_text_atomic
from latentia.core.protocols import FeatureNetwork
from latentia.errors import InputError
from latentia.metrics.classifier import ConvClassifier
from latentia.metrics.evaluate import Judge, class_accuracy
from latentia.metrics.frechet import frechet
from latentia.metrics.inception_features import InceptionFeatures
from latentia.metrics.lpips import Distance
from latentia.metrics.measurement import Measurement
from latentia.pipelines.image_pipeline import ImagePipeline
from latentia.recipes.judge import everything, train_judge
from latentia.recipes.sampling import Request, labels_of, open_pipeline, processes, sample
from latentia.recipes.sources import open_data

Ruler = Callable[[torch.Tensor, Sequence[int] | None], list[Measurement]]
"""Pictures (N, C, H, W) in [-1, 1] and their classes, if any → what was measured."""


@dataclass(frozen=True, slots=True)
class Rulers:
    """What to measure with.

    Attributes:
        judge: folder of a trained `ConvClassifier`; a folder that is not there yet is filled with one trained on
            the data's training split. None: the `judge` of the run, if it knows this data, or one trained for this
            evaluation alone.
        inception: file of the standard Inception weights: measures `fid` instead of judging by class.
        seed: of the judge's training and of all random draws.
    """

    judge: Path | None = None
    inception: Path | None = None
    seed: int = 0


def is_pipeline(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a pipeline or the folder of a run that has one; else it is taken for a codec."""
    inner = Path(path)
    return any((folder / "model_index.json").is_file() for folder in (inner, inner / "pipeline"))


def evaluate_pipeline(path: str | os.PathLike[str], data: str, request: Request, rulers: Rulers) -> list[Measurement]:
    """Generate `request.count` pictures and measure them against `data`.

    With labelled data: the judge's own accuracy on real test images; then accuracy, Fréchet and kernel distance,
    precision, recall and nearest-training-image distance of the generated ones; then the real-vs-real floor and the
    noise ceiling. With Inception weights: `fid`. Under `torchrun` every process generates, the first one measures; the
    others return nothing.
    """
    with processes() as (rank, _):
        pipe = open_pipeline(path, request)
        if not isinstance(pipe, ImagePipeline):
            raise InputError(
                f"a {type(pipe).__name__} draws what a text says, and has no classes to be judged by: "
                "latentia train digits-text judges its own"
            )
        pipe.set_progress_bar_config(disable=True if rank else None, desc="sampling", leave=False)
        labels = labels_of(pipe, request)
        # The ruler comes first: wrong data must not cost the pictures.
        measure = None if rank else _ruler(pipe, Path(path), data, request, rulers)
        pictures = sample(pipe, request)
        return [] if measure is None else measure(pictures, labels)


def judge_beside(path: Path, name: str) -> Path | None:
    """The judge called `name` that a run (or the run that this is the pipeline of) has saved, if any."""
    near = (path / "judge", path.parent / "judge")
    there = (folder for folder in near if (folder / "config.json").is_file())
    return next((folder for folder in there if read_json(folder / "config.json").get("name") == name), None)


def _ruler(pipe: ImagePipeline, path: Path, data: str, request: Request, rulers: Rulers) -> Ruler:
    """What measures the pipeline's pictures: everything opened and trained that can be before they are there."""
    channels, _, size = pipe.decode(torch.zeros(1, *pipe.sample_shape)).shape[1:]
    if rulers.inception is not None:
        network, images = InceptionFeatures(rulers.inception), open_data(data, "all", size, channels)
        return lambda pictures, labels: [_seeded(frechet(network, images, pictures), request.seed)]
    name = Path(data).name
    train_data, test_data, all_data = (open_data(data, split, size, channels) for split in ("train", "test", "all"))
    if len(test_data) == len(all_data):
        warnings.warn(f"{data} has no test images of its own: judge and neighbours see training images", stacklevel=2)
    test_images, test_labels = everything(test_data)
    folder = rulers.judge or judge_beside(path, name)
    if folder is not None and (folder / "config.json").is_file():
        classifier = ConvClassifier.from_pretrained(folder)
        own = class_accuracy(classifier, test_images, test_labels)
    else:
        classifier, own = train_judge(name, train_data, test_data, rulers.seed, progress=False)
        if folder is not None:
            classifier.save_pretrained(folder)
    real, real_labels = everything(all_data)
    judge = Judge(classifier, real, real_labels, everything(train_data)[0], test_images, seed=rulers.seed)
    own = replace(own, name=f"{own.name}_on_real_test_images")
    return lambda pictures, labels: [own, *_judged(judge, request, pictures, labels)]


def _judged(judge: Judge, request: Request, pictures: torch.Tensor, labels: Sequence[int] | None) -> list[Measurement]:
    report = judge(pictures, None if labels is None else torch.tensor(labels))
    n = min(request.count, len(judge.labels))
    limits = [judge.floor(n, balanced=False), judge.floor(n), judge.ceiling(request.count)]
    return [*(_seeded(each, request.seed) for each in report.values()), *limits]


def _seeded(measurement: Measurement, seed: int) -> Measurement:
    return measurement if measurement.seed is not None else replace(measurement, seed=seed)


def evaluate_codec(
    path: str | os.PathLike[str],
    data: str,
    split: str = "test",
    count: int | None = None,
    device: str = "auto",
    rulers: Rulers | None = None,
    lpips: Sequence[Path] = (),
    formats: bool = False,
) -> list[Measurement]:
    """What a codec makes of `split` of `data`, the first `count` images; `codec_evaluation.PROTOCOL` says how.

    The size is the codec's own. The Fréchet distance is measured on the Inception weights of `rulers`, or on
    its judge, or on the judge that the codec's run has saved for this data; on nothing if there is none.

    Args:
        lpips: files of LPIPS' weights (trunk and linear heads, VGG or Alex): measures `lpips-vgg` or `lpips-alex`.
        formats: also what JPEG, WebP and AVIF make of the same images at the codec's bits, with and without headers.
    """
    from latentia.losses.lpips import LPIPS
    from latentia.recipes.codec_evaluation import evaluate_codec as judge_codec
    from latentia.recipes.compress import open_codec, side_of

    codec = open_codec(path, device)
    images = open_data(data, split, side_of(codec), codec.config.in_channels)
    n = len(images) if count is None else min(count, len(images))
    if n < 1:
        raise InputError(f"n must be at least 1, got {count}")
    x = torch.cat([images.batch(range(i, min(i + 64, n)))["x"] for i in range(0, n, 64)])
    features = _codec_ruler(Path(path), Path(data).name, rulers or Rulers())
    distances = [LPIPS(_net_of(lpips), lpips)] if lpips else []
    numbers, _ = judge_codec(codec, x, features, distances, seed=rulers.seed if rulers else 0)
    rows = numbers.measurements()
    if formats:
        if numbers.bits_per_pixel is None:
            raise InputError(f"{path} has no tokens, so there are no bits to give to JPEG: leave --formats out")
        rows += _formats(x, numbers.bits_per_pixel, features, distances)
    return rows


def _codec_ruler(path: Path, data: str, rulers: Rulers) -> list[FeatureNetwork]:
    if rulers.inception is not None:
        return [InceptionFeatures(rulers.inception)]
    folder = rulers.judge or judge_beside(path, data)
    return [] if folder is None else [ConvClassifier.from_pretrained(folder)]


def _net_of(files: Sequence[Path]) -> str:
    """`alex` or `vgg`, by the first convolution of the trunk."""
    from latentia.losses.perceptual_weights import lpips_tensors, read_weights

    first = lpips_tensors(read_weights(files)).get("features.0.weight")
    return "alex" if first is not None and first.shape[-1] == ALEX_KERNEL else "vgg"


ALEX_KERNEL = 11


def _formats(
    x: torch.Tensor, bits: float, rulers: Sequence[FeatureNetwork], distances: Sequence[Distance]
) -> list[Measurement]:
    from latentia.recipes.codec_evaluation import evaluate_formats

    rows = []
    for headers in (False, True):
        told = "with headers" if headers else "without headers"
        for name, found in evaluate_formats(x, bits, rulers, distances, headers).items():
            flat = {"psnr": found["psnr"], "ssim": found["ssim"], "fits": found["fits"]}
            flat |= {"bits_per_pixel": found["bits_per_pixel"]} | found["frechet"] | found["perceptual"]
            rows += [Measurement(f"{name} {told}: {k}", v, len(x), len(x)) for k, v in flat.items() if v is not None]
    return rows


def write_report(numbers: Sequence[Measurement], path: Path, what: dict[str, object]) -> None:
    """Write the numbers and what was measured as JSON."""
    write_text_atomic(path, to_json({**what, "measurements": [each.to_dict() for each in numbers]}))
