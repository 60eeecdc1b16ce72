"""The stages of `edit-study`: each takes the recipe and the bench, and returns numbers that JSON holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from latentia.core.files import read_json
from latentia.core.rng import derive_seed
from latentia.methods.emu_edit.datasets import SceneRows
from latentia.methods.emu_edit.sheet import contact_sheet
from latentia.methods.emu_edit.tasks.judging import BASELINES
from latentia.methods.emu_edit.thresholding import Thresholding
from latentia.recipes import edit_study_runs as sub
from latentia.recipes import edit_study_turns as turns
from latentia.recipes.edit_inversion_judging import edited, scored
from latentia.recipes.edit_study import UNSEEN
from latentia.recipes.edit_study_baselines import sdedit
from latentia.recipes.study import FOLDER

if TYPE_CHECKING:
    from latentia.methods.emu_edit.pipeline import EmuEditPipeline
    from latentia.methods.emu_edit.rows import Row
    from latentia.recipes.edit_study import EditStudy
    from latentia.recipes.recipe import Bench

Numbers = dict[str, Any]
PICTURES = "pictures"
AVERAGED = ("success", "gain", "psnr_outside")
WATCHED = ("texture", "style")
"""The tasks that the article's curves against the number of tasks are about."""
SHOWN = 6
SDEDIT_STEPS = 10
"""It starts between noise and picture, which takes several."""


def folder_of(bench: Bench) -> Path:
    """The run's folder."""
    assert bench.out is not None
    return bench.out


def main_editor(study: EditStudy, bench: Bench) -> EmuEditPipeline:
    """The editor of `main`."""
    return sub.open_editor(sub.main_folder(study, folder_of(bench)), bench.device)


def compared(study: EditStudy, bench: Bench, name: str) -> EmuEditPipeline:
    """One of the editors that are compared, trained if need be."""
    return sub.open_editor(sub.train_editor(study, name, folder_of(bench)), bench.device)


def known_tasks(study: EditStudy, pipe: EmuEditPipeline) -> tuple[str, ...]:
    """The tasks that an editor was trained for: its predictor knows them."""
    return sub.learned(study) if pipe.task_predictor is None else tuple(pipe.task_predictor.tasks)


@lru_cache(maxsize=64)
def held_out(task: str, count: int, size: int, seed: int, split: str) -> tuple[Row, ...]:
    """Rows of one task that nothing was trained on."""
    data = SceneRows(split, count, size, derive_seed("edit study", seed) % 2**31, [task])
    return tuple(data.row(i) for i in range(count))


def rows_of(
    study: EditStudy, pipe: EmuEditPipeline, tasks: Sequence[str], split: str = "test", count: int | None = None
) -> list[Row]:
    """Held-out rows of several tasks, in an editor's size."""
    size = pipe.default_size[0]
    each = study.sized().judged if count is None else count
    return [row for task in tasks for row in held_out(task, each, size, study.seed, split)]


def judged(
    study: EditStudy, pipe: EmuEditPipeline, tasks: Sequence[str], told: Any, rows: Sequence[Row] = (), **options: Any
) -> Numbers:
    """What an editor makes of held-out rows: task → measures. `told`: see `edited`."""
    rows = rows or rows_of(study, pipe, tasks)
    how = {"num_inference_steps": study.sized().sampling_steps, "seed": study.seed, **options}
    return scored(rows, edited(pipe, rows, told, **how))


def means(numbers: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, float]:
    """Means over tasks of success, gain and, where tasks have it, PSNR outside."""
    found = {}
    for name in AVERAGED:
        values = [numbers[task][name] for task in tasks if task in numbers and name in numbers[task]]
        if values:
            found[name] = float(np.mean(values))
    return found


def summary(numbers: Mapping[str, Any], study: EditStudy) -> Numbers:
    """Numbers of all tasks, their means, and the means over the region tasks."""
    region = [task for task in sub.groups()["region"] if task in numbers]
    return {"tasks": numbers, "all": means(numbers, list(numbers)), "region": means(numbers, region)}


# The stages ----------------------------------------------------------------------------------------------------


