"""What both FlowMos share: an MMDiT encoder, and an MMDiT decoder that samples the picture from the code."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from latentia.core.arguments import check_counts, check_number
from latentia.core.model import ModelMixin
from latentia.core.outputs import Output
from latentia.core.rng import Generators, randn
from latentia.denoisers.mmdit import MMDiT, code_positions, grid_positions
from latentia.errors import ConfigError, InputError, check_choice
from latentia.methods.flowmo.sampler import Sampler, sample_flow

PREDICTIONS = ("flow_prediction", "sample", "preconditioned")
SMALLEST_TIME = 1e-6
"""x₀-prediction divides by t; the smallest time that a sampler of 25 steps visits is 2.6·10⁻⁶."""


@dataclass(slots=True)
class FlowMoEncoderOutput(Output):
    """`latents` (B, c, S): ĉ, continuous, before quantisation."""

    latents: torch.Tensor


@dataclass(slots=True)
class FlowMoDecoderOutput(Output):
    """`sample` (B, C, H, W): one reconstruction of many, in [-1, 1]."""

    sample: torch.Tensor


class DiffusionAutoencoder(ModelMixin):
    """Abstract: x → ĉ = e(x) → c → x̂ ~ p(x | c), by integrating dx/dt = v(x, c, t) from noise (t = 1) to data (t = 0).

    x_t = (1 − t)·x + t·z and v = z − x (Sargent et al. 2025, arXiv 2503.11056; the sign is that of the released code,
    the paper's is the opposite). Latents are ĉ as (B, c, S). What c is, is the subclass's.
    """

    _repeated_blocks = ("MMDiTBlock",)

    def _build(self) -> None:
        """Make the two halves from the recorded config."""
        c = self.config
        self._check_config()
        side, patch = c.image_size // c.patch_size, c.in_channels * c.patch_size**2
        shape: dict[str, Any] = {"mlp_ratio": c.mlp_ratio, "theta": c.rope_theta, "anchored": c.anchored}
        sizes = c.encoder_width, c.encoder_depth, c.encoder_heads
        self.encoder = MMDiT(patch, None, "code", c.code_dim, *sizes, timed=False, **shape)
        sizes = c.decoder_width, c.decoder_depth, c.decoder_heads
        self.decoder = MMDiT(patch, c.code_dim + 1, "image", None, *sizes, **shape)
        self._positions = grid_positions(side, side), code_positions(c.code_length, c.code_layout, side, side)

    def _check_config(self) -> None:
        c = self.config
        check_counts(c, ("image_size", "in_channels", "patch_size", "code_length", "code_dim"))
        for half in ("encoder", "decoder"):
            check_counts(c, (f"{half}_width", f"{half}_depth", f"{half}_heads"))
        if c.image_size % c.patch_size:
            raise ConfigError(f"image_size {c.image_size} is not a multiple of patch_size {c.patch_size}")
        if c.anchored and c.code_layout != "grid":
            raise ConfigError(f"anchored codes stand on the patches: code_layout must be grid, not {c.code_layout!r}")
        check_choice("prediction_type", c.prediction_type, PREDICTIONS)
        check_number("mlp_ratio", c.mlp_ratio, low=0, open_low=True)
        check_number("sigma_data", c.sigma_data, low=0, open_low=True)
        self.default_sampler()

    def default_sampler(self) -> Sampler:
        """The sampler of the config."""
        c = self.config
        return Sampler(c.num_inference_steps, c.rho, c.guidance_scale, c.guidance_interval)

    @abstractmethod
    def values(self, latents: torch.Tensor) -> torch.Tensor:
        """ĉ (B, c, S) → c, what the decoder hears, of the same shape."""

    # Code

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> FlowMoEncoderOutput | tuple[torch.Tensor]:
        """x (B, C, H, W) in [-1, 1] → ĉ (B, c, S)."""
        self.check_pictures(x)
        image_positions, places = self.positions(x.device)
        latents = self.encoder(self.patchify(x), None, image_positions, places).transpose(1, 2)
        latents = self._as_latents(latents)
        return FlowMoEncoderOutput(latents) if return_dict else (latents,)

    def _as_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """What the encoder says → ĉ."""
        return latents

    def flagged(self, values: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """c (B, c, S) → what the decoder is told (B, S, c + 1): the code and a channel of ones.

        A picture with `keep` (B,) false has no code: zeros all over, the flag included.
        """
        code = F.pad(values.transpose(1, 2), (0, 1), value=1.0)
        return code if keep is None else code * keep[:, None, None].to(code.dtype)

    # Flow

    def estimate(self, x_t: torch.Tensor, t: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t (B, C, H, W), t (B,) in [0, 1], code as `flagged` makes it → (v, x̂₀), both of x_t's shape.

        x̂₀ = x_t − t·v, and the network's answer F is v, or x̂₀, or, `preconditioned`, with D = (1 − t)²σ² + t² and
        σ = `sigma_data`, what is left when the best guess without looking is made (Karras et al. 2022, §5, here for
        the straight path): of unit variance at all times, so that errors of x̂₀ vanish with t, as they do not where
        F is x̂₀, and do not grow towards noise, as they do where F is v.

            x̂₀ = ((1 − t)σ²·x_t + tσ√D·F(x_t/√D)) / D,   v = ((t − (1 − t)σ²)·x_t − σ√D·F) / D
        """
        time = t[:, None, None, None]
        if self.config.prediction_type == "preconditioned":
            sigma, left = self.config.sigma_data, 1 - time
            square = (left * sigma).square() + time.square()
            root = square.sqrt()
            said = self._said((x_t / root).to(x_t.dtype), t, code)
            v = ((time - left * sigma**2) * x_t - sigma * root * said) / square
            return v, x_t - time * v
        said = self._said(x_t, t, code)
        if self.config.prediction_type == "sample":
            return (x_t - said) / time.clamp(min=SMALLEST_TIME), said
        return said, x_t - time * said

    def _said(self, seen: torch.Tensor, t: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """F, the decoder's own answer, float32."""
        image_positions, places = self.positions(seen.device)
        return self.unpatchify(self.decoder(self.patchify(seen), code, image_positions, places, t)).float()

    def velocity(self, x_t: torch.Tensor, t: torch.Tensor, code: torch.Tensor) -> torch.Tensor:
        """v(x_t, c, t) of `estimate`."""
        return self.estimate(x_t, t, code)[0]

    def decode(
        self,
        latents: torch.Tensor,
        generator: Generators = None,
        sampler: Sampler | None = None,
        noise: torch.Tensor | None = None,
        quantized: bool = False,
        return_dict: bool = True,
    ) -> FlowMoDecoderOutput | tuple[torch.Tensor]:
        """ĉ (B, c, S), or c itself if `quantized` → one sample of p(x | c), clipped to [-1, 1].

        Args:
            latents: as `encode` gives them.
            generator: of the starting noise; one for each picture makes it independent of its batch.
            sampler: steps, spacing and guidance; None: the config's.
            noise: starting noise (B, C, H, W) instead of the generator's.
        """
        self.check_latents(latents)
        values = latents if quantized else self.values(latents)
        shape = (len(values), *self.picture_shape)
        z = randn(shape, generator, values.device, values.dtype) if noise is None else noise
        code = self.flagged(values)
        x = sample_flow(self.velocity, z, code, sampler or self.default_sampler()).clamp(-1, 1)
        return FlowMoDecoderOutput(x) if return_dict else (x,)

    def forward(
        self, x: torch.Tensor, generator: Generators = None, return_dict: bool = True
    ) -> FlowMoDecoderOutput | tuple[torch.Tensor]:
        """x there and back: encode, then `decode` with the config's sampler."""
        return self.decode(self.to_latents(x), generator, return_dict=return_dict)

    # The shared face of codecs

    def to_latents(self, x: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """x (B, C, H, W) → ĉ (B, c, S)."""
        (latents,) = self.encode(x, return_dict=False)
        return latents

    def from_latents(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """ĉ → quantised → x̂, with the config's sampler."""
        (x,) = self.decode(z, generator, return_dict=False)
        return x

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(c, S) for a picture of `shape` (C, H, W)."""
        self.check_shape(shape)
        return self.config.code_dim, self.config.code_length

    # Shapes

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c = self.config
        return c.in_channels, c.image_size, c.image_size

    def positions(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions of patches (N, 3) and of code tokens (S, 3)."""
        image, code = self._positions
        return image.to(device), code.to(device)

    def patchify(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → (B, N, p·p·C): patches in reading order, each as (row, column, channel)."""
        p, side = self.config.patch_size, self.config.image_size // self.config.patch_size
        x = x.reshape(len(x), -1, side, p, side, p)
        return x.permute(0, 2, 4, 3, 5, 1).reshape(len(x), side * side, -1)

    def unpatchify(self, patches: torch.Tensor) -> torch.Tensor:
        """The inverse of `patchify`."""
        p, side = self.config.patch_size, self.config.image_size // self.config.patch_size
        x = patches.reshape(len(patches), side, side, p, p, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, side * p, side * p)

    def check_pictures(self, x: torch.Tensor) -> None:
        """Raise `InputError` unless x is (B, C, H, W) of this codec's size."""
        if x.ndim != 4:
            raise InputError(f"x is {tuple(x.shape)}: expected (batch, {', '.join(map(str, self.picture_shape))})")
        self.check_shape(x.shape[1:])

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise `InputError` unless `shape` (C, H, W) is this codec's."""
        if tuple(shape) != self.picture_shape:
            raise InputError(
                f"this FlowMo was built for pictures of {self.picture_shape}, got {tuple(shape)}: its code has a fixed "
                "length, so resize or cut them into tiles of that size"
            )

    def check_latents(self, latents: torch.Tensor) -> None:
        """Raise `InputError` unless latents are (B, c, S)."""
        expected = (self.config.code_dim, self.config.code_length)
        if latents.ndim != 3 or tuple(latents.shape[1:]) != expected:
            raise InputError(f"latents are {tuple(latents.shape)}: expected (batch, {expected[0]}, {expected[1]})")
