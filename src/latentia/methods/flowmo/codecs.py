"""FlowMo, with a code of bits, and its continuous variant."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional as F

from latentia.codecs.quantizers.quantizer import Quantized
from latentia.codecs.quantizers.registry import build_quantizer
from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError
from latentia.methods.flowmo.model import DiffusionAutoencoder


class FlowMo(DiffusionAutoencoder):
    """A picture as S code tokens of c bits: c = q(ĉ); see `DiffusionAutoencoder`.

    A token is a quantizer's: with `lfq` one group of bits of one code token.

    Args:
        image_size: side of the square pictures.
        in_channels: of a picture.
        patch_size: side of a patch.
        code_length: S, code tokens.
        code_dim: c, channels of a code token: its bits for `lfq`.
        encoder_width, encoder_depth, encoder_heads: of the encoder.
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        mlp_ratio: hidden width of an MLP over the width.
        quantizer: a name of `codecs.quantizers.registry.QUANTIZERS`; `lfq` in the paper.
        quantizer_options: its arguments beyond `dim`.
        prediction_type: `flow_prediction` (the network says v), `sample` (it says x̂₀, and v = (x_t − x̂₀)/t) or
            `preconditioned` (see `estimate`).
        sigma_data: of `preconditioned`: root mean square of the pictures' values.
        code_layout: positions of the code tokens: `diagonal` (paper) or `grid`, shared with the patches.
        anchored: code tokens start from the patches they stand on, see `MMDiT`; needs `grid`.
        rope_theta: slowest period of the positions.
        num_inference_steps, rho, guidance_scale, guidance_interval: of the sampler when a call does not say; the
            interval is in σ = t/(1 − t).

    Raises `ConfigError` for sizes that do not fit, `UnknownChoiceError` for unknown names.
    """

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
        sigma_data: float = 0.5,
        code_layout: str = "diagonal",
        anchored: bool = False,
        rope_theta: float = 10000.0,
        num_inference_steps: int = 25,
        rho: float = 4.0,
        guidance_scale: float = 1.5,
        guidance_interval: tuple[float, float] | None = (0.17, 1.02),
    ) -> None:
        super().__init__()
        self._build()
        self.quantizer = build_quantizer(quantizer, dim=code_dim, **(quantizer_options or {}))

    def quantize(self, latents: torch.Tensor) -> Quantized:
        """ĉ (B, c, S) → values, tokens and losses."""
        return self.quantizer(latents)

    def values(self, latents: torch.Tensor) -> torch.Tensor:
        """q(ĉ)."""
        return self.quantizer.embed(self.quantizer.assign(latents)).to(latents.dtype)

    def to_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) → tokens (B, S), or (B, S, q) with several to a code token; int64 in 0 … K − 1."""
        return self.quantizer.assign(self.to_latents(x))

    def from_tokens(self, indices: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Tokens → x̂, a sample: another generator gives another of the pictures that the code allows.

        Raises `InputError` for tokens of another shape or alphabet, such as another codec's.
        """
        expected = self.token_shape(self.picture_shape)
        if tuple(indices.shape[1:]) != expected:
            raise InputError(
                f"tokens are {tuple(indices.shape)}: this codec writes (batch, {', '.join(map(str, expected))}); "
                "were they made with another one?"
            )
        values = self.quantizer.embed(indices.to(self.device)).to(self.dtype)
        (x,) = self.decode(values, generator, quantized=True, return_dict=False)
        return x

    @property
    def num_codes(self) -> int:
        """K, the alphabet of one token."""
        return self.quantizer.num_codes

    @property
    def tokens_per_position(self) -> int:
        """q, tokens that make up one code token."""
        return self.quantizer.tokens

    def token_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the tokens of one picture of `shape` (C, H, W): (S,), or (S, q)."""
        self.check_shape(shape)
        tokens = self.tokens_per_position
        return (self.config.code_length,) if tokens == 1 else (self.config.code_length, tokens)

    def bits(self, shape: Sequence[int]) -> float:
        """Bits of one picture of `shape`: tokens · log2 K."""
        return math.prod(self.token_shape(shape)) * math.log2(self.num_codes)

    def bits_per_element(self) -> float:
        """Bits for one element of ĉ: 1 for `lfq`."""
        return self.quantizer.bits_per_position() / self.config.code_dim


class ContinuousFlowMo(DiffusionAutoencoder):
    """FlowMo without a quantizer, as the article compares it with DiTo (Chen et al. 2025): c = ĉ.

    The last layer of its encoder normalises all of a picture's ĉ to mean 0 and variance 1. Arguments are those of
    `FlowMo`, without the quantizer's; 256 code tokens of 16 channels in the article.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 256,
        in_channels: int = 3,
        patch_size: int = 4,
        code_length: int = 256,
        code_dim: int = 16,
        encoder_width: int = 768,
        encoder_depth: int = 8,
        encoder_heads: int = 12,
        decoder_width: int = 1152,
        decoder_depth: int = 16,
        decoder_heads: int = 12,
        mlp_ratio: float = 4.0,
        prediction_type: str = "flow_prediction",
        sigma_data: float = 0.5,
        code_layout: str = "diagonal",
        anchored: bool = False,
        rope_theta: float = 10000.0,
        num_inference_steps: int = 25,
        rho: float = 4.0,
        guidance_scale: float = 1.5,
        guidance_interval: tuple[float, float] | None = (0.17, 1.02),
    ) -> None:
        super().__init__()
        self._build()

    def values(self, latents: torch.Tensor) -> torch.Tensor:
        """ĉ itself."""
        return latents

    def _as_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(latents.float(), latents.shape[1:])

    def bits_per_element(self) -> float:
        """16, as for any codec of floats."""
        return 16.0
