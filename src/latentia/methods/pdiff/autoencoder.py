"""ParameterAutoencoder: vectors of parameters ↔ small latents, as the article's two editions build it and as we do."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from latentia.core.arguments import check_counts
from latentia.core.config import register_to_config
from latentia.core.evaluating import evaluating
from latentia.core.model import ModelMixin
from latentia.core.outputs import Output
from latentia.core.rng import Generators
from latentia.errors import ConfigError, InputError, check_choice
from latentia.methods.pdiff.halves import (
    BatchDecoder,
    BatchEncoder,
    InstanceDecoder,
    InstanceEncoder,
    StraightDecoder,
    StraightEncoder,
    check_stacks,
    instance_lengths,
)

KINDS = ("batch", "instance", "straight")


@dataclass(slots=True)
class ParameterAutoencoderOutput(Output):
    """`sample` (B, D): the reconstruction."""

    sample: torch.Tensor


class ParameterAutoencoder(ModelMixin):
    """x (B, D) → z (B, c, L) → x̂ (B, D) for standardised vectors of parameters.

        z = E(x + ξ_V),  x̂ = D(z + ξ_Z),  min ‖x̂ − x‖²

    The noise ξ belongs to the training (`ParameterReconstructionObjective`): encoding and decoding draw nothing.

    Kinds (sizes of the published networks: `latentia.methods.pdiff.presets`):
        instance: the first edition: strided convolutions with instance normalisation, tanh, no linear layer. The
            latent shape follows from `size`: 4 × 3 for D = 2048.
        batch: the later code: convolutions with batch normalisation, then linear layers to `latent_dim` numbers.
        straight: one matrix to `latent_dim` numbers and back, with convolutions beside it.

    Args:
        size: D.
        kind: one of the above.
        encoder_channels: width after each block of the encoder.
        decoder_channels: width before each block of the decoder.
        kernel_size: of the convolutions; for `instance` the stride too.
        strides: one a block (not for `instance`).
        latent_dim: numbers in z (not for `instance`).
        latent_channels: c, a divisor of `latent_dim` (not for `instance`).
        batch_statistics: normalise by the batch at hand in evaluation too, and decode one vector at a time, as the
            later code does (`batch` only).

    Source: Wang et al. 2024, arXiv:2402.13144, §3.2. Raises `UnknownChoiceError`, `ConfigError` for sizes that do not
    fit, `InputError` for tensors of other shapes.
    """

    @register_to_config
    def __init__(
        self,
        size: int,
        kind: str = "straight",
        encoder_channels: tuple[int, ...] = (8, 16, 16, 8),
        decoder_channels: tuple[int, ...] = (8, 16, 16, 8),
        kernel_size: int = 7,
        strides: tuple[int, ...] = (4, 4, 2, 2),
        latent_dim: int = 128,
        latent_channels: int = 8,
        batch_statistics: bool = False,
    ) -> None:
        super().__init__()
        self._check_config()
        if kind == "instance":
            lengths = instance_lengths(size, kernel_size, len(encoder_channels))
            self.latents: tuple[int, int] = encoder_channels[-1], lengths[-1]
            self.encoder: nn.Module = InstanceEncoder(size, encoder_channels, kernel_size)
            self.decoder: nn.Module = InstanceDecoder(size, (*decoder_channels, 1), kernel_size)
            return
        self.latents = latent_channels, latent_dim // latent_channels
        down = (size, encoder_channels, kernel_size, strides, self.latents)
        up = (size, decoder_channels, kernel_size, tuple(reversed(strides)), self.latents)
        if kind == "batch":
            self.encoder = BatchEncoder(*down, statistics=not batch_statistics)
            self.decoder = BatchDecoder(*up, statistics=not batch_statistics)
        else:
            self.encoder, self.decoder = StraightEncoder(*down), StraightDecoder(*up)

    def _check_config(self) -> None:
        c = self.config
        check_choice("kind of parameter autoencoder", c.kind, KINDS)
        widths = ("encoder_channels", "decoder_channels")
        check_counts(c, ("size", *widths, "kernel_size", "strides", "latent_dim", "latent_channels"))
        if c.batch_statistics and c.kind != "batch":
            raise ConfigError(f"batch_statistics is for kind 'batch': {c.kind!r} has no batch normalisation")
        if c.kind == "instance":
            if len(c.encoder_channels) != len(c.decoder_channels) or not c.encoder_channels:
                raise ConfigError("encoder_channels and decoder_channels must be equally long")
            if c.kernel_size < 3 or c.kernel_size % 2 == 0:
                raise ConfigError(f"kernel_size must be odd and at least 3 for kind 'instance', got {c.kernel_size}")
            if c.encoder_channels[-1] != c.decoder_channels[0]:
                raise ConfigError(
                    f"the latent has encoder_channels[-1] = {c.encoder_channels[-1]} channels: "
                    f"decoder_channels must begin with them, not with {c.decoder_channels[0]}"
                )
            return
        check_stacks(c.encoder_channels, c.decoder_channels, c.strides, c.kernel_size)
        if c.latent_dim % c.latent_channels:
            raise ConfigError(f"latent_dim {c.latent_dim} does not divide into latent_channels={c.latent_channels}")

    def to_latents(self, x: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Standardised x (B, D) → z (B, c, L); nothing is drawn, `generator` is accepted for all codecs alike."""
        size = self.config.size
        if x.ndim != 2 or x.shape[1] != size:
            raise InputError(f"x has shape {tuple(x.shape)}: expected (batch, {size}), standardised vectors")
        z: torch.Tensor = self.encoder(x)
        return z

    def from_latents(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """z (B, c, L) → x̂ (B, D), standardised."""
        if z.ndim != 3 or tuple(z.shape[1:]) != self.latents:
            raise InputError(f"z has shape {tuple(z.shape)}: expected (batch, {self.latents[0]}, {self.latents[1]})")
        if self.config.batch_statistics and not self.training and len(z) > 1:
            return torch.cat([self.decoder(row) for row in z.split(1)])
        x: torch.Tensor = self.decoder(z)
        return x

    def forward(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> ParameterAutoencoderOutput | tuple[torch.Tensor]:
        """Reconstruct `sample` (B, D)."""
        x = self.from_latents(self.to_latents(sample))
        return ParameterAutoencoderOutput(x) if return_dict else (x,)

    @torch.no_grad()
    def encode_all(self, x: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
        """Latents (K, c, L) of K standardised vectors on the CPU, in evaluation mode, in batches."""
        with evaluating([self]):
            return torch.cat([self.to_latents(part.to(self.device, self.dtype)).cpu() for part in x.split(batch_size)])

    @torch.no_grad()
    def decode_all(self, z: torch.Tensor, batch_size: int = 256) -> torch.Tensor:
        """Standardised vectors (K, D) of K latents on the CPU, in evaluation mode, in batches."""
        with evaluating([self]):
            return torch.cat(
                [self.from_latents(part.to(self.device, self.dtype)).cpu() for part in z.split(batch_size)]
            )

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(D,) of x → (c, L) of z; `InputError` for another D."""
        if tuple(shape) != (self.config.size,):
            raise InputError(f"shape {tuple(shape)} does not fit: expected ({self.config.size},)")
        return self.latents

    def bits_per_element(self) -> float:
        """16: a latent is worth storing in half precision."""
        return 16.0

    @property
    def compression(self) -> float:
        """Numbers in x for one in z."""
        return self.config.size / prod(self.latents)
