"""PDiffPaper: p-diff on the paper's image classifiers, `pdiff-resnet18` to `pdiff-convnext-base`, any of its data sets.

pretrained network ─▶ fine-tuned ─▶ K checkpoints of two norm layers ─▶ autoencoder ─▶ UNet ─▶ judged with controls
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from latentia.errors import InputError
from latentia.recipes.parts import Average, Noise, Optim
from latentia.recipes.pdiff import NetworkDiffusion
from latentia.recipes.pdiff_parts import LatentUNet, ParameterCodec
from latentia.recipes.pdiff_tables import HUB, SOURCES, ArchitectureName, DatasetName, collect_rate, main_tuning
from latentia.recipes.recipe import Bench, Value
from latentia.recipes.sources import open_data, resolve_device

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from latentia.core.protocols import Dataset
    from latentia.methods.pdiff.augmentation import Augmentation
    from latentia.methods.pdiff.autoencoder import ParameterAutoencoder
    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.methods.pdiff.many import Fit
    from latentia.recipes.plan import Work
    from latentia.training.phase import Phase, PhaseResult

MARGIN = 8 / 7
"""Images are read at 256 pixels where crops have 224."""


class FineTuning(Value):
    """How a classifier is trained; what is none is the later edition's value for this network and data set."""

    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="SGD with momentum 0.9, or AdamW")
    lr: PositiveFloat | None = Field(default=None, description="learning rate at the start; none: the paper's")
    epochs: NonNegativeInt | None = Field(default=None, description="passes over the images; none: the paper's")
    weight_decay: NonNegativeFloat | None = Field(default=None, description="of the optimizer; none: the paper's")
    batch_size: PositiveInt = Field(default=128, description="images in one step")
    schedule: Literal["constant", "cosine", "thirds"] = Field(default="cosine", description="of the learning rate")

    def build(self, lr: float, weight_decay: float, epochs: int) -> Fit:
        """The room's value, with these in place of what is none."""
        from latentia.methods.pdiff.many import Fit

        return Fit(
            self.optimizer,
            lr=lr if self.lr is None else self.lr,
            epochs=epochs if self.epochs is None else self.epochs,
            batch_size=self.batch_size,
            weight_decay=weight_decay if self.weight_decay is None else self.weight_decay,
            schedule=self.schedule,
        )


class PaperCodec(ParameterCodec):
    """A parameter autoencoder of either edition."""

    decoder: tuple[PositiveInt, ...] = Field(default=(), description="width before each decoder block; (): mirrored")
    mix: bool = Field(default=False, description="noise as (1 − σ)a + σε, the first edition's, instead of a + σε")

    def build(self, size: int) -> ParameterAutoencoder:
        """The autoencoder for vectors of `size` parameters."""
        from latentia.methods.pdiff.autoencoder import ParameterAutoencoder

        mirrored = super().build(size)
        if not self.decoder:
            return mirrored
        return ParameterAutoencoder(**{**mirrored.config, "decoder_channels": self.decoder})


