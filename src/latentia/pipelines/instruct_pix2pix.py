"""StableDiffusionInstructPix2PixPipeline: edit a picture by an instruction (Brooks et al. 2023)."""

from dataclasses import replace
from typing import Any, Unpack

import torch

from latentia.core.arguments import check_number
from latentia.errors import InputError
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.image_input import PictureInput, load_pictures, rows_of
from latentia.pipelines.outputs import Images, StableDiffusionPipelineOutput
from latentia.pipelines.precision import run_safely
from latentia.pipelines.request import Request
from latentia.pipelines.text_request import Prompt, TextOptions, TextRequest
from latentia.pipelines.text_to_image import StableDiffusion


class StableDiffusionInstructPix2PixPipeline(StableDiffusion):
    """A network that sees the picture's latents beside the noisy ones, guided by two scales:

        ε̃ = ε(∅, ∅) + s_I (ε(I, ∅) − ε(∅, ∅)) + s_T (ε(I, T) − ε(I, ∅))           Brooks et al. 2023, eq. 3

    s_T is `guidance_scale`, s_I `image_guidance_scale`. With s_T ≤ 1 or s_I < 1 it is ε(I, T) alone.
    """

    extra_channels = (4,)
    _callback_tensor_inputs = (*StableDiffusion._callback_tensor_inputs, "image_latents")

    def __call__(
        self,
        prompt: Prompt | None = None,
        image: PictureInput | None = None,
        num_inference_steps: int = 100,
        *,
        image_guidance_scale: float = 1.5,
        **options: Unpack[TextOptions],
    ) -> StableDiffusionPipelineOutput | tuple[Images, None]:
        """Edit pictures.

        Args:
            prompt: the instruction: one text or a list.
            image: one picture, or one per instruction: PIL, numpy, torch in [0, 1], or latents, not scaled (the
                posterior's mean).
            num_inference_steps: steps of the scheduler.
            image_guidance_scale: s_I ≥ 0: how closely to keep to the picture; a callback may assign it.
            options: see `TextOptions`; `guidance_scale` is 7.5 by default, `guidance_rescale` is not for two scales.

        Raises what `StableDiffusionPipeline` raises, and `InputError` for a picture that does not fit.
        """
        scale = check_number("image_guidance_scale", image_guidance_scale, 0.0, advice="1.5")
        if options.get("guidance_rescale"):
            raise InputError("guidance_rescale is defined for one guidance, here are two: leave it out")
        latent = self.codec.config.latent_channels
        given = load_pictures(image, multiple=self.vae_scale_factor, latent_channels=latent)
        pictures = given.centred()
        sides = [side * (self.vae_scale_factor if given.latent else 1) for side in pictures.shape[-2:]]
        return self._generate(
            prompt,
            num_inference_steps,
            self.latent_shape(*sides),
            options,
            pictures=pictures,
            encoded=given.latent,
            image_guidance_scale=scale,
        )

    def _completed(self, request: TextRequest) -> TextRequest:
        rows = rows_of("image", len(request.extra["pictures"]), request.batch // request.each, request.each)
        return replace(request, extra={**request.extra, "picture_rows": rows})

    def _begin(self, request: Request, rows: slice, scheduler: Any) -> PipelineCall:
        call = super()._begin(request, rows, scheduler)
        assert isinstance(request, TextRequest)
        call.image_guidance_scale = request.extra["image_guidance_scale"]
        return call

    def _conditions(self, request: Request, rows: slice) -> dict[str, torch.Tensor]:
        """The texts, and the pictures' latents: the posterior's mean, not scaled (as the network was trained)."""
        assert isinstance(request, TextRequest)
        tensors = super()._conditions(request, rows)
        numbers = request.extra["picture_rows"][rows]
        latents = {i: request.extra["pictures"][i : i + 1] for i in sorted(set(numbers))}
        if not request.extra["encoded"]:
            with self._using(self.codec_name):  # each by itself: the same to the last bit in any batch
                latents = {i: run_safely(self.codec, _mean, x, name=self.codec_name) for i, x in latents.items()}
        stacked = torch.cat([latents[i] for i in numbers]).to(self.execution_device)
        return {**tensors, "image_latents": stacked, "no_image": torch.zeros_like(stacked)}

    def _denoise(self, call: PipelineCall, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The prediction under both guidances."""
        scale, image_scale = call.current_scale, call.image_guidance_scale
        if scale <= 1 or image_scale < 1:
            return self._predict(call, z, t, ("prompt_embeds",))
        texts = ("prompt_embeds", "negative_prompt_embeds", "negative_prompt_embeds")
        both, pictured, without = self._predict(call, torch.cat([z, z, z]), t, texts).chunk(3)
        return without + scale * (both - pictured) + image_scale * (pictured - without)

    def _network_input(self, call: PipelineCall, z: torch.Tensor, copies: int) -> torch.Tensor:
        pictured = ("image_latents",) if copies == 1 else ("image_latents", "image_latents", "no_image")
        return torch.cat([z, call.joined(*pictured).to(z.dtype)], dim=1)


def _mean(vae: Any, x: torch.Tensor, _: object) -> torch.Tensor:
    """The posterior's mean."""
    mean: torch.Tensor = vae.encode(x).latent_dist.mode()
    return mean
