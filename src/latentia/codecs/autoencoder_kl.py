"""AutoencoderKL: the KL-regularised autoencoder of latent diffusion and Stable Diffusion."""

from dataclasses import dataclass

import torch

from latentia.codecs.posterior import DiagonalGaussianDistribution
from latentia.codecs.spatial_codec import DecoderOutput, SpatialCodec
from latentia.core.config import register_to_config
from latentia.core.outputs import Output
from latentia.core.rng import Generators


@dataclass(slots=True)
class AutoencoderKLOutput(Output):
    """`latent_dist`: the posterior q(z|x)."""

    latent_dist: DiagonalGaussianDistribution


class AutoencoderKL(SpatialCodec):
    """x → q(z|x) = N(μ, diag σ²) → x̂ (Kingma and Welling 2014; Rombach et al. 2022).

    Arguments, state-dict keys and outputs are those of Diffusers' class of the same name.

    Args:
        in_channels, out_channels: of x and of its reconstruction.
        down_block_types, up_block_types: one name a stage: `DownEncoderBlock2D` or `AttnDownEncoderBlock2D`,
            `UpDecoderBlock2D` or `AttnUpDecoderBlock2D`.
        block_out_channels: width of each stage; every stage but the last halves the resolution,
            f = 2^(stages − 1).
        layers_per_block: residual blocks a stage of the encoder (the decoder has one more).
        act_fn: activation of the residual blocks.
        latent_channels: c of z (B, c, H/f, W/f).
        norm_num_groups: groups of the normalisations.
        sample_size: side of the training pictures, the default side of a tile.
        scaling_factor, shift_factor: z = (z_raw − shift)·scale; see `set_scale`.
        latents_mean, latents_std: the same for each channel: z = (z_raw − mean)·scaling_factor/std.
        force_upcast: recorded for pipelines: decode in float32 even when the weights are half precision.
        use_quant_conv, use_post_quant_conv: 1×1 convolutions around the latent space.
        mid_block_add_attention: attention at the lowest resolution.

    Raises `UnknownChoiceError` for an unknown name, `ConfigError` for lengths and widths that do not fit,
    `InputError` for a scale or standard deviation that is not positive.
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
        scaling_factor: float = 0.18215,
        shift_factor: float | None = None,
        latents_mean: tuple[float, ...] | None = None,
        latents_std: tuple[float, ...] | None = None,
        force_upcast: bool = True,
        use_quant_conv: bool = True,
        use_post_quant_conv: bool = True,
        mid_block_add_attention: bool = True,
    ) -> None:
        super().__init__()
        self._build(moments=2)

    def encode(
        self, x: torch.Tensor, return_dict: bool = True
    ) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """x (B, in_channels, H, W) in [-1, 1] → posterior over raw latents (B, latent_channels, H/f, W/f).

        With `return_dict=False` returns `(posterior,)`. Raises `InputError` for a wrong shape.
        """
        posterior = DiagonalGaussianDistribution(self._encode(x))
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators = None,
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Reconstruct: decode the posterior's mean, or a sample of it drawn with `generator`."""
        posterior = DiagonalGaussianDistribution(self._encode(sample))
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode(), return_dict)

    def to_latents(self, x: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """x → a posterior sample, shifted and scaled to about unit variance."""
        return self.scale_latents(DiagonalGaussianDistribution(self._encode(x)).sample(generator))
