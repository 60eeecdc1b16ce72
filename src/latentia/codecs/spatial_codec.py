"""What the convolutional codecs share: two halves, slicing, tiling, and the scale of the latents."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from latentia.codecs.encoder_decoder import Decoder, Encoder
from latentia.codecs.tiling import map_tiles
from latentia.core.arguments import check_counts, check_number
from latentia.core.model import ModelMixin
from latentia.core.outputs import Output
from latentia.core.rng import Generators
from latentia.errors import ConfigError, InputError
from latentia.nn.attention import rename_legacy_attention
from latentia.nn.checkpointing import GradientCheckpointing
from latentia.nn.resnet import ResnetStyle


@dataclass(slots=True)
class DecoderOutput(Output):
    """`sample` (B, out_channels, H, W): the reconstruction, in about [-1, 1]."""

    sample: torch.Tensor


class SpatialCodec(GradientCheckpointing, ModelMixin):
    """Abstract base of the convolutional codecs: x (B, C, H, W) ↔ a latent map (B, c, H/f, W/f).

    Two latent spaces: the *raw* one of `encode`/`decode`, and the *scaled* one of `to_latents`/`from_latents`
    that priors learn, z = (z_raw − shift)·scale of about unit variance (Rombach et al. 2022).
    """

    _repeated_blocks = ("ResnetBlock",)

    def _build(self, moments: int) -> None:
        """Make the two halves from the recorded config; `moments` latent maps leave the encoder (1, or mean and
        logvar 2)."""
        c = self.config
        self._check_config()
        latent = moments * c.latent_channels
        self.encoder, self.decoder = self._halves(latent)
        self.quant_conv = nn.Conv2d(latent, latent, 1) if c.use_quant_conv else None
        self.post_quant_conv = nn.Conv2d(c.latent_channels, c.latent_channels, 1) if c.use_post_quant_conv else None
        self._set_switches()

    def _halves(self, encoded: int) -> tuple[Encoder, Decoder]:
        """Encoder (`encoded` channels leave it) and decoder of the recorded config."""
        c = self.config
        style = ResnetStyle(groups=c.norm_num_groups, act=c.act_fn, eps=1e-6)
        shape = (c.block_out_channels, c.layers_per_block, style, c.mid_block_add_attention)
        pixels = self.patch**2
        encoder = Encoder(c.in_channels * pixels, encoded, c.down_block_types, *shape)
        return encoder, Decoder(c.latent_channels, c.out_channels * pixels, c.up_block_types, *shape)

    @property
    def patch(self) -> int:
        """Side of the squares of pixels that the networks see as channels of one position; 1 in most classes."""
        return self.config.get("patch_size") or 1

    def _set_switches(self) -> None:
        c = self.config
        self.factor: int = self.patch * 2 ** (len(c.block_out_channels) - 1)
        self.use_slicing = False
        self.use_tiling = False
        size = c.sample_size if isinstance(c.sample_size, int) else max(c.sample_size)
        self.tile_latent_min_size: int = max(1, size // self.factor)
        self.tile_overlap_factor: float = 0.25

    def _check_config(self) -> None:
        c = self.config
        sizes = ("block_out_channels", "layers_per_block", "norm_num_groups", "sample_size")
        check_counts(c, ("in_channels", "out_channels", "latent_channels", *sizes))
        check_number("scaling_factor", c.scaling_factor, low=0, open_low=True)
        if "shift_factor" not in c:
            return  # this class knows a scale alone
        check_number("shift_factor", c.shift_factor or 0.0)
        if (c.latents_mean is None) != (c.latents_std is None):
            raise ConfigError("latents_mean and latents_std belong together: give both or neither")
        for name in ("latents_mean", "latents_std"):
            if c[name] is not None and len(c[name]) != c.latent_channels:
                raise ConfigError(f"{name} has {len(c[name])} values for latent_channels={c.latent_channels}")
        for std in c.latents_std or ():
            check_number("each of latents_std", std, low=0, open_low=True)

    # Memory switches

    def enable_slicing(self) -> None:
        """Encode and decode one sample at a time."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Encode and decode whole batches."""
        self.use_slicing = False

    def enable_tiling(self, tile_size: int | None = None, overlap: float | None = None) -> None:
        """Cut larger pictures into overlapping tiles, blended where they overlap.

        Args:
            tile_size: side of a tile in pixels, a multiple of the down-sampling factor; None: as before
                (at first the config's `sample_size`).
            overlap: share of a tile that neighbours share, in [0, 1); None: as before (at first 0.25).

        The result is not that of one pass: normalisation and attention see one tile at a time. On smooth pictures of
        up to 4 default tiles a side the RMS difference stays below 0.15 standard deviations of the decoded picture and
        0.1 of the encoded latents (measured on a small trained autoencoder; smaller than Diffusers' on the same
        weights).
        """
        if tile_size is not None:
            if not isinstance(tile_size, int) or tile_size < self.factor or tile_size % self.factor:
                raise InputError(f"tile_size {tile_size} must be a positive multiple of {self.factor}")
            self.tile_latent_min_size = tile_size // self.factor
        if overlap is not None:
            if check_number("overlap", overlap, 0, 1) == 1:
                raise InputError(f"overlap {overlap} must be in [0, 1)")
            self.tile_overlap_factor = overlap
        self.use_tiling = True

    def disable_tiling(self) -> None:
        """Encode and decode pictures in one piece."""
        self.use_tiling = False

    @property
    def tile_sample_min_size(self) -> int:
        """Side of a tile in pixels."""
        return self.tile_latent_min_size * self.factor

    def _run(
        self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, scale: Fraction, grain: int
    ) -> torch.Tensor:
        """function(x), by slices and tiles when these are enabled; a tile measures tile_latent_min_size·grain."""
        if self.use_slicing and x.shape[0] > 1:
            return torch.cat([self._run(function, row, scale, grain) for row in x.split(1)])
        tile = self.tile_latent_min_size
        if self.use_tiling and max(x.shape[-2:]) > tile * grain:
            overlap = int(tile * self.tile_overlap_factor)
            return map_tiles(function, x, tile * grain, overlap * grain, scale, grain)
        return function(x)

    # Raw latents

    def _encode(self, x: torch.Tensor) -> torch.Tensor:
        """x → what leaves the encoder (and `quant_conv`); raises `InputError` for a wrong shape."""
        shape, channels, factor = x.shape, self.encoder.conv_in.in_channels // self.patch**2, self.factor
        if len(shape) != 4 or shape[1] != channels or shape[2] % factor or shape[3] % factor:
            raise InputError(
                f"x has shape {tuple(shape)}: expected (batch, {channels}, height, width) "
                f"with height and width divisible by {factor}; crop or resize it"
            )
        return self._run(self._encode_tile, x, Fraction(1, factor), factor)

    def _encode_tile(self, x: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.encoder(F.pixel_unshuffle(x, self.patch) if self.patch > 1 else x)
        return h if self.quant_conv is None else self.quant_conv(h)

    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: Generators = None
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Raw latents z (B, latent_channels, h, w) → x̂ (B, out_channels, f·h, f·w).

        `generator` is accepted for all codecs alike; this decoder draws nothing.
        With `return_dict=False` returns `(sample,)`. Raises `InputError` for a wrong shape.
        """
        self._check_latents(z)
        sample = self._decode(z)
        return DecoderOutput(sample) if return_dict else (sample,)

    @property
    def z_channels(self) -> int:
        """Channels c of z."""
        return self.decoder.conv_in.in_channels

    def _check_latents(self, z: torch.Tensor) -> None:
        channels = self.z_channels
        if z.ndim != 4 or z.shape[1] != channels:
            raise InputError(f"z has shape {tuple(z.shape)}: expected (batch, {channels}, height, width)")

    def _decode(self, z: torch.Tensor) -> torch.Tensor:
        return self._run(self._decode_tile, z, Fraction(self.factor), 1)

    def _decode_tile(self, z: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))
        return F.pixel_shuffle(h, self.patch) if self.patch > 1 else h

    # Scaled latents: the shared face of all codecs

    @abstractmethod
    def to_latents(self, x: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """x (B, in_channels, H, W) → scaled z (B, latent_channels, H/f, W/f)."""

    def from_latents(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """Scaled z (B, latent_channels, h, w) → x̂ (B, out_channels, f·h, f·w)."""
        self._check_latents(z)
        shift, scale = self._shift_and_scale(z)
        return self._decode(z / scale + shift)

    def scale_latents(self, z_raw: torch.Tensor) -> torch.Tensor:
        """Raw → scaled latents: (z_raw − shift)·scale."""
        shift, scale = self._shift_and_scale(z_raw)
        return (z_raw - shift) * scale

    def _shift_and_scale(self, z: torch.Tensor) -> tuple[Any, Any]:
        """Numbers, or (c, 1, 1) tensors when the config has statistics of each channel."""
        c = self.config
        if c.get("latents_mean") is None:
            return c.get("shift_factor") or 0.0, c.scaling_factor
        mean, std = (z.new_tensor(values).view(-1, 1, 1) for values in (c.latents_mean, c.latents_std))
        return mean, c.scaling_factor / std

    def set_scale(self, shift: float, scale: float) -> None:
        """Record measured statistics: z = (z_raw − shift)·scale from now on, and after saving and loading.

        Per-channel statistics of the config, if any, are dropped. Raises `InputError` unless 0 < scale < ∞.
        """
        check_number("shift", shift)
        check_number("scale", scale, low=0, open_low=True)
        new = {
            "shift_factor": float(shift) or None,
            "scaling_factor": float(scale),
            "latents_mean": None,
            "latents_std": None,
        }
        self.record(**{name: value for name, value in new.items() if name in self.config})

    def latent_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """(C, H, W) of x → (c, H/f, W/f) of z; raises `InputError` for channels and sizes that do not fit."""
        channels, factor = self.encoder.conv_in.in_channels // self.patch**2, self.factor
        if len(shape) != 3 or shape[0] != channels or shape[1] % factor or shape[2] % factor:
            raise InputError(
                f"shape {tuple(shape)} does not fit: expected ({channels}, height, width) "
                f"with height and width divisible by {factor}"
            )
        return (self.z_channels, shape[1] // factor, shape[2] // factor)

    def bits_per_element(self) -> float:
        """16: a latent is worth storing in half precision."""
        return 16.0

    @classmethod
    def convert_legacy_keys(cls, state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights saved in 2022 with today's names of the attention projections."""
        return rename_legacy_attention(state_dict)
