"""Image to image with Stable Diffusion: noise a given picture part of the way, and denoise it under a text."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch

from latentia.core.arguments import check_count, check_number
from latentia.core.rng import Generators
from latentia.errors import InputError
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.image_input import PictureInput, Pictures, load_pictures, rows_of
from latentia.pipelines.outputs import Images, StableDiffusionPipelineOutput
from latentia.pipelines.request import Request
from latentia.pipelines.text_request import Prompt, TextOptions, TextRequest
from latentia.pipelines.text_to_image import StableDiffusion


def visited_steps(steps: int, strength: float) -> int:
    """How many of `steps` a picture noised with `strength` goes through: ⌊steps·strength⌋, as in Diffusers.

    Raises `InputError` for a strength outside [0, 1], and for one that comes to no step.
    """
    steps = check_count("num_inference_steps", steps)
    strength = check_number("strength", strength, 0.0, 1.0, "0.3 (a little) to 0.8 (much)")
    visited = int(steps * strength)
    if visited == 0:
        enough = math.ceil(1000 / steps) / 1000
        more = math.ceil(1 / strength) if strength else 0
        more += int(more * strength) < 1  # 1/strength in floating point
        advice = f", or num_inference_steps of at least {more}" if strength else ""
        raise InputError(
            f"strength {strength:g} of {steps} steps is no step at all: use a strength of at least {enough:g}{advice}"
        )
    return visited


class ImageToImage(StableDiffusion):
    """Abstract: sampling begins in the middle of the schedule, at a noised picture (SDEdit, Meng et al. 2022)."""

    def _first_step(self, request: Request, scheduler: Any) -> int:
        assert isinstance(request, TextRequest)
        return (request.steps - visited_steps(request.steps, request.extra["strength"])) * int(scheduler.order)

    def _load(self, image: PictureInput | None, height: int | None, width: int | None) -> Pictures:
        """Pictures in a size that the codec takes, or latents."""
        factor = self.vae_scale_factor
        channels, _, _ = self.latent_shape(factor, factor)
        pictures = load_pictures(image, height, width, multiple=factor, latent_channels=channels)
        own = self._size(pictures)
        asked = (height or own[0], width or own[1])
        if asked != own:
            raise InputError(
                f"image holds latents of pictures of {own[0]} × {own[1]}, which cannot be brought to "
                f"{asked[0]} × {asked[1]}: leave height and width out, or pass the pictures"
            )
        return pictures

    def _size(self, pictures: Pictures) -> tuple[int, int]:
        """(height, width) in pixels."""
        factor = self.vae_scale_factor if pictures.latent else 1
        return pictures.values.shape[2] * factor, pictures.values.shape[3] * factor

    def _latents_of(self, pictures: Pictures, rows: Sequence[int], generator: Generators) -> torch.Tensor:
        """Scaled latents of the pictures numbered `rows`, sampled from their posteriors."""
        if pictures.latent:
            return self._as_latents(pictures.values[list(rows)])
        some = sorted(set(rows))
        return self._encoded(pictures.centred()[some], [some.index(row) for row in rows], generator)

    def _encoded(self, x: torch.Tensor, rows: Sequence[int], generator: Generators) -> torch.Tensor:
        """Latents of pictures x in [-1, 1], in the order `rows`.

        One generator draws once for each picture, as in Diffusers; a list draws for each row from its own.
        """
        if isinstance(generator, list | tuple):
            # One at a time: the same to the last bit in any batch.
            drawn = [self.encode(x[row : row + 1], [own]) for row, own in zip(rows, generator, strict=True)]
            return self._as_latents(torch.cat(drawn))
        return self._as_latents(self.encode(x, generator))[list(rows)]

    def _as_latents(self, z: torch.Tensor) -> torch.Tensor:
        return z.to(self.execution_device, torch.promote_types(self.unet.dtype, torch.float32))


class StableDiffusionImg2ImgPipeline(ImageToImage):
    """Image to image with Stable Diffusion 1.x and 2.x, and whatever has its parts.

    As Diffusers, but pictures follow their texts when `num_images_per_prompt` is above 1 (there they go in turn), and
    PNDM starts in mid-schedule as it should (there its second evaluation is always taken for a repetition of the
    first, so that one of the steps is left out).
    """

    def __call__(
        self,
        prompt: Prompt | None = None,
        image: PictureInput | None = None,
        strength: float = 0.8,
        num_inference_steps: int = 50,
        *,
        height: int | None = None,
        width: int | None = None,
        **options: Unpack[TextOptions],
    ) -> StableDiffusionPipelineOutput | tuple[Images, None]:
        """Make pictures of texts, starting from pictures.

        The picture's latents are noised to the first timestep visited, x_t = α_t z + σ_t ε, and denoised from there;
        at strength 1, too, a trace of the picture is left, as far as the noisiest α is above 0.

        Args:
            prompt: one text or a list.
            image: PIL, numpy (H, W, C), torch (C, H, W) in [0, 1], a batch or a list; or latents, scaled. One for all,
                one per text, or one per picture made.
            strength: in [0, 1]: share of the steps that are taken; 0 keeps the picture, 1 all but ignores it.
            num_inference_steps: steps of the whole schedule, of which ⌊steps·strength⌋ are taken.
            height, width: in pixels, to bring the picture to; default: its own, down to a multiple of the codec's 8.
            options: see `TextOptions`; `guidance_scale` is 7.5 by default; `latents` is the noise ε.

        Raises what `StableDiffusionPipeline` raises, and `InputError` for pictures that do not fit and for a strength
        that comes to no step.
        """
        visited_steps(num_inference_steps, strength)
        pictures = self._load(image, height, width)
        shape = self.latent_shape(*self._size(pictures))
        return self._generate(prompt, num_inference_steps, shape, options, image=pictures, strength=strength)

    def _completed(self, request: TextRequest) -> TextRequest:
        rows = rows_of("image", len(request.extra["image"]), request.batch // request.each, request.each)
        return dataclasses.replace(request, extra={**request.extra, "image_rows": rows})

    def _start(self, request: Request, call: PipelineCall, rows: slice, generator: Generators) -> torch.Tensor:
        """The pictures' latents, noised to the first timestep."""
        assert isinstance(request, TextRequest)
        z = self._latents_of(request.extra["image"], request.extra["image_rows"][rows], generator)
        noise = self._noise(request, rows, generator)
        noisy: torch.Tensor = call.scheduler.add_noise(z, noise, call.timesteps[:1])
        return noisy
