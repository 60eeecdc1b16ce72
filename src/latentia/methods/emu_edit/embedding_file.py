"""A learned task as a file of a few kilobytes: one vector, whose it is, and what it was learnt from."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from latentia.core.arguments import check_count
from latentia.core.artifacts import read_safetensors, write_safetensors
from latentia.core.files import write_atomic
from latentia.core.weight_files import read_header
from latentia.errors import ArtifactError, InputError
from latentia.methods.emu_edit.model import EmuEditModel

KIND = "latentia-task-embedding"
SUFFIX = ".safetensors"
PROBES = 256
"""Weights of the model that are kept to recognise it by, evenly spread over all but the table of tasks."""
TOLERANCE = 0.02
"""Relative difference of weights that half precision may explain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEmbedding:
    """One learned task vector v for one model.

    Attributes:
        name: what the task is called.
        vector: v, (task_dim,) float32.
        examples: from how many rows it was learnt; 0: not known.
        instruction: one that it was learnt with, to show how to ask for it; may be empty.
        model: what the model is, in words.
        fingerprint: `PROBES` of its weights, float32.

    Raises `InputError` for a vector that is none.
    """

    name: str
    vector: torch.Tensor
    model: str
    fingerprint: torch.Tensor
    examples: int = 0
    instruction: str = ""

    def __post_init__(self) -> None:
        if self.vector.ndim != 1 or not self.vector.is_floating_point() or not bool(torch.isfinite(self.vector).all()):
            raise InputError(
                f"a task's vector must be (task_dim,) finite floats, got {tuple(self.vector.shape)} of "
                f"{self.vector.dtype}"
            )
        if not self.name.strip():
            raise InputError("a learned task needs a name, 'super-resolution' say")
        check_count("examples", self.examples, least=0)

    @classmethod
    def of(cls, model: EmuEditModel, vector: torch.Tensor, name: str, examples: int = 0, instruction: str = "") -> Self:
        """The vector as learnt for `model`. Raises `InputError` for another width."""
        if tuple(vector.shape) != (model.task_dim,):
            raise InputError(f"vector has shape {tuple(vector.shape)}: the model's tasks are ({model.task_dim},)")
        return cls(
            name=name,
            vector=vector.detach().float().cpu().clone(),
            model=describe(model),
            fingerprint=fingerprint(model),
            examples=examples,
            instruction=instruction,
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file, whole or not at all, and return its path. Raises `InputError` for another suffix."""
        target = Path(path)
        if target.suffix != SUFFIX:
            raise InputError(f"a learned task is saved as NAME{SUFFIX}, not {target.name!r}")
        tensors = {"vector": self.vector, "fingerprint": self.fingerprint}
        about = {"kind": KIND, "task": self.name, "model": self.model, "examples": str(self.examples)}
        metadata = {**about, "instruction": self.instruction}
        write_atomic(target, lambda beside: write_safetensors(beside, tensors, metadata))
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: EmuEditModel | None = None) -> Self:
        """Read what `save` wrote; with `model`, check that it is this model's.

        Raises `ArtifactError` for a file that is missing, broken, something else, or of another model.
        """
        file = Path(path)
        about = read_header(file).metadata
        if about.get("kind") != KIND:
            raise ArtifactError(f"{file} holds no learned task: TaskEmbedding.save writes them (task inversion)")
        tensors = read_safetensors(file)
        if set(tensors) < {"vector", "fingerprint"} or not about.get("examples", "").isdecimal():
            raise ArtifactError(f"{file} is damaged: its vector, fingerprint or number of examples is missing")
        try:
            found = cls(
                name=about.get("task", ""),
                vector=tensors["vector"],
                model=about.get("model", "an unnamed model"),
                fingerprint=tensors["fingerprint"],
                examples=int(about["examples"]),
                instruction=about.get("instruction", ""),
            )
        except InputError as error:
            raise ArtifactError(f"{file} is damaged: {error}") from error
        if model is not None:
            found.check(model, str(file))
        return found

    def check(self, model: EmuEditModel, where: str = "this task") -> None:
        """Raise `ArtifactError` unless the vector was learnt for `model`, in whatever precision it is now."""
        mine = describe(model)
        if len(self.vector) != model.task_dim:
            raise ArtifactError(
                f"{where} ({self.name!r}) was learnt for {self.model}, with task vectors of {len(self.vector)}; "
                f"this is {mine}, with {model.task_dim}: learn the task anew for it"
            )
        now = fingerprint(model)
        scale = self.fingerprint.abs().mean()
        fits = now.shape == self.fingerprint.shape and bool(
            ((now - self.fingerprint).abs() <= TOLERANCE * (self.fingerprint.abs() + 0.1 * scale)).all()
        )
        if not fits:
            other = "another one with the same description" if self.model == mine else mine
            raise ArtifactError(
                f"{where} ({self.name!r}) was learnt for {self.model}, and this is {other}: a task's vector means "
                "nothing to other weights. Use the pipeline it was learnt with, or learn it anew"
            )


def describe(model: EmuEditModel) -> str:
    """A model in words: `EmuEditModel of 1,234,567 weights, 16 tasks of width 128`."""
    tasks, width = model.tasks.weight.shape
    return f"{type(model).__name__} of {model.num_parameters():,} weights, {tasks} tasks of width {width}"


@torch.no_grad()
def fingerprint(model: EmuEditModel) -> torch.Tensor:
    """(`PROBES`,) float32: weights at evenly spread places; those of the tasks' table do not count, so it may grow."""
    flat = [p.reshape(-1) for name, p in model.named_parameters() if name != "tasks.weight"]
    ends = torch.tensor([len(p) for p in flat]).cumsum(0)
    places = torch.linspace(0, int(ends[-1]) - 1, PROBES, dtype=torch.float64).round().long()
    part = torch.searchsorted(ends, places, right=True)
    starts = ends - torch.tensor([len(p) for p in flat])
    return torch.stack([flat[k][place - starts[k]].float().cpu() for k, place in zip(part.tolist(), places)])