class PDiffPaper(NetworkDiffusion):
    """One of the paper's classifiers on one of its data sets, with every control beside it."""

    beside: ClassVar[tuple[str, ...]] = ("originals", "collecting", "judging")

    architecture: ArchitectureName = Field(description="the classifier")
    dataset: DatasetName = Field(default="cifar100", description="what it classifies")
    data: str = Field(default="", description="hf:NAME, or a folder with train and test; empty: the data set's own")
    pretrained: str | None = Field(description="folder or Hub id of its weights (safetensors); none: random")
    image_size: PositiveInt = Field(default=224, description="pixels a side of what the network sees")
    channels: Literal[1, 3] = Field(default=3, description="of the images")
    width: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="factor on every width of the network")
    patch_size: PositiveInt | None = Field(default=None, description="pixels a side of the stem; none: by image_size")
    count: PositiveInt = Field(default=300, description="K, the checkpoints")
    main: FineTuning = Field(default=FineTuning(), description="training of the whole network")
    collect_by: FineTuning = Field(
        default=FineTuning(schedule="constant", weight_decay=5e-4), description="training of the two layers"
    )
    skip: NonNegativeInt = Field(default=1, description="first steps of collecting that are not saved")
    every: PositiveInt = Field(default=1, description="steps from one checkpoint to the next")
    batch_norm: Literal["train", "eval"] = Field(default="train", description="mode of BatchNorm while collecting")
    crop: Literal["none", "resized", "shift"] = Field(default="resized", description="random crops of training images")
    flip: bool = Field(default=True, description="mirror half of the training images")
    rotate: NonNegativeFloat = Field(default=0.0, description="largest rotation of training images, degrees")
    choosing: PositiveInt = Field(default=10_000, description="training images that choose a network, at most")
    judge_batch: PositiveInt = Field(default=128, description="images that are judged at once")
    collect_precision: Literal["no", "bf16"] = Field(default="bf16", description="autocast of the classifiers")
    workers: NonNegativeInt = Field(default=8, description="threads that decode images ahead")
    codec: PaperCodec = Field(default=PaperCodec(), description="the parameter autoencoder")

    @model_validator(mode="after")
    def _small_images(self) -> Self:
        if self.dataset == "digits" and (self.channels != 1 or self.image_size not in (8, 16)):
            raise ValueError("digits are grey and small: set channels=1 and image_size=8 (or 16)")
        return self

    def build(self) -> nn.Module:
        """The classifier, from torch's global generator or its pretrained weights."""
        from latentia.methods.pdiff import architectures

        return architectures.build(
            self.architecture,
            SOURCES[self.dataset].classes,
            image_size=self.image_size,
            channels=self.channels,
            width=self.width,
            patch_size=self.patch_size,
            pretrained=self.pretrained,
        )

    def patterns(self) -> tuple[str, ...]:
        """The layers that the paper names."""
        from latentia.methods.pdiff.architectures import paper_layers

        return paper_layers(self.architecture)

    def fits(self) -> tuple[Fit, Fit]:
        """How the whole network is trained, and how the two layers are."""
        lr, decay, epochs = main_tuning(self.architecture, self.dataset)
        rate = collect_rate(self.architecture, self.dataset)
        return self.main.build(lr, decay, epochs), self.collect_by.build(rate, 5e-4, 0)

    def augmentation(self) -> Augmentation:
        """What is done to training images."""
        from latentia.methods.pdiff.augmentation import Augmentation

        return Augmentation(self.image_size, self.crop, flip=self.flip, rotate=self.rotate)

    def images(self, use: Literal["fit", "select", "test"]) -> Dataset:
        """Images to train on (before augmentation), to choose on and to report on.

        As in the article, networks are chosen on images that they were trained on; digits have others for it.
        """
        import torch

        from latentia.core.rng import derive_seed
        from latentia.data.dataset import TensorDataset
        from latentia.methods.pdiff.augmentation import CentreCrop, Part
        from latentia.methods.pdiff.tasks import digits_task

        source = SOURCES[self.dataset]
        if self.dataset == "digits" and not self.data:
            task = digits_task(size=self.image_size)
            x, y = {"fit": task.fit, "select": task.select, "test": task.test}[use]
            return TensorDataset({"x": x, "label": y})
        size = round(self.image_size * MARGIN) if self.crop == "resized" else self.image_size
        name = self.data or source.data
        split = source.test_split if use == "test" and name.startswith("hf:") else "test" if use == "test" else "train"
        found = open_data(name, split, size, self.channels, num_classes=source.classes)
        if use == "fit":
            return found
        if use == "select" and len(found) > self.choosing:
            generator = torch.Generator().manual_seed(derive_seed("choosing", self.seed))
            found = Part(found, torch.randperm(len(found), generator=generator)[: self.choosing].sort().values)
        return CentreCrop(found, self.image_size)

    def check(self) -> None:
        """Raise `InputError` for several processes, which would each collect, and for data that is not there."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise InputError(f"{self.name} collects its checkpoints on one GPU: start it without torchrun")
        if self.data and not self.data.startswith("hf:"):
            self.images("test")

    def collect(self, folder: Path | None) -> Checkpoints:
        """Fine-tune the classifier, freeze all but two layers, keep K checkpoints of these."""
        from latentia.methods.pdiff.collect import Trajectory
        from latentia.methods.pdiff.collect_large import train_trajectory_large

        main, collect = self.fits()
        return train_trajectory_large(
            self.build,
            self.images("fit"),
            self.patterns(),
            self.count,
            Trajectory(main, collect, self.skip, self.every, self.batch_norm),
            augmentation=self.augmentation(),
            device=resolve_device(self.device),
            precision=self.collect_precision,
            channels_last=self.channels_last,
            seed=self.seed,
            folder=folder,
            workers=self.workers,
            show=folder is not None,
        )

    def codec_phase(self, bench: Bench) -> Phase:
        """Train the autoencoder on the standardised checkpoints, with the noise of the edition."""
        from dataclasses import replace

        from latentia.methods.pdiff.objectives import ParameterReconstructionObjective

        phase = super().codec_phase(bench)
        if not self.codec.mix:
            return phase
        noise = self.codec.parameter_noise, self.codec.latent_noise, "mix"
        return replace(phase, objective=ParameterReconstructionObjective(bench.parts["codec"], *noise))

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the pipeline, then judge what it makes and write report.html and report.json."""
        from latentia.recipes.pdiff_classifiers_judging import tell

        super().finish(bench, results, out)
        tell(self, bench, out)

    def work(self) -> list[Work]:
        """The classifier's training, its two layers' training, the autoencoder's, the UNet's, and the judging."""
        import torch

        from latentia.methods.pdiff.layout import ParameterLayout
        from latentia.recipes.pdiff_classifiers_judging import judged_images, tail_share
        from latentia.recipes.plan import Work

        random = self.model_copy(update={"pretrained": None})
        with torch.device("meta"):
            network = random.build().eval()
            layout = ParameterLayout.select(network, self.patterns())
            share = tail_share(network, layout, self.picture(1))
        main, collect = self.fits()
        names = {*layout.names, *layout.ties}
        trained = SOURCES[self.dataset].train * main.epochs
        steps = self.skip + 1 + (self.count - 1) * self.every
        seen = judged_images(self, share)
        every, some = main.batch_size, collect.batch_size
        learning = partial(frozen, random.build, names)
        here, shown = (self.architecture, random.build, self.picture), (self.architecture, learning, self.picture)
        return [
            *([Work("originals", *here, trained, every, every, call=steady)] if trained else []),
            Work("collecting", *shown, steps * some, some, some, call=steady),
            *self.generator_work(layout.size),
            Work("judging", *here, seen, self.judge_batch, self.judge_batch, trained=False, call=steady),
        ]

    def picture(self, batch: int) -> tuple[torch.Tensor, ...]:
        """Images of the right shape."""
        import torch

        return (torch.zeros(batch, self.channels, self.image_size, self.image_size),)


