"""The runs that `edit-study` is made of: editors by `edit-scenes`, inversions by `edit-inversion`, each in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentia.recipes import registry
from latentia.recipes.edit_scenes import TASKS, EditScenes
from latentia.recipes.edit_study import EDITING, UNSEEN, EditStudy
from latentia.recipes.overrides import override
from latentia.recipes.recipe import Bench, Recipe, use_average
from latentia.recipes.run import run_recipe
from latentia.recipes.study import FOLDER

if TYPE_CHECKING:
    from latentia.methods.emu_edit.pipeline import EmuEditPipeline
    from latentia.training.phase import PhaseResult

RUNS = "editors"
"""Subfolder of OUT/stages."""


class BareEditor(EditScenes):
    """Saves its pipeline and leaves the judging to the study."""

    def tokenizer(self) -> Any:
        """Byte pairs of all tasks' instructions, whatever it learns: compared editors read in the same pieces."""
        return EditScenes.tokenizer(self.model_copy(update={"tasks": TASKS}))

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """`out`/pipeline, under guidance scales of 1."""
        from latentia.methods.emu_edit.predictor_training import judged

        use_average(results["editor"])
        for name in ("model", "text_encoder", "predictor"):
            if name in bench.parts:
                bench.parts[name].cpu().requires_grad_(False).eval()
        predictor = bench.parts.get("predictor")
        if predictor is not None:
            judged(predictor, self.tasks, 500, self.seed)  # calibrates it
        self.pipeline(bench).save_pretrained(out / "pipeline")


def groups() -> dict[str, tuple[str, ...]]:
    """Group → its tasks, of all sixteen."""
    from latentia.methods.emu_edit.tasks.registry import tasks_of
    from latentia.methods.emu_edit.tasks.task import GROUPS

    return {group: tasks_of(group) for group in GROUPS}


def learned(study: EditStudy) -> tuple[str, ...]:
    """The tasks of the editors that are compared."""
    return study.sized().tasks or TASKS


def editing(study: EditStudy) -> tuple[str, ...]:
    """Those of them that edit: the region and free-form ones."""
    known = groups()
    return tuple(name for name in learned(study) if any(name in known[group] for group in EDITING))


def editor_run(
    study: EditStudy,
    tasks: Sequence[str] = (),
    seed: int = 0,
    embedding: str = "true",
    share: float = 1.0,
) -> EditScenes:
    """A compared editor.

    Args:
        study: the study, which sets its length.
        tasks: what it learns; empty: all of the study's.
        seed: counted from the study's own.
        embedding: `true` or `none`.
        share: of the study's steps.
    """
    size = study.sized()
    plain: Any = registry.recipe("edit-scenes")
    changes = [
        *size.settings,
        f"tasks={','.join(tasks or learned(study))}",
        f"task_embedding={embedding}",
        f"steps={max(1, round(size.steps * share))}",
        f"seed={study.seed + seed}",
        f"device={study.device}",
    ]
    return BareEditor.model_validate(override(plain, changes).model_dump())


def main_run(study: EditStudy) -> EditScenes:
    """The editor of `main`: `edit-scenes` as published, or what the size makes of it."""
    size = study.sized()
    steps = [f"steps={size.main_steps}"] if size.main_steps else []
    tasks = [f"tasks={','.join(size.tasks)}"] if size.tasks else []
    changes = [*size.settings, *steps, *tasks, f"seed={study.seed}", f"device={study.device}"]
    recipe: Any = override(registry.recipe("edit-scenes"), changes)
    return BareEditor.model_validate(recipe.model_dump())


def inversion_run(study: EditStudy, base: Path, task: str, mode: str, examples: int) -> Recipe:
    """An unseen task, learned on the editor of `base`."""
    size = study.sized()
    steps = {"invert": size.inversion_steps, "finetune": size.tune_steps, "scratch": size.expert_steps}[mode]
    changes = [f"base={base}", f"task={task}", f"mode={mode}", f"examples={examples}", f"steps={steps}"]
    changes += [f"judged={size.judged}", f"sampling_steps={size.sampling_steps}"]
    return override(registry.recipe("edit-inversion"), [*changes, f"seed={study.seed}", f"device={study.device}"])


