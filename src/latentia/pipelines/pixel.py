"""Pictures sampled pixel by pixel: DDPMPipeline and DDIMPipeline."""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import torch

from latentia.core.rng import Generators
from latentia.pipelines.checks import eta_option
from latentia.pipelines.image_pipeline import ImagePipeline
from latentia.pipelines.outputs import ImagePipelineOutput, Images
from latentia.pipelines.request import SamplingOptions
from latentia.schedulers.ddim import DDIMScheduler


class PixelPipeline(ImagePipeline):
    """Abstract: the network denoises the picture itself."""

    roles: ClassVar[Mapping[str, str]] = {"unet": "denoiser", "scheduler": "scheduler"}

    def __init__(self, unet: Any, scheduler: Any, id2label: Mapping[int | str, str] | None = None) -> None:
        super().__init__({"unet": unet, "scheduler": scheduler}, id2label)

    def decode(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """The picture itself, in about [-1, 1]; nothing is to decode."""
        return z


class DDPMPipeline(PixelPipeline):
    """Pictures from noise by the reverse chain of Ho et al. 2020.

    Args:
        unet: the network (`UNet2DModel`), with or without classes.
        scheduler: any scheduler of the family; `DDPMScheduler` gives the paper's chain.
        id2label: class index → name, so that `class_labels` may be names.
    """

    def __call__(
        self,
        batch_size: int | None = None,
        generator: Generators = None,
        num_inference_steps: int = 1000,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> ImagePipelineOutput | tuple[Images]:
        """Sample pictures.

        Args:
            batch_size: how many; None: as many as there are labels, generators or latents, else 1.
            generator: source of all noise: one for the batch, or a list with one per picture.
            num_inference_steps: steps of the scheduler, 1 to its `num_train_timesteps`.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` (the raw samples).
            return_dict: False returns `(images,)`.
            options: see `SamplingOptions`.

        Raises:
            InputError: an argument does not fit; before any work.
            Cancelled: interrupted by the callback or the cancel token; nothing was decoded.
            NonFiniteError: a NaN or infinity, with the step at which it appeared.
        """
        return self._generate(batch_size, generator, num_inference_steps, output_type, return_dict, {}, options)


class DDIMPipeline(PixelPipeline):
    """Pictures from noise in few, by default deterministic, steps: Song et al. 2021.

    Built with another scheduler of the family, it takes that one's config into a `DDIMScheduler`, as Diffusers does;
    assign `pipe.scheduler` afterwards for any other sampler.
    """

    def __init__(self, unet: Any, scheduler: Any, id2label: Mapping[int | str, str] | None = None) -> None:
        super().__init__(unet, scheduler, id2label)
        if not isinstance(scheduler, DDIMScheduler) and "DDIMScheduler" in type(scheduler).compatible_names:
            self.scheduler = DDIMScheduler.from_config(scheduler.config)

    def __call__(
        self,
        batch_size: int | None = None,
        generator: Generators = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        use_clipped_model_output: bool | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> ImagePipelineOutput | tuple[Images]:
        """Sample pictures; arguments as of `DDPMPipeline`, and:

        Args:
            eta: η in [0, 1]: 0 deterministic, 1 as noisy as DDPM. Needs a scheduler that takes it.
            use_clipped_model_output: recompute ε from the clipped x̂₀ (Glide); None: the scheduler's default.
        """
        step = {"eta": eta_option(eta), "use_clipped_model_output": use_clipped_model_output}
        return self._generate(batch_size, generator, num_inference_steps, output_type, return_dict, step, options)
