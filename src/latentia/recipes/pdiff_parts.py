"""The groups of fields of the p-diff recipes: the task, the networks to imitate, the codec and the denoiser of weights.

Names and defaults are those of what they build. Nothing here imports torch until something is built.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from latentia.recipes.parts import Optim, Widths
from latentia.recipes.recipe import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from latentia.denoisers.unet_1d import UNet1D
    from latentia.methods.pdiff import many
    from latentia.methods.pdiff.autoencoder import ParameterAutoencoder
    from latentia.methods.pdiff.collect import Trajectory
    from latentia.methods.pdiff.tasks import Task


def split_words(value: object) -> object:
    """`a,b` or `a` as typed on the command line → ("a", "b") or ("a",); anything else as it is."""
    return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value


Words = Annotated[tuple[str, ...], BeforeValidator(split_words), Field(min_length=1)]


class NoisyDigits(Value):
    """What the small networks learn: real digits made hard enough that networks differ."""

    train: Annotated[int, Field(ge=10, le=1256)] = Field(default=600, description="images that networks are fitted to")
    noise: NonNegativeFloat = Field(default=0.3, description="standard deviation added to pixels in [-1, 1]")
    seed: NonNegativeInt = Field(default=0, description="of the choice of images and of the noise")

    def build(self) -> Task:
        """Images to fit, to select on and to test on."""
        from latentia.methods.pdiff.tasks import digits_task

        return digits_task(self.train, self.noise, seed=self.seed)


class Fitting(Value):
    """How one small network is trained."""

    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="SGD with momentum 0.9, or AdamW")
    lr: PositiveFloat = Field(default=3e-3, description="learning rate at the start")
    epochs: NonNegativeInt = Field(default=30, description="passes over the images; not read while collecting")
    batch_size: PositiveInt = Field(default=32, description="images in one step")
    weight_decay: NonNegativeFloat = Field(default=5e-4, description="of the optimizer")
    schedule: Literal["constant", "cosine", "thirds"] = Field(default="cosine", description="of the learning rate")

    def build(self) -> many.Fit:
        """The room's value."""
        from latentia.methods.pdiff import many

        return many.Fit(**self.model_dump())


class Originals(Value):
    """The networks to imitate: one training run, and K checkpoints at its end."""

    network: Literal["convnet3", "mlp3", "resnet"] = Field(default="convnet3", description="the architecture")
    width: PositiveInt | None = Field(default=None, description="of a convnet3 or resnet; none for its own")
    blocks: tuple[PositiveInt, ...] = Field(default=(), description="blocks of each stage of a resnet")
    patterns: Words = Field(default=("*",), description="names of the parameters that are generated")
    count: PositiveInt = Field(default=200, description="K, the checkpoints")
    main: Fitting = Field(default=Fitting(), description="training of the whole network")
    collect: Fitting = Field(default=Fitting(), description="training of the selected parameters while collecting")
    skip: NonNegativeInt = Field(default=0, description="first steps of collecting that are not saved")
    every: PositiveInt = Field(default=1, description="steps from one checkpoint to the next")
    batch_norm: Literal["train", "eval"] = Field(default="train", description="mode of BatchNorm while collecting")

    def build(self) -> Callable[[], nn.Module]:
        """What makes the network."""
        from latentia.methods.pdiff.networks import build

        sizes: dict[str, Any] = {}
        if self.width is not None and self.network != "mlp3":
            sizes["width"] = self.width
        if self.blocks and self.network == "resnet":
            sizes["blocks"] = self.blocks
        return partial(build, self.network, **sizes)

    def size(self) -> int:
        """D, the number of generated parameters; nothing is allocated."""
        import torch

        from latentia.methods.pdiff.layout import ParameterLayout

        with torch.device("meta"):
            return ParameterLayout.select(self.build()(), self.patterns).size

    def trajectory(self) -> Trajectory:
        """How the checkpoints are collected."""
        from latentia.methods.pdiff.collect import Trajectory

        return Trajectory(self.main.build(), self.collect.build(), self.skip, self.every, self.batch_norm)


class ParameterCodec(Value):
    """The parameter autoencoder and the phase that trains it."""

    kind: Literal["straight", "batch", "instance"] = Field(default="straight", description="see ParameterAutoencoder")
    channels: Widths = Field(default=(8, 16, 16, 8), description="width after each block of the encoder")
    strides: Widths = Field(default=(4, 4, 2, 2), description="stride of each block")
    kernel_size: PositiveInt = Field(default=7, description="of the convolutions")
    latent_dim: PositiveInt = Field(default=128, description="numbers in a latent")
    latent_channels: PositiveInt = Field(default=8, description="channels of the latent, a divisor of latent_dim")
    standardise: Literal["center", "coordinate", "none", "tensor"] = Field(
        default="center", description="how parameters are standardised"
    )
    whiten: Literal["coordinate", "full", "none"] = Field(default="full", description="how latents are whitened")
    parameter_noise: NonNegativeFloat = Field(default=0.001, description="σ of ξ_V, added to the parameters")
    latent_noise: NonNegativeFloat = Field(default=0.1, description="σ of ξ_Z, added to the latents")
    steps: PositiveInt = Field(default=400, description="optimizer steps of the codec's phase")
    batch_size: PositiveInt = Field(default=50, description="networks in one optimizer step, over all processes")
    optim: Optim = Field(default=Optim(lr=2e-3, schedule="cosine"), description="optimizer of the codec")

    def build(self, size: int) -> ParameterAutoencoder:
        """The autoencoder for vectors of `size` parameters."""
        from latentia.methods.pdiff.autoencoder import ParameterAutoencoder

        return ParameterAutoencoder(
            size,
            kind=self.kind,
            encoder_channels=self.channels,
            decoder_channels=tuple(reversed(self.channels)),
            kernel_size=self.kernel_size,
            strides=self.strides,
            latent_dim=self.latent_dim,
            latent_channels=self.latent_channels,
        )


class LatentUNet(Value):
    """The widths of a `UNet1D`; the recipe adds what follows from the latents."""

    channels: Widths = Field(default=(64, 64), description="width of each stage")
    layers: PositiveInt = Field(default=1, description="residual blocks a stage")
    kernel_size: PositiveInt = Field(default=3, description="of the convolutions")
    downsample: bool = Field(default=True, description="halve the length from stage to stage")
    positions: bool = Field(default=True, description="learn a vector for each place of the latent")

    def build(self, latents: tuple[int, int]) -> UNet1D:
        """The denoiser of latents (c, L)."""
        from latentia.denoisers.unet_1d import UNet1D

        channels, length = latents
        return UNet1D(
            sample_size=length,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            kernel_size=self.kernel_size,
            downsample=self.downsample,
            learned_positions=self.positions,
        )