def steady(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A pass with BatchNorm's running statistics: one small image has none of its own."""
    logits: torch.Tensor = network.eval()(x)
    return logits


def frozen(build: Callable[[], nn.Module], names: set[str]) -> nn.Module:
    """The network with all but the named parameters frozen."""
    network = build()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in names)
    return network


def third_edition(architecture: ArchitectureName, name: str) -> PDiffPaper:
    """The later edition: K = 300 by AdamW from pretrained weights, z-scores, 500 + 1000 steps, 200 samples."""
    codec = PaperCodec(
        kind="batch",
        channels=(64, 128, 256, 256, 32),
        strides=(2, 2, 2, 2, 2),
        latent_channels=1,
        standardise="tensor",
        whiten="none",
        steps=500,
        optim=Optim(lr=2e-5, schedule="cosine", clip=None),
    )
    return PDiffPaper(
        name=name,
        architecture=architecture,
        pretrained=HUB[architecture],
        samples=200,
        sampling_steps=1000,
        codec=codec,
        unet=LatentUNet(channels=(64, 128, 256), kernel_size=7, downsample=False, positions=False),
        steps=1000,
        batch_size=50,
        optim=Optim(lr=1e-4, schedule="cosine", clip=None),
        ema=Average(decay=0),
    )


def first_edition(architecture: ArchitectureName, name: str) -> PDiffPaper:
    """The article's edition: K = 200 by SGD from scratch at 32 pixels, raw parameters, 30,000 + 30,000 steps."""
    codec = PaperCodec(
        kind="instance",
        channels=(4, 4, 4, 4),
        decoder=(4, 256, 256, 8),
        kernel_size=5,
        standardise="none",
        whiten="none",
        mix=True,
        steps=30_000,
        batch_size=200,
        optim=Optim(lr=1e-3, weight_decay=2e-6, clip=None),
    )
    by_sgd: dict[str, Any] = {"optimizer": "sgd", "batch_size": 64, "weight_decay": 5e-4}
    return PDiffPaper(
        name=name,
        architecture=architecture,
        pretrained=None,
        image_size=32,
        count=200,
        main=FineTuning(lr=0.1, epochs=30, schedule="thirds", **by_sgd),
        collect_by=FineTuning(lr=1e-4, schedule="constant", **by_sgd),
        skip=0,
        crop="shift",
        rotate=15.0,
        samples=100,
        sampling_steps=1000,
        codec=codec,
        unet=LatentUNet(channels=(64, 128, 256, 512), downsample=False, positions=False),
        noise=Noise(clip_sample=True, variance_type="fixed_large"),
        steps=30_000,
        batch_size=200,
        optim=Optim(lr=1e-3, weight_decay=2e-6, clip=None),
        ema=Average(decay=0.9999),
    )
