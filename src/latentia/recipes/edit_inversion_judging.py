"""A learned task judged: by exact scoring on held-out rows, beside where it started, no task, and the copied input."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from latentia.core.files import write_text_atomic
from latentia.methods.emu_edit.sheet import contact_sheet
from latentia.methods.emu_edit.tasks.judging import BASELINES, judge
from latentia.methods.emu_edit.tasks.registry import TASKS
from latentia.methods.emu_edit.tasks.scoring import measures
from latentia.methods.emu_edit.tasks.unseen import UNSEEN_TASKS
from latentia.recipes.editing import unsure_quietly
from latentia.recipes.report import Report

if TYPE_CHECKING:
    from latentia.methods.emu_edit.pipeline import EmuEditPipeline
    from latentia.methods.emu_edit.rows import Row
    from latentia.recipes.edit_inversion import EditInversion

MOST = 32
"""Pictures that go through a network at once."""
SHOWN = 8
MEASURES = ("success", "gain", "psnr", "psnr_outside", "mask_iou", "line_iou", "box_iou")
Numbers = dict[str, float]


def edited(
    pipe: EmuEditPipeline, rows: Sequence[Row], task: Any = None, seed: int = 0, **options: Any
) -> list[np.ndarray]:
    """The pipeline's edits of the rows, uint8 (H, W, 3) each; row i is drawn from (seed, i).

    `task`: None predicts each row's; `own` tells it; anything else goes to all, as the pipeline takes it.
    """
    tasks = [row.task for row in rows] if task == "own" else task
    made: list[np.ndarray] = []
    for start in range(0, len(rows), MOST):
        some = rows[start : start + MOST]
        with unsure_quietly():
            out: Any = pipe(
                [Image.fromarray(row.image) for row in some],
                [row.instruction for row in some],
                tasks[start : start + MOST] if isinstance(tasks, list) else tasks,
                seed=seed,
                sample_indices=range(start, start + len(some)),
                **options,
            )
        made += [np.asarray(picture) for picture in out.images]
    return made


def scored(rows: Sequence[Row], pictures: Iterable[np.ndarray]) -> dict[str, Numbers]:
    """Task → the mean of each measure over its rows, given one edited picture a row.

    Tasks of one's own have no exact score, but what a target can tell: gain, PSNR, L1.
    """
    made = iter(pictures)
    if all(row.task in TASKS or row.task in UNSEEN_TASKS for row in rows):
        return judge(rows, lambda row: next(made))
    found = [measures(row, picture) for row, picture in zip(rows, made, strict=True)]
    names = [name for name in found[0] if all(name in each for each in found)]
    return {rows[0].task: {"n": len(rows), **{name: float(np.mean([e[name] for e in found])) for name in names}}}


def tell(recipe: EditInversion, pipe: EmuEditPipeline, start: Any, told: Mapping[str, Any], out: Path) -> Numbers:
    """Judge a learned task and write numbers.json and report.html into `out`; returns the learned task's numbers.

    Args:
        recipe: the recipe.
        pipe: the finished editor, which knows the task by its name.
        start: what the inversion started from, as `pipe` takes a task; None where it did not start from one.
        told: further plain values for numbers.json.
        out: folder.
    """
    task = recipe.task
    data = recipe.rows(pipe, "test", recipe.judged)
    rows = [data.row(i) for i in range(len(data))]
    how = {"seed": recipe.seed, "num_inference_steps": recipe.sampling_steps}
    pictures = {"learned": edited(pipe, rows, task, **how)}
    if start is not None:
        pictures |= {"start": edited(pipe, rows, start, **how), "no task": edited(pipe, rows, "none", **how)}
    pictures["copy"] = [BASELINES["copy"](row) for row in rows]
    numbers = {name: scored(rows, made)[task] for name, made in pictures.items()}
    where = "held-out pictures" if recipe.data is None else "of the pictures that it was learned from"
    record = {"task": task, "mode": recipe.mode, "examples": recipe.examples, "seed": recipe.seed, **told}
    record |= {"n": len(rows), "numbers": numbers}
    write_text_atomic(out / "numbers.json", json.dumps(record, indent=1) + "\n")
    page = Report(f"Task inversion: {task}", sentence(recipe, told))
    page.section("Judged by exact scoring", f"{len(rows)} {where}, {recipe.sampling_steps} steps.")
    page.table(["", *MEASURES], [[name, *cells(found)] for name, found in numbers.items()], best=[0])
    page.section("Input, edit, target")
    page.pictures([(sheet(rows, pictures["learned"]), f"the first {min(SHOWN, len(rows))} of them")])
    page.write(out / "report.html")
    return numbers["learned"]


def sentence(recipe: EditInversion, told: Mapping[str, Any]) -> str:
    """What was learned, from what."""
    rows = "1 example" if recipe.examples == 1 else f"{recipe.examples:,} examples"
    modes = {
        "invert": f"One task vector of {told['learned']:,} numbers, learned from {rows} with everything else frozen, "
        f"started from {told.get('start')}.",
        "finetune": f"All {told['learned']:,} weights of the editor, trained further on {rows}.",
        "scratch": f"An expert of {told['learned']:,} weights, trained from scratch on {rows}.",
    }
    return modes[recipe.mode]


def cells(numbers: Mapping[str, float]) -> list[str]:
    """One line of the table."""
    return [f"{numbers[name]:.3f}" if name in numbers else "" for name in MEASURES]


def sheet(rows: Sequence[Row], pictures: Sequence[np.ndarray]) -> Image.Image:
    """The first rows beside their edits, as a picture."""
    count = min(SHOWN, len(rows))
    return Image.fromarray(contact_sheet(rows[:count], pictures[:count], columns=2))
