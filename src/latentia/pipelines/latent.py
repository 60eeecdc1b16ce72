"""Pictures sampled in a codec's latent space: LatentDiffusionPipeline and LDMPipeline."""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from latentia.core.rng import Generators
from latentia.pipelines.checks import eta_option
from latentia.pipelines.codec import CodecMixin
from latentia.pipelines.image_pipeline import ImagePipeline
from latentia.pipelines.outputs import ImagePipelineOutput, Images
from latentia.pipelines.request import SamplingOptions


class LatentPipeline(CodecMixin, ImagePipeline):
    """Abstract: the network denoises latents, a codec turns them into pictures."""

    def __call__(
        self,
        batch_size: int | None = None,
        generator: Generators = None,
        eta: float = 0.0,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
        **options: Unpack[SamplingOptions],
    ) -> ImagePipelineOutput | tuple[Images]:
        """Sample latents and decode them.

        Args:
            batch_size: how many; None: as many as there are labels, generators or latents, else 1.
            generator: source of all noise: one for the batch, or a list with one per picture.
            eta: η in [0, 1] of DDIM: 0 deterministic, 1 as noisy as DDPM. Needs a scheduler that takes it.
            num_inference_steps: steps of the scheduler, 1 to its `num_train_timesteps`.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` (z, undecoded).
            return_dict: False returns `(images,)`.
            options: see `SamplingOptions`.

        Raises:
            InputError: an argument does not fit; before any work.
            Cancelled: interrupted by the callback or the cancel token; nothing was decoded.
            NonFiniteError: a NaN or infinity, with the step at which it appeared.
        """
        step = {"eta": eta_option(eta)}
        return self._generate(batch_size, generator, num_inference_steps, output_type, return_dict, step, options)


class LatentDiffusionPipeline(LatentPipeline):
    """Latent diffusion (Rombach et al. 2022), with classes where the network has them.

    Args:
        vae: the codec (`AutoencoderKL`, `Autoencoder`, …).
        unet: the network on scaled latents.
        scheduler: any scheduler.
        id2label: class index → name, so that `class_labels` may be names.
    """

    roles: ClassVar[Mapping[str, str]] = {"vae": "codec", "unet": "denoiser", "scheduler": "scheduler"}

    def __init__(self, vae: Any, unet: Any, scheduler: Any, id2label: Mapping[int | str, str] | None = None) -> None:
        super().__init__({"vae": vae, "unet": unet, "scheduler": scheduler}, id2label)


class LDMPipeline(LatentPipeline):
    """Latent diffusion in the folder that Diffusers' class of the same name reads and writes (codec: `vqvae`)."""

    roles: ClassVar[Mapping[str, str]] = {"vqvae": "codec", "unet": "denoiser", "scheduler": "scheduler"}
    codec_name = "vqvae"

    def __init__(self, vqvae: Any, unet: Any, scheduler: Any, id2label: Mapping[int | str, str] | None = None) -> None:
        super().__init__({"vqvae": vqvae, "unet": unet, "scheduler": scheduler}, id2label)