def main(study: EditStudy, bench: Bench) -> Numbers:
    """The editor by itself: every task it knows, told it and guessing it."""
    pipe = main_editor(study, bench)
    tasks = known_tasks(study, pipe)
    rows = rows_of(study, pipe, tasks)
    found = {"predicted": summary(judged(study, pipe, tasks, None, rows), study)}
    found["true"] = summary(judged(study, pipe, tasks, "own", rows), study)
    right = None
    if pipe.task_predictor is not None:
        guesses = pipe.task_predictor.predict([row.instruction for row in rows])
        right = float(np.mean([guess.task == row.task for guess, row in zip(guesses, rows, strict=True)]))
    few = [row for task in tasks for row in held_out(task, 2, pipe.default_size[0], study.seed, "test")]
    made = edited(pipe, few, "own", seed=study.seed, num_inference_steps=study.sized().sampling_steps)
    keep(bench, "main", contact_sheet(few, made, columns=4))
    return {"n": len(rows), "parameters": pipe.model.num_parameters(), "told right": right, **found}


def task_embedding(study: EditStudy, bench: Bench) -> Numbers:
    """Without a task embedding; with one, the task predicted or true: several seeds of each."""
    found: Numbers = {"none": [], "predicted": [], "true": []}
    for i in range(study.seeds):
        with_it, without = compared(study, bench, f"told-{i}"), compared(study, bench, f"untold-{i}")
        tasks = sub.learned(study)
        found["none"].append(summary(judged(study, without, tasks, "none"), study))
        found["predicted"].append(summary(judged(study, with_it, tasks, None), study))
        found["true"].append(summary(judged(study, with_it, tasks, "own"), study))
    return found


def vision(study: EditStudy, bench: Bench) -> Numbers:
    """With and without the vision tasks, judged on region tasks; without them once as long, once as many edits."""
    tasks = [task for task in sub.groups()["region"] if task in sub.learned(study)]
    names = {"with": "told", "without": "no-vision", "without, as many edits": "no-vision-short"}
    found: Numbers = {label: [] for label in names}
    for i in range(study.seeds):
        for label, name in names.items():
            found[label].append(summary(judged(study, compared(study, bench, f"{name}-{i}"), tasks, "own"), study))
    return found


def experts(study: EditStudy, bench: Bench) -> Numbers:
    """One editor for all tasks against one for each, which together are trained as long."""
    tasks = sub.learned(study)
    together = judged(study, compared(study, bench, "told-0"), tasks, "own")
    alone: Numbers = {}
    for task in tasks:
        alone |= judged(study, compared(study, bench, f"expert-{task}"), [task], "own")
    return {"multi-task": together, "experts": alone, "share": 1 / len(tasks)}


def number_of_tasks(study: EditStudy, bench: Bench) -> Numbers:
    """The tasks of the article's two curves, from editors that learn fewer and fewer others."""
    watched = [task for task in WATCHED if task in sub.learned(study)]
    sets, found = sub.fewer(study), []
    for tasks in sets:
        name = "told-0" if len(tasks) == len(sets[0]) else f"tasks-{len(tasks)}"
        numbers = judged(study, compared(study, bench, name), watched, "own")
        left = [task for task in sets[0] if task not in tasks]
        found.append({"left out": left, "removed": len(left), "tasks": numbers, "mean": means(numbers, watched)})
    return {"watched": watched, "sets": found}


def inversion(study: EditStudy, bench: Bench) -> Numbers:
    """Unseen tasks, each learned as a vector from more and more examples, beside fine-tuning and an expert."""
    size, base = study.sized(), sub.pipeline_folder(sub.main_folder(study, folder_of(bench)))
    found: Numbers = {}
    for task in UNSEEN:
        plan = [("invert", count) for count in size.counts]
        plan += [("finetune", max(size.counts)), ("scratch", size.expert_examples)]
        rows: list[Numbers] = []
        for mode, count in plan:
            folder = folder_of(bench) / FOLDER / "inversions" / f"{task}-{mode}-{count}"
            if not (folder / "numbers.json").is_file():
                sub.go_on(sub.inversion_run(study, base, task, mode, count), folder)
            told = read_json(folder / "numbers.json")
            rows.append(
                {
                    "mode": mode,
                    "examples": count,
                    "steps": told["steps"],
                    "seconds": told["seconds"],
                    "start": told.get("start"),
                    "numbers": told["numbers"]["learned"],
                    "before": told["numbers"].get("start"),
                    "n": told["n"],
                }
            )
        found[task] = rows
    return found


