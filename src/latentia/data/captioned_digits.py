"""Handwritten digits, one or two on a canvas, with captions in many phrasings: text-to-image in a nutshell.

Two things are kept from training, so that understanding can be told from remembering: whole phrasings (`held_out`
of `SINGLE_PHRASINGS` and `PAIR_PHRASINGS`), and ten ordered pairs (`HELD_OUT_PAIRS`; their mirrors are trained on).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latentia.core.arguments import check_count
from latentia.core.rng import derive_seed
from latentia.data.dataset import TensorDataset, check_size
from latentia.data.digits import NUM_CLASSES, digits
from latentia.errors import InputError, check_choice

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NO_DIGIT = -1

PLACES = {"left": 0, "middle": 1, "right": 2}
"""Where a digit may stand: its first column, in halves of its width."""

HELD_OUT_PAIRS = tuple((left, (left + 3) % NUM_CLASSES) for left in range(NUM_CLASSES))
"""Ordered pairs that no training picture shows: each digit once on the left and once on the right."""

TRAINED_PAIRS = tuple(
    (left, right) for left in range(NUM_CLASSES) for right in range(NUM_CLASSES) if (left, right) not in HELD_OUT_PAIRS
)

OPENERS = (
    "",
    "draw ",
    "please draw ",
    "show me ",
    "this is ",
    "here: ",
    "a picture of ",
    "a drawing of ",
    "write ",
    "please write ",
    "an image of ",
    "I see ",
)

SINGLE = (
    "{left}",
    "a {left}",
    "just a {left}",
    "the digit {left}",
    "the number {left}",
    "a single {left}",
    "only a {left}",
    "a handwritten {left}",
    "one digit: {left}",
)

PAIR = (
    "{left}{right}",
    "the number {left}{right}",
    "{left} and {right}",
    "{left}, {right}",
    "the digits {left} and {right}",
    "two digits: {left} and {right}",
    "a {left} and a {right}",
    "a {left} next to a {right}",
    "a {left} beside a {right}",
    "a {left} followed by a {right}",
    "a {left}, then a {right}",
    "a {left} and then a {right}",
    "a {left} before a {right}",
    "a {right} after a {left}",
    "a {left} to the left of a {right}",
    "a {right} to the right of a {left}",
    "a {left} on the left and a {right} on the right",
    "a {right} on the right and a {left} on the left",
)
"""What may follow an opener; `left` and `right` are places in the picture, whatever their order in the text."""


def phrasings_of(cores: Sequence[str], phrasings: str) -> tuple[str, ...]:
    """Openers joined with cores: a fifth of the combinations is `held_out`, the others are `train`.

    So every opener and every core is met in training, each core by itself too, but no held-out combination.
    """
    return tuple(
        opener + core
        for i, opener in enumerate(OPENERS)
        for j, core in enumerate(cores)
        if (i > 0 and (i + j) % 5 == 0) is (phrasings == "held_out")
    )


PHRASINGS = ("train", "held_out")
SINGLE_PHRASINGS = {name: phrasings_of(SINGLE, name) for name in PHRASINGS}
PAIR_PHRASINGS = {name: phrasings_of(PAIR, name) for name in PHRASINGS}
CONTENTS = ("any", "single", "pair", "held_out_pair")
SINGLE_SHARE = 0.3
"""Share of single digits among `any`."""


@dataclass(frozen=True)
class CaptionedDigits:
    """Pictures and what they show.

    Attributes:
        x: (N, 1, size, 2·size) in [-1, 1].
        digits: (N, 2) int64, left and right; a single digit is (digit, `NO_DIGIT`).
        captions: N texts.
        templates: the phrasing of each.
    """

    x: torch.Tensor
    digits: torch.Tensor
    captions: tuple[str, ...]
    templates: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.captions)

    def tokenized(self, input_ids: torch.Tensor) -> TensorDataset:
        """`{"x", "digits", "input_ids"}`, the captions as tokens (N, L) int64."""
        return TensorDataset({"x": self.x, "digits": self.digits, "input_ids": input_ids})


def captioned_digits(
    count: int,
    split: str = "train",
    phrasings: str = "train",
    content: str = "any",
    size: int = 16,
    seed: int = 0,
) -> CaptionedDigits:
    """`count` pictures of one or two real digits, with captions; a function of the arguments alone.

    The canvas is twice as wide as high. A single digit stands in the middle, between paper (-1); two fill it. Digits,
    pairs, scans and phrasings are drawn evenly; words or numerals, articles, capitals and full stops each have a share.

    Args:
        count: number of pictures.
        split: `train`, `test` or `all` scans, as in `digits`.
        phrasings: `train`, or `held_out` ones that `train` never uses.
        content: `single` digits, any `pair` but `HELD_OUT_PAIRS`, only those (`held_out_pair`), or, for training,
            `any` of the first two.
        size: height of the canvas, and side of a digit, in pixels; even.
        seed: of all draws.

    Raises `UnknownChoiceError` or `InputError` for other arguments.
    """
    check_count("count", count)
    check_choice("phrasings", phrasings, PHRASINGS)
    check_choice("content", content, CONTENTS)
    if check_size(size) % 2:
        raise InputError(f"size must be even, so that one digit can stand in the middle, got {size}")
    rng = np.random.default_rng(derive_seed("captioned_digits", split, phrasings, content, seed))
    shown = draw_digits(rng, count, content)
    captions, templates = write(rng, shown, phrasings)
    return CaptionedDigits(draw_pictures(rng, shown, split, size), torch.from_numpy(shown), captions, templates)


def draw_digits(rng: np.random.Generator, count: int, content: str) -> np.ndarray:
    """(count, 2) int64 digits to show; see `CaptionedDigits.digits`."""
    pairs = np.array(HELD_OUT_PAIRS if content == "held_out_pair" else TRAINED_PAIRS, dtype=np.int64)
    shown = pairs[rng.integers(len(pairs), size=count)]
    share = {"any": SINGLE_SHARE, "single": 1.0}.get(content, 0.0)
    single = rng.random(count) < share
    shown[single, 0] = rng.integers(NUM_CLASSES, size=int(single.sum()))
    shown[single, 1] = NO_DIGIT
    return shown


def draw_pictures(rng: np.random.Generator, shown: np.ndarray, split: str, size: int) -> torch.Tensor:
    """Canvases (N, 1, size, 2·size) with a scan drawn for each digit to show."""
    scans = digits(split, size).tensors
    members = [np.flatnonzero(scans["label"].numpy() == label) for label in range(NUM_CLASSES)]
    lengths = np.array([len(rows) for rows in members])
    table = np.zeros((NUM_CLASSES, lengths.max()), dtype=np.int64)
    for label, members_of in enumerate(members):
        table[label, : len(members_of)] = members_of
    chosen = torch.from_numpy(table[shown, rng.integers(lengths[shown])])  # of NO_DIGIT some row, never drawn
    x = torch.full((len(shown), 1, size, 2 * size), -1.0)
    single = torch.from_numpy(shown[:, 1] == NO_DIGIT)
    for rows, column, place in ((single, 0, "middle"), (~single, 0, "left"), (~single, 1, "right")):
        start = PLACES[place] * size // 2
        x[rows, :, :, start : start + size] = scans["x"][chosen[rows, column]]
    return x


def look_at(x: torch.Tensor, place: str) -> torch.Tensor:
    """The digit at one of `PLACES` of canvases: (N, C, S, 2·S) → (N, C, S, S)."""
    check_choice("place", place, PLACES)
    size = x.shape[-2]
    start = PLACES[place] * size // 2
    return x[..., start : start + size]


def write(rng: np.random.Generator, shown: np.ndarray, phrasings: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A caption for each row of `shown`, and the template it was made from."""
    texts, used = [], []
    draws = rng.random((len(shown), 5)).tolist()
    for (left, right), (which, words, article, capital, stop) in zip(shown.tolist(), draws):
        templates = (SINGLE_PHRASINGS if right == NO_DIGIT else PAIR_PHRASINGS)[phrasings]
        used.append(templates[int(which * len(templates))])
        text = phrase(used[-1], (left, right), words < 0.5, article < 0.3)
        text = text[0].upper() + text[1:] if capital < 0.3 else text
        texts.append(f"{text}." if stop < 0.2 else text)
    return tuple(texts), tuple(used)


def phrase(template: str, shown: Sequence[int], words: bool, definite: bool = False) -> str:
    """The template with its digits as words or numerals (always numerals where they stand together).

    A or an as fits, or `the` if `definite`.
    """
    names = WORDS if words and "}{" not in template else tuple(map(str, range(NUM_CLASSES)))
    left, right = shown[0], shown[1] if len(shown) > 1 else NO_DIGIT
    template = re.sub(r"\ba {", "the {", template) if definite else template
    text = template.format(left=names[left], right="" if right == NO_DIGIT else names[right])
    return re.sub(r"\ba (?=eight|8)", "an ", text)
