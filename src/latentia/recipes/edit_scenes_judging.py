"""How well `edit-scenes` edits: every task on phrasings, objects and backgrounds that it never met, exactly judged."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentia.core.files import write_text_atomic
from latentia.core.rng import derive_seed
from latentia.methods.emu_edit.datasets import SceneRows, batch_of
from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.tasks.judging import BASELINES, filled, judge
from latentia.methods.emu_edit.tasks.registry import TASKS, tasks_of
from latentia.recipes.training_section import trained

if TYPE_CHECKING:
    from latentia.methods.emu_edit.pipeline import EmuEditPipeline
    from latentia.recipes.edit_scenes import EditScenes
    from latentia.recipes.recipe import Bench
    from latentia.training.phase import PhaseResult

Table = dict[str, dict[str, float]]

SCALES = ((1.0, 1.0), (1.5, 1.0), (2.5, 1.0), (1.5, 1.5))
"""Guidance scales (text, image) among which `select` rows choose; each beyond the first costs two forwards more."""

BETTER = 0.01
"""Other scales than (1, 1) must gain so much in mean success to be worth their time."""

CHUNK = 64
ASKED = {"region success": 0.85, "mask IoU": 0.8, "box IoU": 0.7, "PSNR outside": 30.0}


@dataclass
class Story:
    """Everything that the report shows.

    Attributes:
        table: task → measures of the editor; `copy` and `oracle` the same of the baselines.
        filled: the same of a baseline that is told the region of what it removes, and fills it in from around.
        scales: the guidance chosen, (text, image), and `tried`: mean success on `select` by scales.
        rows, edits, tasks: what was judged, what was made of it, and as which task.
        told: share of test rows whose task was predicted rightly; 1 where it is given.
        seconds: of one edit, alone.
    """

    recipe: EditScenes
    rows: list[Row]
    scales: tuple[float, float] = (1.0, 1.0)
    tried: dict[str, float] = field(default_factory=dict)
    edits: list[np.ndarray] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    table: Table = field(default_factory=dict)
    copy: Table = field(default_factory=dict)
    oracle: Table = field(default_factory=dict)
    filled: Table = field(default_factory=dict)
    told: float = 1.0
    seconds: float = 0.0
    predictor: dict[str, float] = field(default_factory=dict)
    phases: dict[str, dict[str, float]] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """The numbers that the issue asks for, as far as their tasks were trained."""
        region = [self.table[name] for name in tasks_of("region") if name in self.table]
        found = {"success": mean(self.table.values(), "success"), "gain": mean(self.table.values(), "gain")}
        if region:
            found["region success"] = mean(region, "success")
            found["PSNR outside"] = mean(region, "psnr_outside")
        if "segment" in self.table:
            found["mask IoU"] = self.table["segment"]["mask_iou"]
        if "detect" in self.table:
            found["box IoU"] = self.table["detect"]["box_iou"]
        return found

    def beaten(self) -> list[str]:
        """Tasks in which copying the input is at least as good, by success and by gain."""
        ours = ((name, found["success"], found["gain"]) for name, found in self.table.items())
        return [
            name
            for name, success, gain in ours
            if success <= self.copy[name]["success"] and gain <= self.copy[name]["gain"]
        ]


def mean(tables: Any, measure: str) -> float:
    """Mean over tasks of a measure, over those that have it."""
    return float(np.mean([found[measure] for found in tables if measure in found]))


def tell(recipe: EditScenes, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> Story:
    """Calibrate, save, judge and show; writes pipeline/, numbers.json, overview.png and report.html into `out`."""
    from latentia.methods.emu_edit.predictor_training import judged
    from latentia.recipes.edit_scenes_report import write_report

    for name in ("model", "text_encoder", "predictor"):
        if name in bench.parts:
            bench.parts[name].cpu().requires_grad_(False).eval()
    story = Story(recipe, test_rows(recipe, "test", recipe.judged))
    if "predictor" in bench.parts:
        report = judged(bench.parts["predictor"], recipe.tasks, seed=recipe.seed)
        story.predictor = {"n": report.n, "accuracy": report.accuracy, "calibration": report.calibration}
    calibrate(story, recipe.pipeline(bench))
    text, image = story.scales
    pipe = recipe.pipeline(bench, default_guidance_scale=text, default_image_guidance_scale=image)
    pipe.save_pretrained(out / "pipeline")
    judge_test(story, pipe)
    story.phases.update(trained(results))
    write_text_atomic(out / "numbers.json", json.dumps(as_json(story), indent=2) + "\n")
    write_report(story, out)
    return story


def test_rows(recipe: EditScenes, split: str, each: int) -> list[Row]:
    """`each` rows of every task of a split, task by task; the same for every seed of training."""
    sets = (SceneRows(split, each, recipe.image_size, derive_seed("judged", split), (name,)) for name in recipe.tasks)
    return [rows.row(i) for rows in sets for i in range(each)]


def tasks_for(recipe: EditScenes, pipe: EmuEditPipeline, rows: Sequence[Row]) -> list[str]:
    """As which task each row is edited, by the recipe's `task_embedding`."""
    if recipe.task_embedding == "none":
        return ["none"] * len(rows)
    if recipe.task_embedding == "true" or pipe.task_predictor is None:
        return [row.task for row in rows]
    return [guess.task for guess in pipe.task_predictor.predict([row.instruction for row in rows])]


