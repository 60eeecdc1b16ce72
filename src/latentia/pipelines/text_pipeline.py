"""TextPipeline: everything between the arguments of a call and the loop, for pictures made from texts."""

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import torch

from latentia.conditioners.prompts import count_windows, encode_prompts, text_width, window_length
from latentia.core.arguments import check_count
from latentia.core.finite import first_nonfinite
from latentia.core.images import OUTPUT_TYPES
from latentia.core.rng import Generators
from latentia.errors import InputError, NonFiniteError, check_choice
from latentia.pipelines import checks, guidance
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.callbacks import CancelToken, check_callback, check_cancel, wanted_tensors
from latentia.pipelines.codec import CodecMixin
from latentia.pipelines.outputs import Images, StableDiffusionPipelineOutput
from latentia.pipelines.request import Request
from latentia.pipelines.sampling import SamplingPipeline
from latentia.pipelines.text_request import (
    NOT_OURS,
    Prompt,
    TextOptions,
    TextRequest,
    Texts,
    check_texts,
    repeat_rows,
)


class TextPipeline(CodecMixin, SamplingPipeline):
    """Abstract: latents sampled under a text, by classifier-free guidance between it and a negative text.

    Class attributes:
        text_name: the component that encodes text; `tokenizer` makes its token ids.
    """

    text_name: ClassVar[str] = "text_encoder"
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = (
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "model_output",
        "pred_original_sample",
    )
    tokenizer: Any

    def _check_component(self, name: str, value: Any) -> None:
        super()._check_component(name, value)
        parts = {**{n: vars(self).get(n) for n in self.roles}, name: value}
        encoder, unet = parts[self.text_name], parts["unet"]
        if encoder is None or unet is None or name not in (self.text_name, "unet"):
            return
        width, taken = text_width(encoder), unet.config.get("cross_attention_dim")
        if taken != width:
            raise InputError(
                f"{self.text_name} makes embeddings of width {width} but unet looks at texts of width {taken}: "
                "they were not made for each other"
            )

    @property
    def conditioner(self) -> Any:
        """The component that encodes text."""
        return getattr(self, self.text_name)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a side for each position of the latents."""
        return 2 ** (len(self.codec.config.block_out_channels) - 1)

    @property
    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the network was trained on."""
        size = self.unet.config.sample_size
        if size is None:
            raise InputError("unet has no sample_size: pass height and width")
        rows, columns = (size, size) if isinstance(size, int) else size
        return rows * self.vae_scale_factor, columns * self.vae_scale_factor

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(c, h, w) of the latents of a picture; default: the size that the network was trained on.

        Raises `InputError` for sides that the codec cannot halve often enough.
        """
        if height is None or width is None:
            default = self.default_size
            height, width = default[0] if height is None else height, default[1] if width is None else width
        sides = check_count("height", height), check_count("width", width)
        factor = self.vae_scale_factor
        if any(side % factor for side in sides):
            near = " × ".join(str(max(factor, round(side / factor) * factor)) for side in sides)
            raise InputError(f"height {sides[0]} and width {sides[1]} must be divisible by {factor}: {near}, say")
        channels, rows, columns = self.codec.latent_shape((self.codec.config.in_channels, *sides))
        return channels, rows, columns

    # Texts -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_prompt(
        self,
        prompt: Prompt,
        device: torch.device | str | None = None,
        num_images_per_prompt: int = 1,
        do_classifier_free_guidance: bool = False,
        negative_prompt: Prompt | None = None,
        clip_skip: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(prompt_embeds, negative_prompt_embeds), (prompts · num_images_per_prompt, L, D) each, as a call takes them.

        The second is None without `do_classifier_free_guidance`. Texts of more than one window are cut into several.
        """
        prompts, negatives, count = check_texts(prompt, negative_prompt, None, None, text_width(self.conditioner))
        negatives = negatives or [""] * count
        texts = [*(prompts or ()), *(negatives if do_classifier_free_guidance else ())]
        windows = max(count_windows(self.tokenizer, texts, window_length(self.tokenizer, self.conditioner)))
        device = device or self.execution_device
        embeds = repeat_rows(self._encode(prompts or (), windows, clip_skip).to(device), num_images_per_prompt)
        if not do_classifier_free_guidance:
            return embeds, None
        return embeds, repeat_rows(self._encode(negatives, windows, None).to(device), num_images_per_prompt)

    def _encode(self, texts: Sequence[str], windows: int, clip_skip: int | None) -> torch.Tensor:
        """Texts → (len, windows · L, D), finite."""
        encoder = self.conditioner
        with self._using(self.text_name):
            embeds = encode_prompts(self.tokenizer, encoder, texts, windows, clip_skip)
            if bool(torch.isfinite(embeds).all()):
                return embeds
            again = partial(encode_prompts, self.tokenizer, encoder, texts, windows, clip_skip)
            culprit = first_nonfinite({self.text_name: encoder}, again) or self.text_name
        raise NonFiniteError(
            f"NaN or infinity in the encoded text, first in {culprit}: use a wider dtype "
            f"(pipe.{self.text_name}.to(torch.float32)) and check its weights"
        )

    def _windows(self, texts: Sequence[Sequence[str] | torch.Tensor | None], count: int) -> list[int]:
        """Windows of each picture's texts and embeddings, the most of any. Raises `InputError` for odd lengths."""
        length = window_length(self.tokenizer, self.conditioner)
        windows = [1] * count
        for given in texts:
            if isinstance(given, torch.Tensor):
                windows = [max(have, -(-given.shape[1] // length)) for have in windows]
            elif given is not None:
                pairs = zip(windows, count_windows(self.tokenizer, given, length))
                windows = [max(pair) for pair in pairs]
        lengths = {given.shape[1] for given in texts if isinstance(given, torch.Tensor)}
        written = any(given is not None and not isinstance(given, torch.Tensor) for given in texts)
        if lengths and written and lengths != {number * length for number in windows}:
            raise InputError(
                f"the embeddings are {max(lengths)} tokens long, the texts beside them take {max(windows) * length}: "
                "pass prompt_embeds and negative_prompt_embeds, both from pipe.encode_prompt(...)"
            )
        return windows

    # One call --------------------------------------------------------------------------------------------

    def _generate(
        self,
        prompt: Prompt | None,
        num_inference_steps: int,
        shape: tuple[int, int, int],
        options: TextOptions,
        *,
        guidance_scale: float = 7.5,
        **extra: Any,
    ) -> StableDiffusionPipelineOutput | tuple[Images, None]:
        """Check everything, then encode, sample and decode chunk by chunk.

        `guidance_scale` is the pipeline's default; `extra` is for the pipeline's own hooks, in `TextRequest.extra`.
        """
        given: dict[str, Any] = dict(options)
        return_dict = checks.check_flag("return_dict", given.pop("return_dict", True))
        for name in given:
            if name in NOT_OURS and given[name] is not None:
                raise InputError(f"{type(self).__name__} has no option {name!r}: {NOT_OURS[name]}")
        given = {name: value for name, value in given.items() if name not in NOT_OURS}
        for name in given:
            check_choice("argument", name, TextOptions.__annotations__)
        request = self._request(
            prompt, num_inference_steps, shape, extra, **{"guidance_scale": guidance_scale, **given}
        )
        images = self._sample(self._completed(request))
        return StableDiffusionPipelineOutput(images) if return_dict else (images, None)

    def _request(
        self,
        prompt: Prompt | None,
        num_inference_steps: int,
        shape: tuple[int, int, int],
        extra: dict[str, Any],
        *,
        guidance_scale: float,
        negative_prompt: Prompt | None = None,
        num_images_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        clip_skip: int | None = None,
        eta: float = 0.0,
        generator: Generators = None,
        seed: int | None = None,
        sample_indices: Sequence[int] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        max_batch: int | None = None,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        cancel: CancelToken | None = None,
    ) -> TextRequest:
        steps = check_count("num_inference_steps", num_inference_steps)
        check_choice("output_type", output_type, (*OUTPUT_TYPES, "latent"))
        width = text_width(self.conditioner)
        prompts, negatives, count = check_texts(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, width)
        each = check_count("num_images_per_prompt", num_images_per_prompt)
        batch = count * each
        generator = checks.check_generator(generator)
        checks.batch_of(
            batch,
            {
                "sample_indices": checks.listed_length("sample_indices", sample_indices),
                "generator": len(generator) if isinstance(generator, list | tuple) else None,
            },
        )
        if latents is not None:
            latents = checks.check_latents(latents, (batch, *shape))
        callback = check_callback(callback_on_step_end)
        known = self._callback_tensor_inputs
        wanted = wanted_tensors(callback, callback_on_step_end_tensor_inputs, known) if callback else ()
        scale = guidance.check_scale(guidance_scale)
        # A callback may raise the scale in mid-call, and may ask for the negative text: then it is encoded, too.
        negated = scale > 1 or callback is not None
        texts = self._texts(prompts, negatives, prompt_embeds, negative_prompt_embeds, each, clip_skip, negated)
        return TextRequest(
            batch=batch,
            steps=steps,
            shape=shape,
            output_type=output_type,
            generator=checks.generators_of(generator, seed, sample_indices, batch),
            latents=latents,
            step_options=checks.check_step_options(self.scheduler, {"eta": checks.eta_option(eta)}),
            guidance={
                "guidance_scale": scale,
                "guidance_rescale": guidance.check_rescale(guidance_rescale),
                "guidance_interval": guidance.check_interval(guidance_interval),
            },
            max_batch=batch if max_batch is None else check_count("max_batch", max_batch),
            callback=callback,
            wanted=wanted,
            cancel=check_cancel(cancel),
            texts=texts,
            each=each,
            extra=extra,
        )

    def _completed(self, request: TextRequest) -> TextRequest:
        """A hook: the request with the pipeline's own arguments checked against the rest, before any work."""
        return request

    def _texts(
        self,
        prompts: list[str] | None,
        negatives: list[str] | None,
        embeds: torch.Tensor | None,
        negative_embeds: torch.Tensor | None,
        each: int,
        clip_skip: int | None,
        negated: bool,
    ) -> Texts:
        """Everything one entry per picture."""
        count = len(prompts) if prompts is not None else len(embeds) if embeds is not None else 0
        if negative_embeds is not None:
            negative_embeds = negative_embeds.expand(count, -1, -1)
        elif negatives is None:
            negatives = [""] * count
        opposed = (negatives if negative_embeds is None else negative_embeds) if negated else None
        windows = self._windows((embeds if prompts is None else prompts, opposed), count)
        return Texts(
            prompts=_each(prompts, each),
            negatives=_each(negatives, each),
            embeds=None if embeds is None else repeat_rows(embeds, each),
            negative_embeds=None if negative_embeds is None else repeat_rows(negative_embeds, each),
            windows=[number for number in windows for _ in range(each)],
            clip_skip=None if clip_skip is None else check_count("clip_skip", clip_skip, least=0),
            negated=negated,
        )

    def _conditions(self, request: Request, rows: slice) -> dict[str, torch.Tensor]:
        """The encoded texts of some rows, beside the other conditions."""
        assert isinstance(request, TextRequest)
        tensors = super()._conditions(request, rows)
        texts, device = request.texts, self.execution_device
        windows = texts.windows[rows.start]
        sources = {
            "prompt_embeds": (texts.embeds, texts.prompts, texts.clip_skip),
            "negative_prompt_embeds": (texts.negative_embeds, texts.negatives, None),  # as Diffusers: never skipped
        }
        if not texts.negated:
            del sources["negative_prompt_embeds"]
        for name, (embeds, written, skip) in sources.items():
            if embeds is None:
                embeds = self._encode((written or ())[rows], windows, skip)
            else:
                embeds = embeds[rows]
            tensors[name] = embeds.to(device)
        return tensors

    def _denoise(self, call: PipelineCall, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """The network's prediction; guided when the call is."""
        scale = call.current_scale
        if scale <= 1:
            return self._predict(call, z, t, ("prompt_embeds",))
        both = self._predict(call, torch.cat([z, z]), t, ("negative_prompt_embeds", "prompt_embeds"))
        return guidance.combine(both, scale, call.guidance_rescale)

    def _predict(self, call: PipelineCall, z: torch.Tensor, t: torch.Tensor, texts: tuple[str, ...]) -> torch.Tensor:
        """One forward pass over as many copies of the latents as there are `texts`."""
        x, text = self._network_input(call, z.to(self.unet.dtype), len(texts)), call.joined(*texts)
        prediction: torch.Tensor = self.unet(x, t, encoder_hidden_states=text, **self._control(call, x, t, text)).sample
        return prediction.to(z.dtype)

    def _network_input(self, call: PipelineCall, z: torch.Tensor, copies: int) -> torch.Tensor:
        """What the network sees: the latents, with whatever stands beside them on channels."""
        return z

    def _control(self, call: PipelineCall, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> dict[str, Any]:
        """Further arguments of the network, from what it is about to see."""
        return {}


def _each(listed: list[str] | None, count: int) -> list[str] | None:
    return listed if listed is None else [text for text in listed for _ in range(count)]
