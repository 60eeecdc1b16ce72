"""The page of `edit-scenes`: what was asked, what came out, what it should have been, and the numbers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from latentia.core.files import write_atomic
from latentia.methods.emu_edit.tasks.registry import tasks_of
from latentia.methods.emu_edit.tasks.task import GROUPS
from latentia.recipes.report import Report
from latentia.recipes.training_section import tell_training

if TYPE_CHECKING:
    from latentia.recipes.edit_scenes_judging import Story

OWN = {"mask_iou": "mask IoU", "box_iou": "box IoU", "read": "read", "there": "there", "gone": "gone"}
"""Measures that belong to a task, and what they are called."""

PARTS = {"words": ("found",), "editor": ("error",)}
SHOWN = 3


def write_report(story: Story, out: Path) -> None:
    """Write report.html and overview.png into `out`."""
    overview = sheet(story, 1)
    write_atomic(out / "overview.png", lambda beside: overview.save(beside, format="PNG"))
    page = Report("One editor for many tasks", lead(story))
    recipe = story.recipe
    page.section(
        "Asked and done",
        "From left to right: the picture, what the editor made of it, and the right answer. Phrasings, pairs of shape "
        "and colour, and the photographs behind are kept from training; the photographs of this split are used for "
        "reporting alone. The first rows of each task, not chosen.",
    )
    for group in GROUPS:
        names = [name for name in tasks_of(group) if name in story.table]
        if names:
            page.section({"region": "Regions", "free-form": "Free form", "vision": "Vision"}[group])
        for name in names:
            page.pictures(shown(story, name))
    numbers(page, story)
    page.section(
        "How it was done",
        f"{recipe.sampling_steps} steps of DDIM, guidance {story.scales[0]:g} for the text and {story.scales[1]:g} for "
        f"the picture, chosen on the split `select`: mean success by scales "
        + "; ".join(f"({scales}) {value:.3f}" for scales, value in story.tried.items())
        + f". One edit takes {story.seconds:.2f} s."
        if story.tried
        else f"{recipe.sampling_steps} steps of DDIM, no guidance. One edit takes {story.seconds:.2f} s.",
    )
    tell_training(page, out, PARTS, story.phases)
    page.write(out / "report.html")


def lead(story: Story) -> str:
    """The result in one sentence."""
    reached = story.means()
    minutes = sum(values["seconds"] for values in story.phases.values()) / 60
    said = [f"{name} {value:.3g}" for name, value in reached.items()]
    return (
        f"Trained from scratch in {minutes:.0f} minutes on rows of a world in which every answer is known, "
        f"{len(story.table)} tasks at {story.recipe.image_size}×{story.recipe.image_size}. On the test split, "
        f"{story.recipe.judged} rows a task: {', '.join(said)}."
    )


def strip(story: Story, index: int, scale: int) -> Image.Image:
    """Input, edit and target of one row."""
    row = story.rows[index]
    gap = np.full((row.image.shape[0], 2, 3), 255, dtype=np.uint8)
    wide = np.concatenate([row.image, gap, story.edits[index], gap, row.target], axis=1)
    picture = Image.fromarray(wide)
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def shown(story: Story, task: str) -> list[tuple[Image.Image, str]]:
    """The first rows of a task with their instructions."""
    places = [i for i, row in enumerate(story.rows) if row.task == task][:SHOWN]
    notes = ["" if story.tasks[i] in (task, "none") else f" (taken for {story.tasks[i]})" for i in places]
    return [
        (strip(story, i, 2), f"{task}: “{story.rows[i].instruction}”{note}")
        for i, note in zip(places, notes, strict=True)
    ]


def sheet(story: Story, scale: int, each: int = 3) -> Image.Image:
    """All tasks on one picture, one a line."""
    lines = []
    for task in story.table:
        places = [i for i, row in enumerate(story.rows) if row.task == task]
        strips = [np.asarray(strip(story, places[k % len(places)], scale)) for k in range(each)]
        gap = np.full((strips[0].shape[0], 6, 3), 255, dtype=np.uint8)
        lines.append(np.concatenate([part for one in strips for part in (one, gap)], axis=1))
    return Image.fromarray(np.concatenate(lines, axis=0))


def numbers(page: Report, story: Story) -> None:
    """The tables: asked and reached, and task by task beside the baselines."""
    from latentia.recipes.edit_scenes_judging import ASKED

    reached = story.means()
    rows = [[name, f"{ASKED[name]:g}", f"{reached[name]:.3f}"] for name in ASKED if name in reached]
    if rows:
        told = "Means over the region tasks, and over the rows of `segment` and `detect`."
        page.section("Reached", told, *hidden(story))
        page.table(["number", "asked", "reached"], rows)
    beaten = story.beaten()
    page.section(
        "Task by task",
        "Success: the edit reads as what was ordered (nearest of all answers that might have been, by squared error), "
        "at most a quarter of the squared error of copying is left, and outside the edit there is at least 20 dB. "
        "Gain: 1 − squared error over that of copying the input, in the region of the edit. Copying has success 0 and "
        "gain 0 everywhere, the exact oracle 1 and 1. "
        + (f"Not better than a copy: {', '.join(beaten)}." if beaten else "Better than a copy in every task.")
        + f" Tasks were told from the words rightly in {story.told:.1%} of the rows."
        * (story.recipe.task_embedding == "predicted"),
    )
    columns = ["task", "n", "success", "gain", "PSNR outside", "its own", "copy: PSNR", "PSNR"]
    page.table(columns, [table_row(story, name) for name in story.table])


def hidden(story: Story) -> list[str]:
    """How well what a thing hides can be guessed at all, if something was removed."""
    if not story.filled:
        return []
    known, ours = story.filled["remove"], story.table["remove"]
    return [
        "What a thing hides in a photograph that was never seen can only be guessed. Told the exact region and filling "
        f"it in from around (biharmonic equation), `remove` succeeds in {known['success']:.2f} and the thing is read "
        f"as gone in {known['gone']:.2f}. The editor, which is told nothing, has {ours['success']:.2f} and "
        f"{ours['gone']:.2f}."
    ]


def table_row(story: Story, name: str) -> list[str]:
    """One task."""
    found = story.table[name]
    own = next((f"{OWN[key]} {found[key]:.3f}" for key in OWN if key in found), "")
    outside = f"{found['psnr_outside']:.1f}" if "psnr_outside" in found else ""
    copied = story.copy[name]["psnr"]
    return [
        name,
        f"{found['n']:.0f}",
        f"{found['success']:.3f}",
        f"{found['gain']:.3f}",
        outside,
        own,
        f"{copied:.1f}",
        f"{found['psnr']:.1f}",
    ]
