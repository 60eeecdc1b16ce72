"""Carry a recipe out: train its phases, save its pipeline, leave everything in one folder."""

from __future__ import annotations

import os
from pathlib import Path

from latentia.core.files import write_text_atomic
from latentia.errors import ArtifactError, TrainingError
from latentia.recipes import registry
from latentia.recipes.recipe import Bench, Recipe
from latentia.recipes.sources import resolve_device

SAVED = "recipe.json"


def run_recipe(recipe: Recipe, out: str | os.PathLike[str], resume: bool = False, progress: bool = True) -> Path:
    """Train `recipe` into the folder `out` and return the folder of its pipeline, `out`/pipeline; `out` of a study.

    `out` also holds recipe.json, metrics.jsonl, tensorboard/, samples/ and checkpoints/. Under `torchrun` every process
    calls this; the first one writes.

    Raises `TrainingError` when `out` holds a run and `resume` is off, or when that run's recipe differs in a field
    that changes the result; `ConfigError` or `InputError` for sizes that do not fit together, before anything is
    written; everything that the training loop raises.
    """
    from accelerate import PartialState

    from latentia.recipes.plan import rehearse
    from latentia.training.loop import train
    from latentia.training.resume import check_folder

    recipe.check()
    rehearse(recipe, processes=int(os.environ.get("WORLD_SIZE", "1")))
    folder = Path(out)
    bench = Bench(device=resolve_device(recipe.device), out=folder)
    saved, before = folder / SAVED, None
    first = os.environ.get("RANK", "0") == "0"
    if first:
        check_folder(folder, resume)
        if resume:
            check_same(recipe, folder)
            before = saved.read_text(encoding="utf-8") if saved.is_file() else None
        write_text_atomic(saved, recipe.to_json())
    try:
        phases = recipe.phases(bench)  # none: a study, whose stages are runs of their own
        results = train(phases, folder, recipe.settings(progress), resume) if phases else {}
    except TrainingError:  # refused: the run in the folder is still the one it was, and so is its recipe
        if before is not None:
            write_text_atomic(saved, before)
        raise
    if first:
        recipe.finish(bench, results, folder)
    PartialState().wait_for_everyone()
    return folder / "pipeline" if phases else folder


def start_or_saved(name: str, folder: Path, resume: bool) -> Recipe:
    """The recipe to train: the registry's, or with `resume` the one that `folder` was started with.

    What names code of the user's is not taken from the folder: it has to be given again. Raises `TrainingError` when
    the folder holds a run of another recipe.
    """
    fresh = registry.recipe(name)
    if not resume or not (folder / SAVED).is_file():
        return fresh
    saved = load_recipe(folder)
    if saved.name != name:
        raise TrainingError(
            f"{folder} holds a run of {saved.name}, not of {name}: resume that, or choose another --out"
        )
    return saved.model_copy(update={field: getattr(fresh, field) for field in saved.code})


def load_recipe(folder: str | os.PathLike[str]) -> Recipe:
    """The recipe of a run's folder. Raises `ArtifactError` when there is none, `ConfigError` when it does not fit."""
    path = Path(folder) / SAVED
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"no {SAVED} in {folder}: is this the --out folder of a run?") from None
    name = _name(text, path)
    return type(registry.recipe(name)).from_json(text)


def _name(text: str, path: Path) -> str:
    import json

    try:
        return str(json.loads(text)["name"])
    except (json.JSONDecodeError, KeyError, TypeError):
        raise ArtifactError(f"{path} is no saved recipe: it may be truncated; start in a new folder") from None


def check_same(recipe: Recipe, folder: Path) -> None:
    """Raise `TrainingError` listing the fields in which `recipe` differs from the run that `folder` holds.

    Fields that change no number of the result may differ, and the number of steps may grow.
    """
    if not (folder / SAVED).is_file():
        if folder.exists() and any(folder.iterdir()):
            raise TrainingError(f"{folder} holds no {SAVED}, so there is no run to resume: choose another --out")
        return
    before = load_recipe(folder)
    differ = {
        key: values
        for key, values in before.differences(recipe).items()
        if key not in recipe.runtime and key.rpartition(".")[2] != "steps"
    }
    if differ:
        listed = "; ".join(f"{key} was {was!r}, now {now!r}" for key, (was, now) in differ.items())
        raise TrainingError(f"{folder} was started with another recipe: {listed}. Give the same keys, or another --out")
