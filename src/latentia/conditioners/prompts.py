"""Prompts to embeddings: any length, with our text encoders and with those of transformers.

A text that is longer than its encoder is cut into windows of L - 2 tokens. Each is wrapped and padded as the tokenizer
does with a short text, encoded by itself, and the encodings are laid end to end: (B, windows·L, D). A text that fits is
one window, and exactly what `tokenizer(text, padding="max_length", truncation=True)` and the encoder give.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from latentia.core.arguments import check_count
from latentia.errors import InputError

_BACKEND = threading.Lock()
"""transformers' tokenizers change their own state while they work: one thread at a time."""

_UNBOUNDED = 10**6
"""A tokenizer whose `model_max_length` is above this has none (transformers then says 10³⁰)."""

_FINAL_NORMS = ("text_model.final_layer_norm", "final_layer_norm", "encoder.final_layer_norm", "model.layer_norm")
"""Where text encoders keep the normalisation behind their last layer."""

_DEPTHS = ("num_hidden_layers", "encoder_layers", "num_layers")
"""What configs call the number of layers."""


@dataclass(frozen=True, slots=True)
class _Wrapping:
    """How a tokenizer dresses a window: ids before and after the text, and what fills it up."""

    before: list[int]
    after: list[int]
    pad: int
    pad_left: bool
    cut_left: bool
    length: int

    @property
    def room(self) -> int:
        """Tokens of text in one window."""
        return self.length - len(self.before) - len(self.after)


def window_length(tokenizer: Any, text_encoder: Any = None) -> int:
    """L: the shorter of the tokenizer's `model_max_length` and the encoder's number of positions.

    Raises `InputError` when neither knows.
    """
    lengths = [int(tokenizer.model_max_length)]
    if text_encoder is not None:
        lengths.append(int(getattr(text_encoder.config, "max_position_embeddings", None) or _UNBOUNDED + 1))
    length = min(lengths)
    if length > _UNBOUNDED:
        raise InputError(
            "neither tokenizer nor text encoder has a longest length: set tokenizer.model_max_length, to 77 say"
        )
    return length


def text_width(text_encoder: Any) -> int:
    """D: width of the vectors that a text encoder gives (`hidden_size`, or `d_model`)."""
    for name in ("hidden_size", "d_model"):
        width = getattr(text_encoder.config, name, None)
        if width is not None:
            return int(width)
    raise InputError(f"the config of {type(text_encoder).__name__} has neither hidden_size nor d_model")


