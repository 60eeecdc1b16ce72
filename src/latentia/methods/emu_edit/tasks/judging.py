"""Many edits scored: the mean of every measure, task by task, and the editors that need no learning."""

from collections.abc import Callable, Iterable

import numpy as np

from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.tasks.registry import TASKS, task_named
from latentia.methods.emu_edit.tasks.unseen import UNSEEN_TASKS

Editor = Callable[[Row], np.ndarray]
"""A row, of which only `image` and `instruction` may be looked at, → the edited picture uint8 (H, W, 3)."""

BASELINES: dict[str, Editor] = {
    "copy": lambda row: row.image,
    "oracle": lambda row: row.target,
    "grey": lambda row: np.full_like(row.image, 128),
}
"""The input unchanged, the right answer, and a flat grey."""


def filled(row: Row) -> np.ndarray:
    """The row's picture with the region of its edit, told by the right answer, filled in from around.

    By the biharmonic equation: about what can be known of a photograph behind a thing without having seen others.
    """
    from skimage.restoration import inpaint_biharmonic

    smooth = inpaint_biharmonic(row.image, row.mask, channel_axis=-1)
    return np.clip(smooth * 255 + 0.5, 0, 255).astype(np.uint8)


def score(row: Row, edited: np.ndarray) -> dict[str, float]:
    """The measures of one edit by its task; raises `UnknownChoiceError` for a row of an unknown task."""
    task = UNSEEN_TASKS[row.task] if row.task in UNSEEN_TASKS else task_named(row.task)
    return task.score(row, edited)


def judge(rows: Iterable[Row], editor: Editor) -> dict[str, dict[str, float]]:
    """Task → the mean of each measure over the rows that have it, and `n`, in the order of `TASKS`."""
    found: dict[str, dict[str, list[float]]] = {}
    numbers: dict[str, int] = {}
    for row in rows:
        numbers[row.task] = numbers.get(row.task, 0) + 1
        for name, value in score(row, editor(row)).items():
            found.setdefault(row.task, {}).setdefault(name, []).append(value)
    order = sorted(found, key=[*TASKS, *UNSEEN_TASKS].index)
    return {
        task: {"n": float(numbers[task]), **{name: float(np.mean(values)) for name, values in found[task].items()}}
        for task in order
    }
