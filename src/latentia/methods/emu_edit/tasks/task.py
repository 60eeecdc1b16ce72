"""What a task is: a name, how its rows are made, how an edit is scored."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import numpy as np

from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.world.render import World

GROUPS = ("region", "free-form", "vision")

Make = Callable[[Random, World, str], Row]
"""(rng, world, split) → a row; raises `Rejected` when the draw does not fulfil what rows must."""

Score = Callable[[Row, np.ndarray], dict[str, float]]
"""(row, edited picture uint8 (H, W, 3)) → measures by name.

Every task gives `success` (1 or 0) and `gain` in [0, 1]; tasks with a region also `psnr_outside` in dB; others of their
own. The target itself scores success 1 and gain 1, the input unchanged success 0 and gain 0.
"""


@dataclass(frozen=True, slots=True)
class Task:
    """One task. `group` is one of `GROUPS`; `kinds` are its kinds of instruction in the grammar."""

    name: str
    group: str
    kinds: tuple[str, ...]
    make: Make
    score: Score
