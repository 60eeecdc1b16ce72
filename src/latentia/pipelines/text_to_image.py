"""StableDiffusionPipeline: pictures from texts by latent diffusion (Rombach et al. 2022)."""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

from latentia.core.config import FrozenConfig
from latentia.errors import InputError
from latentia.pipelines.lora import LoraMixin
from latentia.pipelines.outputs import Images, StableDiffusionPipelineOutput
from latentia.pipelines.sampling import family_of
from latentia.pipelines.text_pipeline import TextPipeline
from latentia.pipelines.text_request import Prompt, TextOptions

STABLE_DIFFUSION: Mapping[str, str] = {
    "vae": "codec",
    "text_encoder": "text_encoder",
    "tokenizer": "tokenizer",
    "unet": "denoiser",
    "scheduler": "scheduler",
    "safety_checker": "unused",
    "feature_extractor": "unused",
    "image_encoder": "unused",
}
"""The components of Stable Diffusion's folders."""


class StableDiffusion(LoraMixin, TextPipeline):
    """Abstract: the components that all pipelines of Stable Diffusion share.

    Args:
        vae: the codec, `AutoencoderKL`.
        text_encoder: `CLIPTextModel`, or any text encoder of transformers.
        tokenizer: the tokenizer that belongs to it.
        unet: `UNet2DConditionModel` on scaled latents.
        scheduler: any scheduler.
        safety_checker, feature_extractor, image_encoder: None; Diffusers' folders have them, Latentia runs none.
        requires_safety_checker: recorded for Diffusers.
    """

    roles: ClassVar[Mapping[str, str]] = STABLE_DIFFUSION
    value_names = ("requires_safety_checker",)

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        safety_checker: None = None,
        feature_extractor: None = None,
        image_encoder: None = None,
        requires_safety_checker: bool = False,
    ) -> None:
        parts = (vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder)
        self._hold(dict(zip(STABLE_DIFFUSION, parts, strict=True)), requires_safety_checker)

    def _check_component(self, name: str, value: Any) -> None:
        super()._check_component(name, value)
        if name == "scheduler" and family_of(value) != "diffusion":
            raise InputError(
                f"Stable Diffusion is trained by diffusion, and {type(value).__name__} samples flow matching: "
                "take any other scheduler"
            )

    def _hold(self, components: Mapping[str, Any], requires_safety_checker: bool) -> None:
        components = {**components, "scheduler": _of_today(components["scheduler"])}
        TextPipeline.__init__(self, components, {"requires_safety_checker": requires_safety_checker})


class StableDiffusionPipeline(StableDiffusion):
    """Text to image with Stable Diffusion 1.x and 2.x, and whatever has its parts."""

    def __call__(
        self,
        prompt: Prompt | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        **options: Unpack[TextOptions],
    ) -> StableDiffusionPipelineOutput | tuple[Images, None]:
        """Make pictures of texts.

        Args:
            prompt: one text or a list; of any length: beyond the encoder's 77 tokens it is encoded in windows.
            height, width: in pixels, divisible by the codec's factor (8); default: what the network was trained on.
            num_inference_steps: steps of the scheduler, 1 to its `num_train_timesteps`.
            options: see `TextOptions`; `guidance_scale` is 7.5 by default.

        Raises:
            InputError: an argument does not fit; before any work.
            Cancelled: interrupted by the callback or the cancel token; nothing was decoded.
            NonFiniteError: a NaN or infinity, with the step and module in which it appeared.
        """
        return self._generate(prompt, num_inference_steps, self.latent_shape(height, width), options)


def _of_today(scheduler: Any) -> Any:
    """A scheduler from a config of 2022, which does not say what was meant: no clipping, and an offset of 1.

    What a config says stays as it is.
    """
    config = getattr(scheduler, "config", None)
    if not isinstance(config, FrozenConfig):
        return scheduler
    meant = {"clip_sample": False, "steps_offset": 1}
    silent = {name: value for name, value in meant.items() if name in config.defaulted and config[name] != value}
    return type(scheduler).from_config(config, **silent) if silent else scheduler
