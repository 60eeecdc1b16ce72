"""StableDiffusionControlNetPipeline: text to image, steered by a picture (Zhang et al. 2023)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Unpack

import torch

from latentia.core.arguments import check_number
from latentia.errors import InputError
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.checks import check_flag
from latentia.pipelines.guidance import check_interval
from latentia.pipelines.image_input import PictureInput, load_pictures, rows_of
from latentia.pipelines.outputs import Images, StableDiffusionPipelineOutput
from latentia.pipelines.request import Request
from latentia.pipelines.text_request import Prompt, TextOptions, TextRequest
from latentia.pipelines.text_to_image import STABLE_DIFFUSION, StableDiffusion

_SHARED = ("in_channels", "block_out_channels", "cross_attention_dim", "layers_per_block", "down_block_types")


class StableDiffusionControlNetPipeline(StableDiffusion):
    """Text to image with a ControlNet: edges, depth, a pose, … say where things are.

    Args:
        controlnet: `ControlNetModel` made for this UNet.
        vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder,
            requires_safety_checker: as of `StableDiffusionPipeline`.
    """

    roles: ClassVar[Mapping[str, str]] = {**STABLE_DIFFUSION, "controlnet": "denoiser"}
    denoisers = ("unet", "controlnet")
    _callback_tensor_inputs = (*StableDiffusion._callback_tensor_inputs, "image")
    controlnet: Any

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        controlnet: Any,
        scheduler: Any,
        safety_checker: None = None,
        feature_extractor: None = None,
        image_encoder: None = None,
        requires_safety_checker: bool = False,
    ) -> None:
        parts = (vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, image_encoder)
        components = {**dict(zip(STABLE_DIFFUSION, parts, strict=True)), "controlnet": controlnet}
        self._hold(components, requires_safety_checker)

    def _check_component(self, name: str, value: Any) -> None:
        super()._check_component(name, value)
        parts = {**{n: vars(self).get(n) for n in self.roles}, name: value}
        control, unet = parts["controlnet"], parts["unet"]
        if control is None or unet is None or name not in ("controlnet", "unet"):
            return
        wrong = [
            f"{key} is {control.config[key]!r}, the unet's {unet.config[key]!r}"
            for key in _SHARED
            if key in control.config and control.config[key] != unet.config[key]
        ]
        if "conditioning_channels" not in control.config or wrong:
            why = "; ".join(wrong) or "it is no ControlNet"
            raise InputError(f"this {type(control).__name__} was not made for this unet: {why}")

    def __call__(
        self,
        prompt: Prompt | None = None,
        image: PictureInput | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        *,
        controlnet_conditioning_scale: float = 1.0,
        guess_mode: bool = False,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        **options: Unpack[TextOptions],
    ) -> StableDiffusionPipelineOutput | tuple[Images, None]:
        """Make pictures of texts, steered by a picture.

        Args:
            prompt: one text or a list.
            image: what the ControlNet looks at (edges, depth, …): one picture, or one per text.
            height, width: in pixels; default: the picture's own, down to a multiple of 8.
            num_inference_steps: steps of the scheduler.
            controlnet_conditioning_scale: factor of what the ControlNet adds.
            guess_mode: the ControlNet speaks to the conditional half alone, deep results louder than shallow ones.
            control_guidance_start, control_guidance_end: share of the steps in which it speaks.
            options: see `TextOptions`; `guidance_scale` is 7.5 by default.

        Raises what `StableDiffusionPipeline` raises, and `InputError` for a picture that does not fit.
        """
        start, end = check_interval((control_guidance_start, control_guidance_end), "control_guidance_start and _end")
        pictures = load_pictures(image, height, width, multiple=self.vae_scale_factor).unit()
        return self._generate(
            prompt,
            num_inference_steps,
            self.latent_shape(*pictures.shape[-2:]),
            options,
            pictures=pictures,
            control_scale=check_number("controlnet_conditioning_scale", controlnet_conditioning_scale),
            guess_mode=check_flag("guess_mode", guess_mode),
            active=(start, end),
        )

    def _completed(self, request: TextRequest) -> TextRequest:
        rows = rows_of("image", len(request.extra["pictures"]), request.batch // request.each, request.each)
        return replace(request, extra={**request.extra, "picture_rows": rows})

    def _begin(self, request: Request, rows: slice, scheduler: Any) -> PipelineCall:
        call = super()._begin(request, rows, scheduler)
        assert isinstance(request, TextRequest)
        count, (start, end) = call.num_timesteps, request.extra["active"]
        scale = request.extra["control_scale"]
        speaks = [not (i / count < start or (i + 1) / count > end) for i in range(count)]
        call.control_scales = [scale if spoken else 0.0 for spoken in speaks]
        call.guess_mode = request.extra["guess_mode"]
        return call

    def _conditions(self, request: Request, rows: slice) -> dict[str, torch.Tensor]:
        """The texts, and the pictures in [0, 1]."""
        assert isinstance(request, TextRequest)
        image = request.extra["pictures"][list(request.extra["picture_rows"][rows])]
        image = image.to(self.execution_device, self.controlnet.dtype)
        return {**super()._conditions(request, rows), "image": image}

    def _control(self, call: PipelineCall, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> dict[str, Any]:
        """What the ControlNet adds to the UNet's results."""
        scale, image = call.control_scales[call.step_index], call.tensors["image"]
        if not scale:
            return {}
        halves = len(x) // len(image)
        if call.guess_mode and halves == 2:
            x, text = x.chunk(2)[1], text.chunk(2)[1]
        elif halves == 2:
            image = call.joined("image", "image")
        down, mid = self.controlnet(
            x.to(image.dtype), t, text, image, conditioning_scale=scale, guess_mode=call.guess_mode, return_dict=False
        )
        down, mid = tuple(h.to(x.dtype) for h in down), mid.to(x.dtype)
        if call.guess_mode and halves == 2:
            down, mid = tuple(_behind_zeros(h) for h in down), _behind_zeros(mid)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


def _behind_zeros(h: torch.Tensor) -> torch.Tensor:
    """Nothing for the unconditional half, `h` for the other."""
    return torch.cat([torch.zeros_like(h), h])
