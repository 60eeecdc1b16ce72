"""LDMTextToImagePipeline: latent diffusion's own text to image (Rombach et al. 2022)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from latentia.pipelines.lora import LoraMixin
from latentia.pipelines.outputs import Images, StableDiffusionPipelineOutput
from latentia.pipelines.text_pipeline import TextPipeline
from latentia.pipelines.text_request import Prompt, TextOptions


class LDMTextToImagePipeline(LoraMixin, TextPipeline):
    """Text to image with a transformer over word pieces in CLIP's place; the folder is Diffusers' of the same name.

    Args:
        vqvae: the codec (`VQModel`, `AutoencoderKL`, …).
        bert: `LDMBertModel`, or any text encoder of transformers.
        tokenizer: the tokenizer that belongs to it.
        unet: `UNet2DConditionModel` on scaled latents.
        scheduler: any scheduler.
    """

    roles: ClassVar[Mapping[str, str]] = {
        "vqvae": "codec",
        "bert": "text_encoder",
        "tokenizer": "tokenizer",
        "unet": "denoiser",
        "scheduler": "scheduler",
    }
    lora_components: ClassVar[Mapping[str, str]] = {"unet": "unet", "text_encoder": "bert"}
    codec_name = "vqvae"
    text_name = "bert"

    def __init__(self, vqvae: Any, bert: Any, tokenizer: Any, unet: Any, scheduler: Any) -> None:
        parts = (vqvae, bert, tokenizer, unet, scheduler)
        super().__init__(dict(zip(self.roles, parts, strict=True)))

    def __call__(
        self,
        prompt: Prompt | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        **options: Unpack[TextOptions],
    ) -> StableDiffusionPipelineOutput | tuple[Images, None]:
        """Make pictures of texts; arguments as of `StableDiffusionPipeline`, with `guidance_scale` 1 by default."""
        return self._generate(
            prompt, num_inference_steps, self.latent_shape(height, width), options, guidance_scale=1.0
        )
