"""What one call of a text pipeline asks for, and its checked form."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

import torch

from latentia.core.rng import Generators
from latentia.errors import InputError
from latentia.pipelines.callbacks import Callback, CancelToken, PipelineCallback
from latentia.pipelines.request import Request

Prompt = str | Sequence[str]


class TextOptions(TypedDict):
    """Keywords that every text pipeline takes.

    negative_prompt: what to steer away from: one text, or one per prompt; default "". Needs `guidance_scale` above 1.
    num_images_per_prompt: pictures of each prompt, side by side in the batch.
    prompt_embeds, negative_prompt_embeds: encoded texts (prompts, L, D) in place of the texts, from `encode_prompt`.
    guidance_scale: s of ε_∅ + s(ε_c − ε_∅); at most 1: the conditional network alone.
    guidance_rescale: φ in [0, 1]; how far the guided prediction gets the conditional one's spread back.
    guidance_interval: (start, stop) in [0, 1], 0 = noise, 1 = data: guidance acts while start ≤ 1 − t/T ≤ stop.
    clip_skip: layers of the text encoder to leave out at its end; as in Diffusers not for negative prompts.
    eta: η in [0, 1] of DDIM: 0 deterministic, 1 as noisy as DDPM. Needs a scheduler that takes it.
    generator: source of all noise: one for the batch, or a list with one per picture.
    seed: picture i is drawn from its own generator, derived from (seed, i); alone or in any batch it is the same.
    sample_indices: the numbers i of the pictures under `seed`; default 0 … pictures − 1.
    latents: standard normal starting noise (pictures, c, h, w), scaled by the scheduler's `init_noise_sigma`.
    output_type: `pil`, `np` (B, H, W, C) in [0, 1], `pt` (B, C, H, W) in [0, 1], or `latent` (z, undecoded).
    return_dict: False returns `(images, None)`.
    max_batch: largest batch that goes through the network; more pictures are made in chunks.
    callback_on_step_end: `(pipe, step_index, timestep, tensors)`, a `PipelineCallback` or a list of these; the older
        form `(pipe, step_index, latents)` works, too.
    callback_on_step_end_tensor_inputs: names to hand to it, out of the pipeline's `_callback_tensor_inputs`.
    cancel: a `CancelToken` that another thread may pull.
    """

    negative_prompt: NotRequired[Prompt | None]
    num_images_per_prompt: NotRequired[int]
    prompt_embeds: NotRequired[torch.Tensor | None]
    negative_prompt_embeds: NotRequired[torch.Tensor | None]
    guidance_scale: NotRequired[float]
    guidance_rescale: NotRequired[float]
    guidance_interval: NotRequired[tuple[float, float]]
    clip_skip: NotRequired[int | None]
    eta: NotRequired[float]
    generator: NotRequired[Generators]
    seed: NotRequired[int | None]
    sample_indices: NotRequired[Sequence[int] | None]
    latents: NotRequired[torch.Tensor | None]
    output_type: NotRequired[str]
    return_dict: NotRequired[bool]
    max_batch: NotRequired[int | None]
    callback_on_step_end: NotRequired[Callback | PipelineCallback | Sequence[PipelineCallback] | None]
    callback_on_step_end_tensor_inputs: NotRequired[Sequence[str]]
    cancel: NotRequired[CancelToken | None]


NOT_OURS = {
    "timesteps": "set pipe.scheduler to one with the spacing you want (timestep_spacing, use_karras_sigmas)",
    "sigmas": "set pipe.scheduler to one with the spacing you want (timestep_spacing, use_karras_sigmas)",
    "cross_attention_kwargs": "for the strength of a LoRA call pipe.set_adapters(name, weight)",
    "ip_adapter_image": "image prompts are not supported",
    "ip_adapter_image_embeds": "image prompts are not supported",
}
"""Options of Diffusers' calls that have no meaning here, and what to do instead; None is accepted for each."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a call, one entry per picture.

    Attributes:
        prompts, negatives: texts; None where embeddings stand in their place.
        embeds, negative_embeds: (B, L, D) given embeddings.
        windows: how many windows of the encoder's length each picture's texts take.
        clip_skip: layers left out.
        negated: whether the negative texts are encoded at all.
    """

    prompts: Sequence[str] | None
    negatives: Sequence[str] | None
    embeds: torch.Tensor | None
    negative_embeds: torch.Tensor | None
    windows: Sequence[int]
    clip_skip: int | None
    negated: bool


@dataclass(frozen=True, kw_only=True)
class TextRequest(Request):
    """A request with texts; `extra` holds what else a pipeline needs to know about the call.

    Attributes:
        each: pictures of one text, side by side in the batch.
    """

    texts: Texts
    each: int = 1
    extra: dict[str, Any] = field(default_factory=dict)

    def chunks(self) -> Iterator[slice]:
        """Consecutive rows of at most `max_batch`, whose texts take equally many windows.

        A picture's text is never padded because of its neighbours': alone or in a batch it is the same picture.
        """
        start = 0
        for row in range(1, self.batch + 1):
            windows = self.texts.windows
            if row == self.batch or row - start == self.max_batch or windows[row] != windows[start]:
                yield slice(start, row)
                start = row


def check_texts(
    prompt: Prompt | None,
    negative_prompt: Prompt | None,
    prompt_embeds: torch.Tensor | None,
    negative_prompt_embeds: torch.Tensor | None,
    width: int,
) -> tuple[list[str] | None, list[str] | None, int]:
    """Prompts and negative prompts as lists of equal length, and their number. Raises `InputError`."""
    if (prompt is None) == (prompt_embeds is None):
        raise InputError("pass either prompt or prompt_embeds" + (", not both" if prompt is not None else ""))
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise InputError("pass either negative_prompt or negative_prompt_embeds, not both")
    prompts = None if prompt is None else _listed("prompt", prompt)
    for name, embeds in (("prompt_embeds", prompt_embeds), ("negative_prompt_embeds", negative_prompt_embeds)):
        if embeds is not None:
            _check_embeds(name, embeds, width)
    count = len(prompts) if prompts is not None else len(prompt_embeds)  # type: ignore[arg-type]
    negatives = None if negative_prompt is None else _listed("negative_prompt", negative_prompt)
    given = len(negatives) if negatives is not None else None
    given = len(negative_prompt_embeds) if negative_prompt_embeds is not None else given
    if given is not None and given not in (1, count):
        raise InputError(f"{given} negative prompts for {count} prompts: give one, or one per prompt")
    both = prompt_embeds is not None and negative_prompt_embeds is not None
    if both and prompt_embeds.shape[1:] != negative_prompt_embeds.shape[1:]:  # type: ignore[union-attr]
        raise InputError(
            f"prompt_embeds {tuple(prompt_embeds.shape)} and negative_prompt_embeds "  # type: ignore[union-attr]
            f"{tuple(negative_prompt_embeds.shape)} must agree in length and width"  # type: ignore[union-attr]
        )
    return prompts, negatives if negatives is None or len(negatives) == count else negatives * count, count


def _listed(name: str, given: object) -> list[str]:
    listed = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else None
    if listed is None or not all(isinstance(text, str) for text in listed):
        raise InputError(f"{name} must be a text or a list of texts, got {given!r}")
    if not listed:
        raise InputError(f"{name} is an empty list: give at least one text ('' is a text)")
    return listed


def _check_embeds(name: str, embeds: object, width: int) -> None:
    if not isinstance(embeds, torch.Tensor) or not embeds.is_floating_point() or embeds.ndim != 3:
        what = f"{embeds.dtype} {tuple(embeds.shape)}" if isinstance(embeds, torch.Tensor) else type(embeds).__name__
        raise InputError(f"{name} must be a floating tensor (prompts, tokens, {width}), got {what}")
    if embeds.shape[2] != width or not len(embeds):
        raise InputError(
            f"{name} has shape {tuple(embeds.shape)}: expected (prompts, tokens, {width}), as encode_prompt makes it"
        )
    if not bool(torch.isfinite(embeds).all()):
        raise InputError(f"{name} hold NaN or infinity: encode the texts in a wider dtype")


def repeat_rows(given: torch.Tensor, count: int) -> torch.Tensor:
    """Each row `count` times, side by side: rows of one prompt stay neighbours."""
    return given if count == 1 else given.repeat_interleave(count, dim=0)
