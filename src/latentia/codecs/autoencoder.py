"""Autoencoder: the plain one, without a posterior and without any constraint on its latents."""

from dataclasses import dataclass

import torch

from latentia.codecs.spatial_codec import DecoderOutput, SpatialCodec
from latentia.core.config import register_to_config
from latentia.core.outputs import Output
from latentia.core.rng import Generators


@dataclass(slots=True)
class AutoencoderOutput(Output):
    """`latent` (B, latent_channels, H/f, W/f): the raw latents."""

    latent: torch.Tensor


class Autoencoder(SpatialCodec):
    """x → z → x̂, min ‖x − D(E(x))‖: nothing shapes z, so decoding N(0, I) gives no picture.

    The same encoder and decoder as `AutoencoderKL`, with the same arguments (see there), but the encoder's output is
    the latent itself, and the latents are not scaled unless `set_scale` is told to.
    """

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
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int | tuple[int, int] = 32,
        scaling_factor: float = 1.0,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        self._build(moments=1)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderOutput | tuple[torch.Tensor]:
        """x (B, in_channels, H, W) in [-1, 1] → raw latents (B, latent_channels, H/f, W/f).

        With `return_dict=False` returns `(latent,)`. Raises `InputError` for a wrong shape.
        """
        latent = self._encode(x)
        return AutoencoderOutput(latent) if return_dict else (latent,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Reconstruct: decode the latents of `sample`."""
        return self.decode(self._encode(sample), return_dict)

    def to_latents(self, x: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """x → its latents, shifted and scaled; nothing is drawn, `generator` is accepted for all codecs alike."""
        return self.scale_latents(self._encode(x))
