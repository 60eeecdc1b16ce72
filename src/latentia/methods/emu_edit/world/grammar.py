"""Phrasings: patterns with alternatives, unfolded to all their sentences and split so that some are never trained on.

A pattern such as `(|please )(remove|delete) {the}` unfolds to every combination; a sentence with its slots is a frame.
Of each kind of instruction about a tenth of the frames belongs to `test` and a tenth to `select`, chosen so that every
word of theirs is also met in training: what is held out is the combination, not the vocabulary.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import product
from random import Random

from latentia.errors import check_choice
from latentia.methods.emu_edit.world.phrasings import PATTERNS
from latentia.methods.emu_edit.world.vocabulary import SPLITS

HELD_OUT = 0.1
"""Share of the frames of a kind that each of `select` and `test` owns, at least one."""

_GROUP = re.compile(r"\(([^()]*)\)")
_VERBS = re.compile(r"[a-z]+")


def unfold(pattern: str) -> tuple[str, ...]:
    """All sentences of a pattern; groups in brackets hold alternatives split by `|`, and do not nest."""
    parts = _GROUP.split(pattern)
    choices = [part.split("|") if i % 2 else [part] for i, part in enumerate(parts)]
    return tuple(" ".join("".join(chosen).split()) for chosen in product(*choices))


def split_frames(frames: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Frames by split. The choice depends on the frames alone; every word of a held-out frame is in a training one."""
    shuffled = sorted(dict.fromkeys(frames), key=_digest)
    quota = max(1, round(HELD_OUT * len(shuffled)))
    uses = Counter(word for frame in shuffled for word in set(frame.split()))
    held: list[str] = []
    for frame in shuffled:
        words = set(frame.split())
        if len(held) < 2 * quota and all(uses[word] > 1 for word in words):
            held.append(frame)
            uses.subtract(words)
    kept = tuple(frame for frame in shuffled if frame not in held)
    return {"train": kept, "select": tuple(held[1::2]), "test": tuple(held[::2])}


@lru_cache(maxsize=512)
def frames(kind: str, split: str) -> tuple[str, ...]:
    """The frames of a kind of instruction, such as `remove` or `local/recolour`, that belong to a split."""
    check_choice("split", split, SPLITS)
    check_choice("kind of instruction", kind, PATTERNS)
    return split_frames([frame for pattern in PATTERNS[kind] for frame in unfold(pattern)])[split]


def say(kind: str, split: str, rng: Random, **slots: str) -> str:
    """An instruction of a kind in one of the split's phrasings."""
    return rng.choice(frames(kind, split)).format_map(slots)


def kinds() -> tuple[str, ...]:
    """All kinds of instructions."""
    return tuple(PATTERNS)


def words_of(texts: Iterable[str]) -> set[str]:
    """All words of some texts, slots left out."""
    return {word for text in texts for word in _VERBS.findall(re.sub(r"\{[^}]*\}", " ", text.lower()))}


def _digest(frame: str) -> bytes:
    return hashlib.blake2b(frame.encode(), digest_size=8).digest()
