"""Which task a call means: predicted, named, numbered, read from a file, or given as a vector."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentia.errors import ArtifactError, InputError, unknown_choice
from latentia.methods.emu_edit.embedding_file import SUFFIX, TaskEmbedding
from latentia.methods.emu_edit.model import EmuEditModel
from latentia.methods.emu_edit.predictor import TaskGuess, TaskPredictorBase, empty_instruction

NO_TASK = "none"
"""The null task: what an editor without task embedding hears."""

OneTask = str | int | os.PathLike[str] | TaskEmbedding | torch.Tensor | None
TaskInput = OneTask | Sequence[OneTask]
"""What a call takes as `task`: one for all pictures, or one for each."""


@dataclass(frozen=True, slots=True)
class TaskChoice:
    """The task of one picture.

    Attributes:
        name: in words; `vector` for one given as such.
        vector: (task_dim,), what the network is told.
        guess: how it was predicted, None when it was given.
        instruction: what a learned task was learnt with; says it all where a call says nothing.
    """

    name: str
    vector: torch.Tensor
    guess: TaskGuess | None = None
    instruction: str = ""


def listed_tasks(task: TaskInput) -> list[Any]:
    """One entry for all pictures, or one for each."""
    if isinstance(task, torch.Tensor):
        single = task.ndim == 0 or (task.ndim == 1 and task.is_floating_point())
        return [task] if single else list(task)
    if isinstance(task, list | tuple):
        if not task:
            raise InputError("task is an empty list: give one task, or one per picture")
        return list(task)
    return [task]


def choose_tasks(
    tasks: Sequence[Any],
    instructions: Sequence[str],
    model: EmuEditModel,
    names: Mapping[str, int],
    predictor: TaskPredictorBase | None,
) -> list[TaskChoice]:
    """One choice for each instruction, `tasks` and `instructions` being equally long.

    Raises `UnknownChoiceError` with the nearest name, `ArtifactError` for a file that is none or another model's,
    `InputError` for anything else, and where a task is to be predicted but there is no predictor.
    """
    unknown = [text for task, text in zip(tasks, instructions, strict=True) if task is None]
    if unknown and predictor is None:
        raise InputError(
            f"this pipeline has no task predictor: name the task, one of {', '.join(names)}, or {NO_TASK!r}"
        )
    for place, (task, text) in enumerate(zip(tasks, instructions, strict=True)):
        if task is None and not text.strip():
            raise empty_instruction(place, len(instructions))
    guesses = iter(predictor.predict(unknown) if unknown and predictor is not None else [])
    chosen: dict[int, TaskChoice] = {}  # a file given for a whole batch is read once
    choices = []
    for task in tasks:
        if task is None:
            guess = next(guesses)
            choices.append(TaskChoice(guess.task, _row(model, names[guess.task]), guess))
            continue
        if id(task) not in chosen:
            chosen[id(task)] = _chosen(task, model, names)
        choices.append(chosen[id(task)])
    return choices


def _row(model: EmuEditModel, number: int) -> torch.Tensor:
    return model.task_vectors(torch.tensor([number], device=model.device), 1)[0].detach()


def _chosen(task: Any, model: EmuEditModel, names: Mapping[str, int]) -> TaskChoice:
    if isinstance(task, TaskEmbedding):
        task.check(model)
        return TaskChoice(task.name, task.vector.to(model.tasks.weight), instruction=task.instruction)
    if isinstance(task, str):
        if task in names:
            return TaskChoice(task, _row(model, names[task]))
        if task == NO_TASK:
            return TaskChoice(task, _row(model, -1))
        return _from_file(task, model, names)
    if isinstance(task, os.PathLike):
        return _from_file(os.fspath(task), model, names)
    if isinstance(task, torch.Tensor) and task.is_floating_point():
        if tuple(task.shape) != (model.task_dim,) or not bool(torch.isfinite(task).all()):
            raise InputError(f"task is a tensor {tuple(task.shape)}: expected ({model.task_dim},) finite floats")
        return TaskChoice("vector", task.to(model.tasks.weight))
    return _numbered(task, model, names)


def _from_file(path: str, model: EmuEditModel, names: Mapping[str, int]) -> TaskChoice:
    file = Path(path).expanduser()
    if not file.is_file():
        if file.suffix == SUFFIX or file.name != path:
            raise ArtifactError(f"no file {file}: a learned task is a {SUFFIX} file, as TaskEmbedding.save writes it")
        raise unknown_choice("task", path, [*names, NO_TASK])
    return _chosen(TaskEmbedding.load(file, model), model, names)


def _numbered(task: Any, model: EmuEditModel, names: Mapping[str, int]) -> TaskChoice:
    number = int(task) if isinstance(task, torch.Tensor) and task.ndim == 0 else task
    if isinstance(number, bool) or not isinstance(number, int):
        raise InputError(
            f"task is {task!r}: give a name ({', '.join(names)}), its number, a {SUFFIX} file, or a vector"
        )
    rows = len(model.tasks.weight)
    if not -1 <= number < rows:
        raise InputError(f"task {number} is out of range: 0 to {rows - 1}, or -1 for none")
    by_number = {place: name for name, place in names.items()} | {-1: NO_TASK}
    return TaskChoice(by_number.get(number, str(number)), _row(model, number))
