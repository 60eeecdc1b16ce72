"""FlowMo: an MMDiT encoder, a quantizer, and an MMDiT decoder that samples the picture from the code."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from latentia.codecs.quantizers.quantizer import Quantized, Quantizer
from latentia.codecs.quantizers.registry import QUANTIZERS, build_quantizer
from latentia.core.arguments import check_counts, check_number
from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.core.outputs import Output
from latentia.core.rng import Generators, randn
from latentia.denoisers.mmdit import MMDiT, code_positions, grid_positions
from latentia.errors import ConfigError, InputError, check_choice
from latentia.methods.flowmo.sampler import Sampler, sample_flow

PREDICTIONS = ("flow_prediction", "sample")
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


class FlowMo(ModelMixin):
    """x → ĉ = e(x) → c = q(ĉ) → x̂ ~ p(x | c), by integrating dx/dt = v(x, c, t) from noise (t = 1) to data (t = 0).

    x_t = (1 − t)·x + t·z and v = z − x (Sargent et al. 2025, arXiv 2503.11056; the sign is that of the released code,
    the paper's is the opposite). Latents are ĉ as (B, c, S); a token is one group of bits of one code token.

    Args:
        image_size: side of the square pictures.
        in_channels: of a picture.
        patch_size: side of a patch.
        code_length: S, code tokens.
        code_dim: c, channels of a code token: its bits for `lfq`.
        encoder_width, encoder_depth, encoder_heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        mlp_ratio: hidden width of an MLP over the width.
        quantizer: a name of `QUANTIZERS` (`lfq` in the paper), or `none`: ĉ, normalised to mean 0 and variance 1 over
            all of a picture's code, is the latent (the continuous variant that the article compares with DiTo).
        quantizer_options: its arguments beyond `dim`.
        prediction_type: `flow_prediction` (the network says v) or `sample` (it says x̂₀, and v = (x_t − x̂₀)/t).
        code_layout: positions of the code tokens: `diagonal` (paper) or `grid`, shared with the patches.
        rope_theta: slowest period of the positions.
        num_inference_steps, rho, guidance_scale, guidance_interval: of the sampler when a call does not say; the
            interval is in σ = t/(1 − t).

    Raises `ConfigError` for sizes that do not fit, `UnknownChoiceError` for unknown names.
    """

    _repeated_blocks = ("MMDiTBlock",)

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        in_channels: int = 3,
        patch_size: int = 4,
        code_length: int = 256,
        code_dim: int = 18,
        encoder_width: int = 768,
        encoder_depth: int = 8,
        encoder_heads: int = 12,
        decoder_width: int = 1152,
        decoder_depth: int = 16,
        decoder_heads: int = 12,
        mlp_ratio: float = 4.0,
        quantizer: str = "lfq",
        quantizer_options: Mapping[str, Any] | None = None,
        prediction_type: str = "flow_prediction",
        code_layout: str = "diagonal",
        rope_theta: float = 10000.0,
        num_inference_steps: int = 25,
        rho: float = 4.0,
        guidance_scale: float = 1.5,
        guidance_interval: tuple[float, float] | None = (0.17, 1.02),
    ) -> None:
        super().__init__()
        self._check_config()
        side, patch = image_size // patch_size, in_channels * patch_size**2
        self.quantizer = self._quantizer()
        shape: dict[str, Any] = {"mlp_ratio": mlp_ratio, "theta": rope_theta}
        self.encoder = MMDiT(
            patch, None, "code", code_dim, encoder_width, encoder_depth, encoder_heads, timed=False, **shape
        )
        self.decoder = MMDiT(patch, code_dim + 1, "image", None, decoder_width, decoder_depth, decoder_heads, **shape)
        self._positions = grid_positions(side, side), code_positions(code_length, code_layout, side, side)

    def _check_config(self) -> None:
        c = self.config
        check_counts(c, ("image_size", "in_channels", "patch_size", "code_length", "code_dim"))
        for half in ("encoder", "decoder"):
            check_counts(c, (f"{half}_width", f"{half}_depth", f"{half}_heads"))
        if c.image_size % c.patch_size:
            raise ConfigError(f"image_size {c.image_size} is not a multiple of patch_size {c.patch_size}")
        check_choice("prediction_type", c.prediction_type, PREDICTIONS)
        check_choice("quantizer", c.quantizer, ("none", *QUANTIZERS))
        check_number("mlp_ratio", c.mlp_ratio, low=0, open_low=True)
        self.default_sampler()

    def _quantizer(self) -> Quantizer | None:
        c = self.config
        if c.quantizer == "none":
            return None
        return build_quantizer(c.quantizer, dim=c.code_dim, **(c.quantizer_options or {}))

    def default_sampler(self) -> Sampler:
        """The sampler of the config."""
        c = self.config
        return Sampler(c.num_inference_steps, c.rho, c.guidance_scale, c.guidance_interval)

    # Code

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> FlowMoEncoderOutput | tuple[torch.Tensor]:
        """x (B, C, H, W) in [-1, 1] → ĉ (B, c, S)."""
        self.check_pictures(x)
        image_positions, places = self.positions(x.device)
        latents = self.encoder(self.patchify(x), None, image_positions, places).transpose(1, 2)
        if self.quantizer is None:
            latents = F.layer_norm(latents.float(), latents.shape[1:])
        return FlowMoEncoderOutput(latents) if return_dict else (latents,)

    def quantize(self, latents: torch.Tensor) -> Quantized:
        """ĉ (B, c, S) → values, tokens and losses. Raises `ConfigError` for the continuous variant."""
        return self._needs_quantizer()(latents)

    def flagged(self, values: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """c (B, c, S) → what the decoder is told (B, S, c + 1): the code and a channel of ones.

        A picture with `keep` (B,) false has no code: zeros all over, the flag included.
        """
        code = F.pad(values.transpose(1, 2), (0, 1), value=1.0)
        return code if keep is None else code * keep[:, None, None].to(code.dtype)

    # Flow

    def estimate(self, x_t: torch.Tensor, t: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x_t (B, C, H, W), t (B,) in [0, 1], code as `flagged` makes it → (v, x̂₀), both of x_t's shape.

        One of them is the network's answer, the other follows: x̂₀ = x_t − t·v.
        """
        image_positions, places = self.positions(x_t.device)
        said = self.unpatchify(self.decoder(self.patchify(x_t), code, image_positions, places, t)).float()
        time = t[:, None, None, None]
        if self.config.prediction_type == "sample":
            return (x_t - said) / time.clamp(min=SMALLEST_TIME), said
        return said, x_t - time * said

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
        values = latents
        if self.quantizer is not None and not quantized:
            values = self.quantizer.embed(self.quantizer.assign(latents)).to(latents.dtype)
        shape = (len(values), *self.picture_shape)
        z = randn(shape, generator, values.device, values.dtype) if noise is None else noise
        code = self.flagged(values)
        x = sample_flow(self.velocity, z, code, sampler or self.default_sampler()).clamp(-1, 1)
        return FlowMoDecoderOutput(x) if return_dict else (x,)

    # The shared face of codecs

    def to_latents(self, x: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """x (B, C, H, W) → ĉ (B, c, S)."""
        (latents,) = self.encode(x, return_dict=False)
        return latents

    def from_latents(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """ĉ → quantised → x̂, with the config's sampler."""
        (x,) = self.decode(z, generator, return_dict=False)
        return x

    def to_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) → tokens (B, S), or (B, S, q) with several to a code token; int64 in 0 … K − 1."""
        return self._needs_quantizer().assign(self.to_latents(x))

    def from_tokens(self, indices: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Tokens → x̂, a sample: another generator gives another of the pictures that the code allows.

        Raises `InputError` for tokens of another shape or alphabet, such as another codec's.
        """
        quantizer = self._needs_quantizer()
        expected = self.token_shape(self.picture_shape)
        if tuple(indices.shape[1:]) != expected:
            raise InputError(
                f"tokens are {tuple(indices.shape)}: this codec writes (batch, {', '.join(map(str, expected))}); "
                "were they made with another one?"
            )
        values = quantizer.embed(indices.to(self.device)).to(self.dtype)
        (x,) = self.decode(values, generator, quantized=True, return_dict=False)
        return x

    @property
    def num_codes(self) -> int:
        """K, the alphabet of one token."""
        return self._needs_quantizer().num_codes

    def token_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the tokens of one picture of `shape` (C, H, W): (S,), or (S, q)."""
        self.check_shape(shape)
        tokens = self._needs_quantizer().tokens
        return (self.config.code_length,) if tokens == 1 else (self.config.code_length, tokens)

    def bits(self, shape: Sequence[int]) -> float:
        """Bits of one picture of `shape`: tokens · log2 K."""
        return math.prod(self.token_shape(shape)) * math.log2(self.num_codes)

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(c, S) for a picture of `shape` (C, H, W)."""
        self.check_shape(shape)
        return self.config.code_dim, self.config.code_length

    def bits_per_element(self) -> float:
        """Bits for one element of ĉ: 1 for `lfq`, 16 for the continuous variant, as for any float codec."""
        if self.quantizer is None:
            return 16.0
        return self.quantizer.bits_per_position() / self.config.code_dim

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

    def _needs_quantizer(self) -> Quantizer:
        if self.quantizer is None:
            raise ConfigError("this FlowMo is continuous (quantizer='none'): it has latents and no tokens")
        return self.quantizer
