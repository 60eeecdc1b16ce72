"""Inpainting with Stable Diffusion: repaint what a mask covers, keep the rest."""

import dataclasses
from dataclasses import dataclass
from typing import Unpack

import torch
from PIL import Image
from torch.nn import functional as F

from latentia.core.arguments import check_count, check_number
from latentia.core.rng import Generators, randn
from latentia.errors import InputError
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.checks import check_flag
from latentia.pipelines.image_input import (
    PictureInput,
    Pictures,
    Raw,
    cut,
    is_latent,
    read_masks,
    read_pictures,
    resized,
    rows_of,
    size_of,
)
from latentia.pipelines.image_to_image import ImageToImage, visited_steps
from latentia.pipelines.outputs import Images, StableDiffusionPipelineOutput
from latentia.pipelines.paste import PasteBack, crop_box, feathered, fitted
from latentia.pipelines.request import Request
from latentia.pipelines.text_pipeline import TextPipeline
from latentia.pipelines.text_request import Prompt, TextOptions, TextRequest


@dataclass(frozen=True, kw_only=True)
class Repaint:
    """Pictures and masks of a call, in its size, and which of them belongs to which row of the batch.

    Attributes:
        image: the pictures, or their latents.
        mask: (n, 1, H, W); 1 is repainted.
        latents: (n, c, h, w) of the pictures with holes, where given.
        paste: how the result is put back, if at all.
    """

    image: Pictures
    mask: torch.Tensor
    latents: torch.Tensor | None
    paste: PasteBack | None
    image_rows: tuple[int, ...] = ()
    mask_rows: tuple[int, ...] = ()
    latents_rows: tuple[int, ...] = ()

    def for_batch(self, prompts: int, each: int) -> "Repaint":
        """The same, with rows. Raises `InputError` for numbers of pictures that do not fit."""
        latents = () if self.latents is None else rows_of("masked_image_latents", len(self.latents), prompts, each)
        return dataclasses.replace(
            self,
            image_rows=rows_of("image", len(self.image), prompts, each),
            mask_rows=rows_of("mask_image", len(self.mask), prompts, each),
            latents_rows=latents,
        )


