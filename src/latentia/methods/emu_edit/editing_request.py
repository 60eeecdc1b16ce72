"""What one call of the editor is asked for and hands back: its keywords, their checked form, its output."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict, TypeVar

import numpy as np
import torch
from PIL import Image

from latentia.conditioners.prompts import count_windows, window_length
from latentia.core.arguments import check_count
from latentia.core.outputs import Output
from latentia.errors import InputError
from latentia.methods.emu_edit.canvas import Canvas, on_paper
from latentia.methods.emu_edit.joint_text import Pair
from latentia.methods.emu_edit.predictor import TaskGuess, check_instructions
from latentia.methods.emu_edit.task_choice import TaskChoice
from latentia.methods.emu_edit.thresholding import Thresholding
from latentia.pipelines.callbacks import Callback, CancelToken, PipelineCallback
from latentia.pipelines.outputs import Images
from latentia.pipelines.request import Request

Entry = TypeVar("Entry")


@dataclass(slots=True)
class EditPipelineOutput(Output):
    """The pictures of one call.

    Attributes:
        images: edited, each in the size it was given in; in the form that `output_type` asked for.
        tasks: what each was edited as, by name.
        guesses: how sure that is, for those whose task was predicted; None for the others.
    """

    images: Images
    tasks: list[str]
    guesses: list[TaskGuess | None]


class EditOptions(TypedDict):
    """Keywords that a call takes beside its own.

    seed: picture i is drawn from its own generator, derived from (seed, i); alone or in any batch it is the same.
    sample_indices: the numbers i of the pictures under `seed`; default 0 … pictures − 1.
    size: what the editor sees: a side, or (height, width), in pixels; default the size it was trained on.
    thresholding: a `Thresholding`, or its α: keep what the edit hardly changed. Default: keep what is exactly equal,
        and, where an editor without copy gate sees a picture smaller than it is, what `pipe.thresholding` keeps.
    eta: η in [0, 1] of DDIM: 0 deterministic, 1 as noisy as DDPM. Needs a scheduler that takes it.
    latents: standard normal starting noise (pictures, C, h, w), scaled by the scheduler's `init_noise_sigma`.
    max_batch: most pictures that go through the network at once; more are edited in chunks.
    callback_on_step_end: `(pipe, step_index, timestep, tensors)`, a `PipelineCallback` or a list of these; it may
        assign `pipe.guidance_scale` and `pipe.image_guidance_scale`.
    callback_on_step_end_tensor_inputs: names to hand to it, of latents, prompt_embeds, negative_prompt_embeds,
        image_latents, task_embeds, model_output, pred_original_sample (x̂₀).
    cancel: a `CancelToken` that another thread may pull.
    """

    seed: NotRequired[int | None]
    sample_indices: NotRequired[Sequence[int] | None]
    size: NotRequired[int | tuple[int, int] | None]
    thresholding: NotRequired[Thresholding | float | None]
    eta: NotRequired[float]
    latents: NotRequired[torch.Tensor | None]
    max_batch: NotRequired[int | None]
    callback_on_step_end: NotRequired[Callback | PipelineCallback | Sequence[PipelineCallback] | None]
    callback_on_step_end_tensor_inputs: NotRequired[Sequence[str]]
    cancel: NotRequired[CancelToken | None]


@dataclass(frozen=True, kw_only=True)
class EditRequest(Request):
    """A call's arguments, checked; everything per picture is `batch` long.

    Attributes:
        canvases: the pictures as the editor sees them.
        texts: the instructions.
        choices: the tasks.
        thresholding: the rule that was asked for, None for none.
    """

    canvases: Sequence[Canvas]
    texts: Sequence[str]
    choices: Sequence[TaskChoice]
    thresholding: Thresholding | None = None

    @property
    def pictures(self) -> torch.Tensor:
        """What the editor sees, (B, 3, H, W) in [-1, 1]."""
        return as_tensor(np.stack([canvas.seen for canvas in self.canvases]))


def as_tensor(seen: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W, 3) → (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(seen).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def check_sides(size: int | tuple[int, int] | None, default: tuple[int, int], multiple: int) -> tuple[int, int]:
    """(height, width) that the editor sees. Raises `InputError` for sides that its layers cannot halve."""
    if size is None:
        return default
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(sides) != 2:
        raise InputError(f"size must be a side or (height, width), got {size!r}")
    height, width = (check_count("size", side) for side in sides)
    if height % multiple or width % multiple:
        near = " × ".join(str(max(multiple, round(side / multiple) * multiple)) for side in (height, width))
        raise InputError(f"size {height} × {width}: both must be multiples of {multiple}, {near}, say")
    return height, width


def check_texts(given: object) -> list[str]:
    """Instructions as a list, perhaps with empty ones. Raises `InputError`."""
    listed = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else None
    if not listed or not all(isinstance(text, str) for text in listed):
        raise InputError(f"instruction must be a text or a list of texts, got {given!r}")
    return listed


def readable(texts: Sequence[str], choices: Sequence[TaskChoice], pairs: Sequence[Pair]) -> list[str]:
    """The instructions, an empty one in the words of its learned task.

    Raises `InputError` for empty ones without such a task, and for those that even the longest text encoder would cut.
    """
    full = check_instructions([text.strip() or choice.instruction for text, choice in zip(texts, choices, strict=True)])
    length, tokenizer = max(((window_length(*pair), pair[0]) for pair in pairs), key=lambda each: each[0])
    for text, windows in zip(full, count_windows(tokenizer, full, length)):
        if windows > 1:
            raise InputError(
                f"the instruction {text[:40]!r}… is too long: this editor reads at most {length} tokens at once. Say "
                "it in fewer words, or as several edits, one after the other (a session; --instruction repeated)"
            )
    return full


def check_thresholding(given: object) -> Thresholding | None:
    """A rule, or its α as a number. Raises `InputError`."""
    if given is None or isinstance(given, Thresholding):
        return given
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise InputError(f"thresholding must be a Thresholding or its alpha, a number such as 0.03; got {given!r}")
    return Thresholding(alpha=given)


def as_images(pictures: list[Image.Image], output_type: str) -> Images:
    """PIL pictures in the form asked for: as they are, or as floats in [0, 1], transparent parts on white."""
    if output_type == "pil":
        return pictures
    stacked = np.stack([np.asarray(on_paper(picture)) for picture in pictures]).astype(np.float32) / 255
    return stacked if output_type == "np" else torch.from_numpy(stacked).permute(0, 3, 1, 2).contiguous()


def spread(listed: list[Entry], batch: int) -> list[Entry]:
    """One entry for each of `batch` pictures, where there is one for all."""
    return listed * batch if len(listed) == 1 else listed