def edit(
    recipe: EditScenes,
    pipe: EmuEditPipeline,
    rows: Sequence[Row],
    tasks: Sequence[str],
    scales: tuple[float, float],
    steps: int,
) -> list[np.ndarray]:
    """The edited pictures, uint8 (H, W, 3); each from noise of its own."""
    from PIL import Image

    made: Any = pipe(
        [Image.fromarray(row.image) for row in rows],
        [row.instruction for row in rows],
        task=list(tasks),
        num_inference_steps=steps,
        guidance_scale=scales[0],
        image_guidance_scale=scales[1],
        seed=recipe.seed,
        sample_indices=list(range(len(rows))),
        size=recipe.image_size,
        max_batch=CHUNK,
    )
    return [np.asarray(picture) for picture in made.images]


def measured(rows: Sequence[Row], edits: Sequence[np.ndarray]) -> Table:
    """Task → mean of each measure."""
    made: Iterator[np.ndarray] = iter(edits)
    return judge(rows, lambda row: next(made))


def calibrate(story: Story, pipe: EmuEditPipeline) -> None:
    """Choose the guidance scales on `select` rows, five steps each."""
    recipe = story.recipe
    if not recipe.calibrated or not recipe.objective.dropout:
        return
    rows = test_rows(recipe, "select", recipe.calibrated)
    tasks, steps = tasks_for(recipe, pipe, rows), min(5, recipe.sampling_steps)
    found = {
        scales: mean(measured(rows, edit(recipe, pipe, rows, tasks, scales, steps)).values(), "success")
        for scales in SCALES
    }
    story.tried = {f"{text:g}, {image:g}": value for (text, image), value in found.items()}
    best = max(SCALES, key=lambda scales: found[scales])
    story.scales = best if found[best] >= found[SCALES[0]] + BETTER else SCALES[0]


def judge_test(story: Story, pipe: EmuEditPipeline) -> None:
    """Edit and measure the test rows, and time one edit."""
    recipe, rows = story.recipe, story.rows
    story.tasks = tasks_for(recipe, pipe, rows)
    if recipe.task_embedding == "predicted":
        story.told = float(np.mean([row.task == task for row, task in zip(rows, story.tasks, strict=True)]))
    story.edits = edit(recipe, pipe, rows, story.tasks, story.scales, recipe.sampling_steps)
    story.table = measured(rows, story.edits)
    story.copy, story.oracle = judge(rows, BASELINES["copy"]), judge(rows, BASELINES["oracle"])
    story.filled = judge([row for row in rows if row.task == "remove"], filled)
    started = time.perf_counter()
    edit(recipe, pipe, rows[:1], story.tasks[:1], story.scales, recipe.sampling_steps)
    story.seconds = time.perf_counter() - started


@torch.no_grad()
def preview(recipe: EditScenes, bench: Bench) -> torch.Tensor:
    """Input, edit in two steps and target of eight select rows, side by side (8, 3, S, 3·S) in [-1, 1]."""
    rows = list(itertools.islice(itertools.cycle(test_rows(recipe, "select", 1)), 8))
    pipe = recipe.pipeline(bench)
    tasks = ["none"] * 8 if recipe.task_embedding == "none" else [row.task for row in rows]
    made = torch.from_numpy(np.stack(edit(recipe, pipe, rows, tasks, (1.0, 1.0), 2))).movedim(-1, 1)
    batch = batch_of(rows)
    return torch.cat([batch["source"], made.float() / 127.5 - 1, batch["x"]], dim=3)


def as_json(story: Story) -> dict[str, Any]:
    """numbers.json: every number with its n and its seed, baselines beside it."""
    recipe = story.recipe
    reached = story.means()
    return {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "threads": torch.get_num_threads(),
        "split": "test",
        "sampling_steps": recipe.sampling_steps,
        "guidance": {"text": story.scales[0], "image": story.scales[1], "tried": story.tried},
        "asked": {name: value for name, value in ASKED.items() if name in reached},
        "reached": reached,
        "not_better_than_copy": story.beaten(),
        "tasks": {
            name: {**found, "group": TASKS[name].group, "copy": story.copy[name], "oracle": story.oracle[name]}
            for name, found in story.table.items()
        },
        "filled_in_where_told": story.filled,
        "task_told_rightly": story.told,
        "predictor": story.predictor,
        "seconds_of_one_edit": story.seconds,
        "training": story.phases,
    }