def runs(study: EditStudy) -> Iterator[tuple[str, EditScenes]]:
    """Every editor that the chosen stages train, by the name of its folder; some are shared by several stages."""
    named: dict[str, EditScenes] = {}
    if study.base is None:
        named["main"] = main_run(study)
    chosen = study.stages
    seeds = range(study.seeds)
    if {"task-embedding", "vision"} & set(chosen):
        named |= {f"told-{i}": editor_run(study, seed=i) for i in seeds}
    if "task-embedding" in chosen:
        named |= {f"untold-{i}": editor_run(study, seed=i, embedding="none") for i in seeds}
    if "vision" in chosen:
        few = editing(study)
        named |= {f"no-vision-{i}": editor_run(study, few, i) for i in seeds}
        named |= {f"no-vision-short-{i}": editor_run(study, few, i, share=editing_share(study)) for i in seeds}
    if "experts" in chosen:
        named["told-0"] = editor_run(study)
        count = len(learned(study))
        named |= {f"expert-{task}": editor_run(study, (task,), share=1 / count) for task in learned(study)}
    if "number-of-tasks" in chosen:
        named["told-0"] = editor_run(study)
        named |= {f"tasks-{len(tasks)}": editor_run(study, tasks) for tasks in fewer(study)[1:]}
    if "baselines" in chosen:
        longer = main_run(study).steps / study.sized().steps  # beside the editor of `main`, so trained as long
        named["untold-editing"] = editor_run(study, editing(study), embedding="none", share=longer)
    yield from named.items()


def editing_share(study: EditStudy) -> float:
    """Share of all rows that are of editing tasks: an editor trained so long without vision saw as many of them."""
    few = editing(study)
    both = editor_run(study)
    drawn = dict(zip(both.tasks, both.drawn(), strict=True))
    return sum(drawn[task] for task in few) / sum(drawn.values())


def fewer(study: EditStudy) -> list[tuple[str, ...]]:
    """All tasks, then fewer and fewer."""
    sets = [learned(study)]
    for left_out in study.sized().fewer:
        sets.append(tuple(task for task in sets[-1] if task not in left_out))
    return sets


def train_editor(study: EditStudy, name: str, out: Path) -> Path:
    """The folder of an editor of `runs`, trained first, or further, if it is not there."""
    folder = out / FOLDER / RUNS / name
    if not (folder / "pipeline" / "model_index.json").is_file():
        go_on(dict(runs(study))[name], folder)
    return folder


def main_folder(study: EditStudy, out: Path) -> Path:
    """The folder of the editor of `main`: the given base's, or its own."""
    return Path(study.base).expanduser() if study.base is not None else train_editor(study, "main", out)


def go_on(recipe: Recipe, folder: Path) -> None:
    """Run the recipe in `folder`, from where it was stopped; a finished run keeps no checkpoints."""
    run_recipe(recipe, folder, resume=(folder / "recipe.json").is_file(), progress=False)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # dozens of runs would fill a disk


def pipeline_folder(path: Path) -> Path:
    """The pipeline of a run, or the pipeline itself."""
    inside = path.expanduser() / "pipeline"
    return inside if (inside / "model_index.json").is_file() else path.expanduser()


def open_editor(folder: Path, device: str = "cpu") -> EmuEditPipeline:
    """The editor that a run left, silent."""
    from latentia.methods.emu_edit.pipeline import EmuEditPipeline

    pipe = EmuEditPipeline.from_pretrained(pipeline_folder(folder)).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


__all__ = [
    "RUNS",
    "UNSEEN",
    "editing",
    "editor_run",
    "fewer",
    "go_on",
    "inversion_run",
    "learned",
    "main_folder",
    "open_editor",
    "pipeline_folder",
    "runs",
    "train_editor",
]