def thresholding(study: EditStudy, bench: Bench) -> Numbers:
    """Ten turns without the rule, with it at the article's α, and at an α calibrated on other pictures."""
    pipe, size = main_editor(study, bench), study.sized()
    side, how = pipe.default_size[0], {"num_inference_steps": size.sampling_steps}
    task = turns.TASK if turns.TASK in known_tasks(study, pipe) else "none"
    others = [turns.chain(side, study.seed, i, "select", 1) for i in range(size.pictures)]
    first = turns.take_turns(pipe, others, None, study.seed, task, **how)[0]
    own = turns.calibrated(pipe, others, first)
    chains = [turns.chain(side, study.seed, i) for i in range(size.pictures)]
    rules = {"without": None, "α = 0.03": Thresholding(), f"α = {own.alpha:.3g}, calibrated": own}
    found: Numbers = {"n": len(chains), "turns": turns.TURNS, "alpha": own.alpha, "rules": {}}
    films = []
    for name, rule in rules.items():
        made = turns.take_turns(pipe, chains, rule, study.seed, task, **how)
        found["rules"][name] = {"outside": turns.outside(chains, made), "inside": turns.inside(chains, made)}
        films.append(np.concatenate([turns.film(chains[0], [pictures[0] for pictures in made])], axis=0))
    films.append(turns.film(chains[0], list(chains[0].targets)))
    keep(bench, "thresholding", np.concatenate(films, axis=0).repeat(2, 0).repeat(2, 1))
    return found


def baselines(study: EditStudy, bench: Bench) -> Numbers:
    """Copying, the right answer, InstructPix2Pix-style, SDEdit, and the editor, task by task."""
    pipe, size = main_editor(study, bench), study.sized()
    tasks = known_tasks(study, pipe)
    rows = rows_of(study, pipe, tasks)
    found: Numbers = {name: scored(rows, map(BASELINES[name], rows)) for name in ("copy", "oracle")}
    plain = compared(study, bench, "untold-editing")
    if plain.default_size == pipe.default_size:
        found["InstructPix2Pix-style"] = judged(study, plain, tasks, "none", rows)
    else:
        found["InstructPix2Pix-style"] = judged(study, plain, tasks, "none")
    best: Numbers = {}
    for strength in size.strengths:
        numbers = scored(rows, sdedit(pipe, rows, strength, max(SDEDIT_STEPS, size.sampling_steps), study.seed))
        for task, each in numbers.items():  # SDEdit at its best strength, task by task
            if task not in best or each["gain"] > best[task]["gain"]:
                best[task] = {**each, "strength": strength}
    found["SDEdit"] = best
    found["Emu Edit-style"] = judged(study, pipe, tasks, None, rows)
    return {"n": len(rows), "editors": found}


def guidance(study: EditStudy, bench: Bench) -> Numbers:
    """Both scales, on rows that settings are chosen on."""
    pipe, size = main_editor(study, bench), study.sized()
    tasks = [task for task in sub.groups()["region"] if task in known_tasks(study, pipe)]
    rows = rows_of(study, pipe, tasks, "select", max(4, size.judged // 4))
    found = []
    for image in size.image_scales:
        for text in size.text_scales:
            scales = {"guidance_scale": text, "image_guidance_scale": image}
            numbers = judged(study, pipe, tasks, "own", rows, **scales)
            found.append({"text": text, "image": image, **means(numbers, tasks)})
    return {"n": len(rows), "rows": found}


def keep(bench: Bench, name: str, picture: np.ndarray) -> None:
    """A picture of a stage, for the page."""
    folder = folder_of(bench) / FOLDER / PICTURES
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(folder / f"{name}.png")


FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "main": main,
    "task-embedding": task_embedding,
    "vision": vision,
    "experts": experts,
    "number-of-tasks": number_of_tasks,
    "inversion": inversion,
    "thresholding": thresholding,
    "baselines": baselines,
    "guidance": guidance,
}
