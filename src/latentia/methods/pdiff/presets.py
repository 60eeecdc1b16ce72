"""Two published editions of p-diff and our own, as values: networks, noise, normalisation, optimizers, schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentia.denoisers.unet_1d import UNet1D
from latentia.errors import check_choice
from latentia.methods.pdiff.autoencoder import ParameterAutoencoder
from latentia.schedulers.ddpm import DDPMScheduler
from latentia.training.phase import EMA, Optim


@dataclass(frozen=True)
class Training:
    """How one of the two networks is trained; a `batch_size` of None is all K checkpoints."""

    steps: int
    batch_size: int | None
    optim: Optim
    ema: EMA | None = None


@dataclass(frozen=True)
class Preset:
    """One edition of p-diff.

    Attributes:
        autoencoder: arguments of `ParameterAutoencoder` but `size`.
        standardise, whiten: kinds of `Standardiser` and `Whitener`.
        noise: arguments of `ParameterReconstructionObjective`.
        unet: arguments of `UNet1D` but those that follow from the latents.
        scheduler: arguments of `DDPMScheduler` but the article's (T = 1000, β linear from 1e-4 to 0.02, ε).
        autoencoder_training, unet_training: steps, batch, optimizer, averaging.
    """

    autoencoder: Mapping[str, Any]
    standardise: str
    whiten: str
    noise: Mapping[str, Any]
    unet: Mapping[str, Any]
    autoencoder_training: Training
    unet_training: Training
    scheduler: Mapping[str, Any] = field(default_factory=dict)

    def build_autoencoder(self, size: int, **changes: Any) -> ParameterAutoencoder:
        """The autoencoder for vectors of `size`; `changes` replace the preset's arguments (widths, say)."""
        return ParameterAutoencoder(size, **{**self.autoencoder, **changes})

    def build_unet(self, latents: tuple[int, int], **changes: Any) -> UNet1D:
        """The denoiser for latents (c, L)."""
        channels, length = latents
        shape = {"sample_size": length, "in_channels": channels, "out_channels": channels}
        return UNet1D(**{**self.unet, **shape, **changes})

    def build_scheduler(self) -> DDPMScheduler:
        """The schedule of training, and the article's sampler."""
        return DDPMScheduler(**{"clip_sample": False, **self.scheduler})


V1 = Preset(
    autoencoder={
        "kind": "instance",
        "encoder_channels": (4, 4, 4, 4),
        "decoder_channels": (4, 256, 256, 8),
        "kernel_size": 5,
    },
    standardise="none",
    whiten="none",
    noise={"parameter_noise": 0.001, "latent_noise": 0.1, "noise": "mix"},
    unet={"block_out_channels": (64, 128, 256, 512), "layers_per_block": 1, "downsample": False},
    scheduler={"clip_sample": True, "variance_type": "fixed_large"},
    autoencoder_training=Training(30_000, None, Optim(lr=1e-3, weight_decay=2e-6, clip=None)),
    unet_training=Training(30_000, None, Optim(lr=1e-3, weight_decay=2e-6, clip=None), EMA(decay=0.9999)),
)
"""The article's edition (Feb 2024): raw parameters, four blocks, 12 numbers of latent inside tanh.

Its code's defects are off; on they are `noise={..., "latent_noise": 0.5}` (the shipped file), `shared_time=True` of
`LatentPriorObjective`, and `ClampLatents(1.0)` as the sampler's callback. The denoiser is `UNet1D` at the published
widths, with group instead of instance normalisation.
"""

V2 = Preset(
    autoencoder={
        "kind": "batch",
        "encoder_channels": (64, 128, 256, 256, 32),
        "decoder_channels": (32, 256, 256, 128, 64),
        "kernel_size": 7,
        "strides": (2, 2, 2, 2, 2),
        "latent_dim": 128,
        "latent_channels": 1,
    },
    standardise="tensor",
    whiten="none",
    noise={"parameter_noise": 0.001, "latent_noise": 0.1},
    unet={"block_out_channels": (64, 128, 256), "layers_per_block": 1, "kernel_size": 7, "downsample": False},
    autoencoder_training=Training(500, 50, Optim(lr=2e-5, schedule="cosine", clip=None)),
    unet_training=Training(1000, 50, Optim(lr=1e-4, schedule="cosine", clip=None)),
)
"""The later edition (Dec 2024): z-scores per tensor, five blocks and linear layers, 128 numbers of latent, no EMA.

As its code has it with `batch_statistics=True` of the autoencoder and `noise={..., "noisy_target": True}`.
"""

DIGITS = Preset(
    autoencoder={"kind": "straight"},
    standardise="center",
    whiten="full",
    noise={"parameter_noise": 0.001, "latent_noise": 0.1},
    unet={"block_out_channels": (64, 64), "layers_per_block": 1, "learned_positions": True},
    autoencoder_training=Training(400, 50, Optim(lr=2e-3, schedule="cosine")),
    scheduler={"prediction_type": "v_prediction"},
    unet_training=Training(1000, 64, Optim(lr=1e-3, schedule="cosine", warmup=50), EMA(decay=0.99)),
)
"""Ours: deviations from the mean checkpoint, a straight way beside the convolutions, white latents, v-prediction.

Both editions predict ε. Measured on ConvNet-3's checkpoints (K = 200, 1000 steps): the generated networks' spread is
0.98 of the originals' with v, 0.82 with ε, 0.87 with ε on latents that are not white.
"""

PRESETS: Mapping[str, Preset] = {"digits": DIGITS, "v1": V1, "v2": V2}


def preset(name: str) -> Preset:
    """The preset called `name`; `UnknownChoiceError` for another name."""
    check_choice("p-diff preset", name, PRESETS)
    return PRESETS[name]