class StableDiffusionInpaintPipeline(ImageToImage):
    """Repaint the masked part of a picture, with either kind of Stable Diffusion.

    A UNet of 9 channels was trained for it: it sees [noisy latents 4, mask 1, latents of the picture with mid-grey
    holes 4]. Any other UNet of 4 channels: after each step what lies outside the mask is replaced by the given
    picture's latents, noised with one fixed noise to the next timestep; after the last step by the latents themselves:

        z ← m z + (1 − m) (α z₀ + σ ε)

    As Diffusers, with these differences: a mask of another size than the picture is refused; with a list of generators
    each picture draws from its own also where one image serves all; given `latents` are noised into the picture when
    strength is below 1; pictures follow their texts when `num_images_per_prompt` is above 1.
    """

    extra_channels = (0, 5)
    refines = True
    _callback_tensor_inputs = (*TextPipeline._callback_tensor_inputs, "mask", "masked_image_latents")

    def __call__(
        self,
        prompt: Prompt | None = None,
        image: PictureInput | None = None,
        mask_image: PictureInput | None = None,
        masked_image_latents: torch.Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        *,
        paste_back: bool = False,
        feather: float = 4.0,
        soft_mask: bool = False,
        **options: Unpack[TextOptions],
    ) -> StableDiffusionPipelineOutput | tuple[Images, None]:
        """Repaint parts of pictures under texts.

        Args:
            prompt: one text or a list.
            image: PIL, numpy (H, W, C), torch (C, H, W) in [0, 1], a batch or a list; or latents, scaled. One for all,
                one per text, or one per picture made.
            mask_image: in the size of `image`, grey; 1 (white) is repainted, 0 (black) kept; cut at a half.
            masked_image_latents: scaled latents of the picture with mid-grey holes, in place of encoding it.
            height, width: in pixels, to bring picture and mask to; default: what the network was trained on.
            padding_mask_crop: work on the part that the mask touches and so many pixels around it, at full size, and
                put it back into the picture, which keeps its size. One picture and one mask, both PIL.
            strength: in [0, 1]: share of the steps that are taken; 1 starts from pure noise.
            num_inference_steps: steps of the whole schedule, of which ⌊steps·strength⌋ are taken.
            paste_back: put the repainted part into the given pixels: these are kept bit for bit beyond 2⌈2·`feather`⌉
                pixels from the mask, and blended in between (see `paste.feathered`).
            feather: deviation in pixels of the Gaussian that blends.
            soft_mask: take the mask's greys as they are: how much is repainted. For 4 channels; the picture's holes
                are cut at a half all the same.
            options: see `TextOptions`; `guidance_scale` is 7.5 by default; `latents` is the noise ε.

        Raises what `StableDiffusionPipeline` raises, and `InputError` for pictures, masks and latents that do not fit
        and for a strength that comes to no step.
        """
        visited_steps(num_inference_steps, strength)
        shape = self.latent_shape(height, width)
        read = self._read(image, mask_image, shape)
        soft = check_flag("soft_mask", soft_mask)
        blur = check_number("feather", feather, 0.0) if check_flag("paste_back", paste_back) else None
        if padding_mask_crop is not None:
            repaint = self._cropped(*read, shape, check_count("padding_mask_crop", padding_mask_crop, 0), blur, soft)
        else:
            repaint = self._whole(*read, shape, blur, soft)
        if repaint.paste is not None and options.get("output_type") == "latent":
            raise InputError("latents cannot be pasted back: leave paste_back and padding_mask_crop out")
        repaint = dataclasses.replace(repaint, latents=self._masked_latents_given(masked_image_latents, shape))
        if not self._blends and repaint.image.latent and repaint.latents is None:
            raise InputError("image holds latents, which cannot be masked: pass masked_image_latents, too")
        return self._generate(prompt, num_inference_steps, shape, options, strength=strength, repaint=repaint)

    @property
    def _blends(self) -> bool:
        """Whether latents are blended, for a network that was not trained to see the mask."""
        factor = self.vae_scale_factor
        return bool(self.unet.config.in_channels == self.latent_shape(factor, factor)[0])

    # What is given -----------------------------------------------------------------------------------------

    def _read(
        self, image: PictureInput | None, mask: PictureInput | None, shape: tuple[int, int, int]
    ) -> tuple[Raw, Raw]:
        """Pictures and masks of one size, as they are."""
        pictures = read_pictures("image", image, latent_channels=shape[0])
        masks = read_masks("mask_image", mask)
        latent = is_latent(pictures, shape[0])
        factor = self.vae_scale_factor if latent else 1
        rows, columns = size_of("image", pictures)
        size, mask_size = (rows * factor, columns * factor), size_of("mask_image", masks)
        if size != mask_size:
            raise InputError(
                f"mask_image is {mask_size[0]} × {mask_size[1]} (height × width), image {size[0]} × {size[1]}: "
                "resize the mask (nearest keeps its edges)"
            )
        if latent and (rows, columns) != shape[1:]:
            made = shape[1] * factor, shape[2] * factor
            raise InputError(
                f"image holds latents of pictures of {size[0]} × {size[1]}, made are {made[0]} × {made[1]}: "
                f"pass height={size[0]}, width={size[1]}"
            )
        return pictures, masks

    def _whole(self, image: Raw, mask: Raw, shape: tuple[int, int, int], feather: float | None, soft: bool) -> Repaint:
        """All of the pictures is worked on, in the call's size."""
        latent = is_latent(image, shape[0])
        height, width = (side * self.vae_scale_factor for side in shape[1:])
        pictures = Pictures(resized(image, *(shape[1:] if latent else (height, width))), latent)
        masks = cut(resized(mask, height, width, grey=True), soft)
        if feather is None:
            return Repaint(image=pictures, mask=masks, latents=None, paste=None)
        if latent:
            raise InputError("image holds latents, there are no pixels to paste back: pass the pictures")
        paste = PasteBack(original=pictures, opacity=feathered(masks, feather))
        return Repaint(image=pictures, mask=masks, latents=None, paste=paste)

    def _cropped(
        self, image: Raw, mask: Raw, shape: tuple[int, int, int], padding: int, feather: float | None, soft: bool
    ) -> Repaint:
        """The part around the mask is worked on, in the call's size, and put back into the picture."""
        picture, cover = image[0], mask[0]
        pil = isinstance(picture, Image.Image) and isinstance(cover, Image.Image)
        if not pil or len(image) + len(mask) != 2:
            raise InputError("padding_mask_crop takes one image and one mask_image, both PIL pictures")
        assert isinstance(picture, Image.Image)
        assert isinstance(cover, Image.Image)
        height, width = (side * self.vae_scale_factor for side in shape[1:])
        box = crop_box(cover.convert("L"), height, width, padding)
        part, part_mask = (fitted(whole.crop(box), width, height) for whole in (picture, cover))
        grey = resized([cover], cover.height, cover.width, grey=True)
        opacity = grey if feather is None else feathered(cut(grey, soft), feather)
        original = Pictures(resized([picture], picture.height, picture.width))
        return Repaint(
            image=Pictures(resized([part], height, width)),
            mask=cut(resized([part_mask], height, width, grey=True), soft),
            latents=None,
            paste=PasteBack(original=original, opacity=opacity, box=box),
        )

    def _masked_latents_given(self, given: object, shape: tuple[int, int, int]) -> torch.Tensor | None:
        if given is None:
            return None
        if not isinstance(given, torch.Tensor) or not given.is_floating_point() or given.shape[1:] != shape:
            what = tuple(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
            raise InputError(f"masked_image_latents must be a floating tensor (n, {shape}), got {what}")
        if not bool(torch.isfinite(given).all()):
            raise InputError("masked_image_latents hold NaN or infinity: encode the masked picture in float32")
        return given

    def _completed(self, request: TextRequest) -> TextRequest:
        repaint: Repaint = request.extra["repaint"].for_batch(request.batch // request.each, request.each)
        if "masked_image_latents" in request.wanted and repaint.image.latent and repaint.latents is None:
            raise InputError("the callback asks for masked_image_latents but image holds latents: pass them, too")
        return dataclasses.replace(request, extra={**request.extra, "repaint": repaint})

    # One chunk of the batch --------------------------------------------------------------------------------

    def _start(self, request: Request, call: PipelineCall, rows: slice, generator: Generators) -> torch.Tensor:
        """Pure noise, or the noised pictures; and the call's further tensors. Drawn in Diffusers' order."""
        assert isinstance(request, TextRequest)
        repaint: Repaint = request.extra["repaint"]
        pure = request.extra["strength"] == 1
        z = None
        if self._blends or not pure:
            z = self._latents_of(repaint.image, repaint.image_rows[rows], generator)
        noise = self._noise(request, rows, generator)
        mask = F.interpolate(repaint.mask, request.shape[1:])[list(repaint.mask_rows[rows])]
        call.tensors["mask"] = mask.to(noise.device, noise.dtype if self._blends else self.unet.dtype)
        masked = self._masked_latents(request, rows, generator)
        if masked is not None:
            call.tensors["masked_image_latents"] = masked if self._blends else masked.to(self.unet.dtype)
        if self._blends and z is not None:
            call.tensors |= {"image_latents": z, "noise": noise}
        if pure or z is None:
            return noise * call.scheduler.init_noise_sigma
        noisy: torch.Tensor = call.scheduler.add_noise(z, noise, call.timesteps[:1])
        return noisy

    def _masked_latents(self, request: TextRequest, rows: slice, generator: Generators) -> torch.Tensor | None:
        """Latents of the pictures with mid-grey holes, for a network or a callback that looks at them."""
        repaint: Repaint = request.extra["repaint"]
        if repaint.latents is not None:
            return self._as_latents(repaint.latents[list(repaint.latents_rows[rows])])
        pairs = list(zip(repaint.image_rows[rows], repaint.mask_rows[rows]))
        some = sorted(set(pairs))
        if self._blends and "masked_image_latents" not in request.wanted:
            # Nobody looks, so nothing is encoded; the draw keeps the later noise the same as in Diffusers, which does.
            randn((len(pairs if isinstance(generator, list | tuple) else some), *request.shape), generator)
            return None
        images, masks = (list(side) for side in zip(*some))
        x = repaint.image.centred()[images] * (repaint.mask[masks] < 0.5)
        return self._encoded(x, [some.index(pair) for pair in pairs], generator)

    def _network_input(self, call: PipelineCall, z: torch.Tensor, copies: int) -> torch.Tensor:
        if z.shape[1] == self.unet.config.in_channels:
            return z
        beside = (call.joined(*(name,) * copies) for name in ("mask", "masked_image_latents"))
        return torch.cat([z, *beside], dim=1)

    def _refine(self, call: PipelineCall, z: torch.Tensor) -> torch.Tensor:
        """The given picture outside the mask, at the noise level that the step arrived at."""
        noise = call.tensors.get("noise")
        if noise is None:
            return z
        kept, following = call.tensors["image_latents"], call.step_index + 1
        if following < call.num_timesteps:
            kept = call.scheduler.add_noise(kept, noise, call.timesteps[following : following + 1])
        return torch.lerp(kept, z, call.tensors["mask"])

    def _picture(self, request: Request, call: PipelineCall, rows: slice, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(request, TextRequest)
        repaint: Repaint = request.extra["repaint"]
        if repaint.paste is None:
            return x
        return repaint.paste(x, repaint.image_rows[rows], repaint.mask_rows[rows])
