"""VQModel: the vector-quantised autoencoder of VQ-VAE, VQGAN and latent diffusion."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from latentia.codecs.quantizers.quantizer import Quantizer
from latentia.codecs.quantizers.registry import QUANTIZERS, build_quantizer
from latentia.codecs.spatial_codec import DecoderOutput, SpatialCodec
from latentia.core.arguments import check_counts
from latentia.core.config import register_to_config
from latentia.core.outputs import Output
from latentia.core.rng import Generators
from latentia.errors import ConfigError, InputError, check_choice


@dataclass(slots=True)
class VQEncoderOutput(Output):
    """`latents` (B, d, H/f, W/f): continuous, before quantisation."""

    latents: torch.Tensor


@dataclass(slots=True)
class VQDecoderOutput(DecoderOutput):
    """`sample` (B, out_channels, H, W) and `commit_loss`, the quantizer's loss (0 for each sample without it)."""

    commit_loss: torch.Tensor


class VQModel(SpatialCodec):
    """x → z → e_k, the nearest of K codes at each position → x̂ (van den Oord et al. 2017; Esser et al. 2021).

    Arguments, state-dict keys and outputs are those of Diffusers' class of the same name, as long as `quantizer` is
    `vq`. Latents are the continuous z, which priors learn; decoding quantises (Rombach et al. 2022). `to_tokens` and
    `from_tokens` speak of k itself.

    Args:
        in_channels, out_channels: of x and of its reconstruction.
        down_block_types, up_block_types, block_out_channels, layers_per_block, act_fn: as in `AutoencoderKL`;
            f = 2^(stages − 1).
        latent_channels: channels between encoder, decoder and the 1×1 convolutions around the quantizer.
        sample_size: side of the training pictures, the default side of a tile.
        num_vq_embeddings: K, codes in the codebook, or the alphabet of a token of another quantizer.
        norm_num_groups: groups of the normalisations.
        vq_embed_dim: d, channels of z and of a code; None: `latent_channels`.
        scaling_factor: z = z_raw·scale; see `set_scale`. Latent diffusion leaves VQ latents alone (1.0).
        norm_type: `group`. The `spatial` normalisation of MoVQ decoders is not built.
        mid_block_add_attention: attention at the lowest resolution.
        lookup_from_codebook: `decode(..., force_not_quantize=True)` takes tokens instead of latents.
        force_upcast: recorded for pipelines: decode in float32 even when the weights are half precision.
        beta: β of the quantizer's loss. Not an argument of Diffusers, which has 0.25 fixed.
        legacy_beta: β on the codebook term, where Diffusers has it, instead of the commitment; it changes training,
            never an output. Not an argument of Diffusers.
        quantizer: a name of `QUANTIZERS`; Diffusers knows `vq` alone.
        quantizer_options: its arguments beyond `dim`, K, β and `legacy_beta`, such as {"decay": 0.995}.
        patch_size: p; encoder and decoder see p×p pixels as channels of one position, so that f = p·2^(stages − 1) and
            fine resolutions, where convolutions cost most, are left out. Diffusers knows 1 alone.

    Raises `UnknownChoiceError` for an unknown name, `ConfigError` for lengths and widths that do not fit and for
    spatial normalisation.
    """

    extensions = frozenset({"beta", "legacy_beta", "patch_size", "quantizer", "quantizer_options"})

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",),
        up_block_types: tuple[str, ...] = ("UpDecoderBlock2D",),
        block_out_channels: tuple[int, ...] = (64,),
        layers_per_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 3,
        sample_size: int | tuple[int, int] = 32,
        num_vq_embeddings: int = 256,
        norm_num_groups: int = 32,
        vq_embed_dim: int | None = None,
        scaling_factor: float = 0.18215,
        norm_type: str = "group",
        mid_block_add_attention: bool = True,
        lookup_from_codebook: bool = False,
        force_upcast: bool = False,
        beta: float = 0.25,
        legacy_beta: bool = False,
        quantizer: str = "vq",
        quantizer_options: Mapping[str, Any] | None = None,
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self._check_config()
        dim = latent_channels if vq_embed_dim is None else vq_embed_dim
        self.encoder, decoder = self._halves(latent_channels)
        self.quant_conv = nn.Conv2d(latent_channels, dim, 1)
        self.quantize = self._quantizer(dim)
        self.post_quant_conv = nn.Conv2d(dim, latent_channels, 1)
        self.decoder = decoder
        self._set_switches()

    def _check_config(self) -> None:
        c = self.config
        super()._check_config()
        check_counts(c, ("num_vq_embeddings", "patch_size"), optional=("vq_embed_dim",))
        check_choice("norm_type", c.norm_type, ("group", "spatial"))
        check_choice("quantizer", c.quantizer, QUANTIZERS)
        if c.norm_type == "spatial":
            raise ConfigError(
                "norm_type 'spatial', the decoder of MoVQ (Kandinsky), is not built: only norm_type 'group' is"
            )

    def _quantizer(self, dim: int) -> Quantizer:
        c, known = self.config, QUANTIZERS[self.config.quantizer].options
        own = {"num_codes": c.num_vq_embeddings, "beta": c.beta, "legacy_beta": c.legacy_beta}
        own["group_bits"] = (c.num_vq_embeddings - 1).bit_length()
        for name in ("beta", "legacy_beta"):
            if name not in known and c[name] != self.config_defaults()[name]:
                raise ConfigError(f"quantizer {c.quantizer!r} has no {name}, got {c[name]}: leave it out")
        given = {name: value for name, value in own.items() if name in known} | dict(c.quantizer_options or {})
        built = build_quantizer(c.quantizer, dim=dim, **given)
        if built.num_codes != c.num_vq_embeddings:
            raise ConfigError(
                f"num_vq_embeddings is {c.num_vq_embeddings}, but tokens of {c.quantizer!r} with {given} have "
                f"{built.num_codes} values: set num_vq_embeddings={built.num_codes}"
            )
        return built

    @property
    def z_channels(self) -> int:
        """Channels d of z."""
        return self.quantize.dim

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> VQEncoderOutput | tuple[torch.Tensor]:
        """x (B, in_channels, H, W) in [-1, 1] → raw latents (B, d, H/f, W/f), not quantised.

        With `return_dict=False` returns `(latents,)`. Raises `InputError` for a wrong shape.
        """
        latents = self._encode(x)
        return VQEncoderOutput(latents) if return_dict else (latents,)

    def decode(  # type: ignore[override]  # the arguments, and their order, are Diffusers'
        self,
        h: torch.Tensor,
        force_not_quantize: bool = False,
        return_dict: bool = True,
        shape: Sequence[int] | None = None,
    ) -> VQDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Raw latents h (B, d, h, w) → quantised → x̂ (B, out_channels, f·h, f·w).

        Args:
            h: raw latents; or tokens, with `force_not_quantize` in a model with `lookup_from_codebook`: (B, h, w), or
                any shape together with `shape`; for quantizers of q > 1 tokens a position (B, h, w, q).
            force_not_quantize: decode h as it is.
            return_dict: False returns `(sample, commit_loss)`.
            shape: (B, h, w, d) of the looked-up codes.

        Raises `InputError` for a wrong shape and for tokens that are none.
        """
        if force_not_quantize:
            values = self._codes(h, shape) if self.config.lookup_from_codebook else h
            self._check_latents(values)
            loss = torch.zeros(values.shape[0], device=values.device, dtype=values.dtype)
        else:
            self._check_latents(h)
            values, _, loss, _ = self.quantize(h)
        sample = self._decode(values)
        return VQDecoderOutput(sample, loss) if return_dict else (sample, loss)

    def _codes(self, indices: torch.Tensor, shape: Sequence[int] | None) -> torch.Tensor:
        each = () if self.quantize.tokens == 1 else (self.quantize.tokens,)
        if shape is not None:
            positions = (*shape[:-1], *each)
            if len(shape) != 4 or shape[-1] != self.z_channels or indices.numel() != torch.Size(positions).numel():
                raise InputError(
                    f"shape {tuple(shape)} does not fit {indices.numel()} tokens: expected (batch, height, width, "
                    f"{self.z_channels})"
                )
            indices = indices.reshape(positions)
        if indices.ndim != 3 + len(each) or indices.shape[3:] != each:
            expected = ", ".join(("batch", "height", "width", *map(str, each)))
            raise InputError(f"tokens have shape {tuple(indices.shape)}: expected ({expected})")
        return self.quantize.embed(indices).to(self.dtype)

    def forward(
        self, sample: torch.Tensor, return_dict: bool = True
    ) -> VQDecoderOutput | tuple[torch.Tensor, torch.Tensor]:
        """Reconstruct `sample` from its codes; `commit_loss` is what training adds to the reconstruction error."""
        return self.decode(self._encode(sample), return_dict=return_dict)

    # The shared face of all codecs

    def to_latents(self, x: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """x → its continuous latents, scaled; nothing is drawn, `generator` is accepted for all codecs alike."""
        return self.scale_latents(self._encode(x))

    def from_latents(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Scaled z (B, d, h, w) → quantised → x̂ (B, out_channels, f·h, f·w)."""
        self._check_latents(z)
        shift, scale = self._shift_and_scale(z)
        return self._decode(self.quantize(z / scale + shift).values)

    @property
    def num_codes(self) -> int:
        """K, the alphabet of a token."""
        return self.quantize.num_codes

    @property
    def tokens_per_position(self) -> int:
        """q, tokens at one position: 1, or the quantizer's levels or groups."""
        return self.quantize.tokens

    def token_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(C, H, W) of x → (h, w), or (h, w, q) for quantizers of q tokens; raises as `latent_shape`."""
        _, height, width = self.latent_shape(shape)
        return (height, width) if self.quantize.tokens == 1 else (height, width, self.quantize.tokens)

    def to_tokens(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, in_channels, H, W) in [-1, 1] → tokens (B, *token_shape) int64 in 0 … K − 1."""
        return self.quantize.assign(self._encode(x))

    def from_tokens(self, indices: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Tokens (B, *token_shape) → x̂ (B, out_channels, f·h, f·w); nothing is drawn, `generator` is for all codecs.

        Raises `InputError` for tokens that are none.
        """
        return self._decode(self._codes(indices, None))

    def bits(self, shape: Sequence[int]) -> float:
        """Bits of one picture (C, H, W): its tokens times log2 K."""
        return math.prod(self.token_shape(shape)) * math.log2(self.num_codes)

    def bits_per_element(self) -> float:
        """q·log2(K)/d: the q tokens of a position stand for its d elements of z."""
        return self.quantize.bits_per_position() / self.z_channels

    def set_scale(self, shift: float, scale: float) -> None:
        """Record a measured scale, z = z_raw·scale from now on. Raises `InputError` unless 0 < scale < ∞, shift 0."""
        if shift:
            raise InputError(f"VQModel scales its latents but does not shift them, got shift {shift}: measure with 0")
        super().set_scale(shift, scale)