def count_windows(tokenizer: Any, prompts: str | Sequence[str], max_length: int | None = None) -> list[int]:
    """How many windows each prompt needs; at least 1.

    Args:
        tokenizer: a tokenizer of transformers.
        prompts: one text, or several.
        max_length: L; None: the tokenizer's `model_max_length`.
    """
    texts = _texts(prompts)
    wrapping, bodies = _tokenize(tokenizer, texts, max_length)
    return [max(1, -(-len(body) // wrapping.room)) for body in bodies]


def token_ids(
    tokenizer: Any, prompts: str | Sequence[str], windows: int = 1, max_length: int | None = None
) -> torch.Tensor:
    """Token ids of every window, (B, windows, L) int64.

    Text beyond the last window is cut, as `truncation=True` does; windows beyond the text are empty ones.

    Args:
        tokenizer: a tokenizer of transformers.
        prompts: one text, or several.
        windows: number of windows a prompt.
        max_length: L; None: the tokenizer's `model_max_length`.

    Raises `InputError` for prompts that are not texts, and for tokenizers without a length or a padding token.
    """
    return _dressed(tokenizer, prompts, windows, max_length)[:, :, 0]


def encode_prompts(
    tokenizer: Any,
    text_encoder: Any,
    prompts: str | Sequence[str],
    windows: int = 1,
    clip_skip: int | None = None,
) -> torch.Tensor:
    """Prompts → embeddings (B, windows·L, D), on the encoder's device and in its dtype.

    Every different window is encoded once and by itself, so a prompt's encoding does not depend, not even in the last
    bit, on the prompts beside it.

    Args:
        tokenizer: a tokenizer of transformers.
        text_encoder: one of ours, or of transformers (`CLIPTextModel`, `BertModel`, `T5EncoderModel`, …).
        prompts: one text, or several.
        windows: windows a prompt, see `count_windows`; text beyond is cut.
        clip_skip: take the output of the layer that many before the last, normalised as the last one's is. None, 0:
            the last layer's.

    The mask of the tokenizer goes to encoders whose config says `use_attention_mask`; others see the padding, as those
    of Stable Diffusion and latent diffusion were trained to.

    Raises `InputError` for prompts that are not texts, a `clip_skip` deeper than the encoder, or one without a last
    normalisation.
    """
    skip, norm = _check_clip_skip(text_encoder, clip_skip)
    dressed = _dressed(tokenizer, prompts, windows, window_length(tokenizer, text_encoder))
    batch, _, _, length = dressed.shape
    # Each different window (its ids and mask) → its place among those that are encoded.
    different: dict[tuple[int, ...], int] = {}
    places = [different.setdefault(tuple(row), len(different)) for row in dressed.flatten(2).flatten(0, 1).tolist()]
    rows = torch.tensor(list(different), device=text_encoder.device).view(-1, 2, 1, length)
    masked = bool(getattr(text_encoder.config, "use_attention_mask", False))
    encoded = []
    for ids, mask in rows:
        given = {"attention_mask": mask if masked else None}
        if norm is None:
            encoded.append(text_encoder(ids, **given).last_hidden_state[0])
        else:
            states = text_encoder(ids, **given, output_hidden_states=True).hidden_states
            encoded.append(norm(states[-(skip + 1)])[0])
    return torch.stack([encoded[i] for i in places]).view(batch, windows * length, -1)


def _check_clip_skip(text_encoder: Any, clip_skip: int | None) -> tuple[int, nn.Module | None]:
    """`clip_skip` as a number, and the last normalisation where one must be applied to an earlier layer."""
    skip = 0 if clip_skip is None else check_count("clip_skip", clip_skip, 0)
    if skip == 0:
        return 0, None
    kind = type(text_encoder).__name__
    modules = dict(text_encoder.named_modules())
    norm = next((modules[name] for name in _FINAL_NORMS if name in modules), None)
    if norm is None:
        raise InputError(
            f"clip_skip={skip}: {kind} has no normalisation behind its last layer that could be applied to an earlier "
            "one; leave clip_skip at None"
        )
    layers = next((n for name in _DEPTHS if (n := getattr(text_encoder.config, name, None)) is not None), skip)
    if skip > layers:
        raise InputError(f"clip_skip={skip}: {kind} has {layers} layers; give 0 to {layers}")
    return skip, norm


def _texts(prompts: object) -> list[str]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts) if isinstance(prompts, list | tuple) else None
    if not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"expected a prompt or a list of at least one, got {prompts!r}")
    return texts


def _tokenize(tokenizer: Any, texts: list[str], max_length: int | None) -> tuple[_Wrapping, list[list[int]]]:
    """How the tokenizer wraps a text, and the ids of each text without wrapping."""
    length = window_length(tokenizer) if max_length is None else check_count("max_length", max_length)
    with _BACKEND:
        bare = tokenizer([*texts, "a"], add_special_tokens=False, verbose=False).input_ids
        empty = tokenizer("", verbose=False).input_ids
        dressed = tokenizer("a", verbose=False).input_ids
    bodies, probe = bare[:-1], bare[-1]
    # What stands before a text is what "a" has before its own ids.
    before = next((i for i in range(len(empty) + 1) if dressed == [*empty[:i], *probe, *empty[i:]]), 0) if probe else 0
    pad = tokenizer.pad_token_id
    if pad is None:
        raise InputError("the tokenizer has no padding token: set tokenizer.pad_token, to tokenizer.eos_token say")
    wrapping = _Wrapping(
        before=list(empty[:before]),
        after=list(empty[before:]),
        pad=int(pad),
        pad_left=tokenizer.padding_side == "left",
        cut_left=tokenizer.truncation_side == "left",
        length=length,
    )
    if wrapping.room < 1:
        raise InputError(f"windows of {length} tokens have no room for text beside {len(empty)} special ones")
    return wrapping, bodies


def _dressed(tokenizer: Any, prompts: object, windows: int, max_length: int | None) -> torch.Tensor:
    """Ids and mask of every window, (B, windows, 2, L) int64."""
    windows = check_count("windows", windows)
    wrapping, bodies = _tokenize(tokenizer, _texts(prompts), max_length)
    dressed = [[_window(body, i, windows, wrapping) for i in range(windows)] for body in bodies]
    return torch.tensor(dressed, dtype=torch.int64)


def _window(body: list[int], index: int, windows: int, wrapping: _Wrapping) -> tuple[list[int], list[int]]:
    """Ids and mask of the window at `index`."""
    room = wrapping.room
    if wrapping.cut_left and len(body) > windows * room:
        body = body[-windows * room :]
    text = [*wrapping.before, *body[index * room : (index + 1) * room], *wrapping.after]
    missing = wrapping.length - len(text)
    filling, seen, unseen = [wrapping.pad] * missing, [1] * len(text), [0] * missing
    if wrapping.pad_left:
        return [*filling, *text], [*unseen, *seen]
    return [*text, *filling], [*seen, *unseen]
