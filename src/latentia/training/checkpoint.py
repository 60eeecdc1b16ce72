"""Checkpoints: folders of safetensors and one JSON, written beside, fsynced, then renamed; never a pickle.

    checkpoints/<phase>/step-00000500/    state.json  weights.safetensors  averaged.safetensors  optimizer.safetensors
    checkpoints/<phase>/final/            the same, when the phase is finished

`state.json` holds the size and CRC-32 of every other file, so that a truncated or damaged folder is
recognised and the one before it is used.
"""

import re
import shutil
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from latentia.core.config import to_json
from latentia.core.files import read_json, sync, sync_folder
from latentia.errors import ArtifactError, NonFiniteError

Tensors = dict[str, torch.Tensor]

STATE = "state.json"
FINAL = "final"
KEEP = 2
HIDDEN = "."  # unfinished and discarded folders start with it; they are never read


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back: `state` (JSON) and `files` (tensors by file name without suffix)."""

    path: Path
    state: dict[str, Any]
    files: dict[str, Tensors]

    @property
    def step(self) -> int:
        """Optimizer steps taken when it was written."""
        return int(self.state["step"])

    @property
    def final(self) -> bool:
        """Whether it was written at the end of its phase."""
        return self.path.name == FINAL


class CheckpointFolder:
    """The checkpoints of one phase: `save`, `finish`, `newest`; the last two are kept."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(self, step: int, files: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and forget all but the last two.

        Raises `NonFiniteError` when a weight is not finite and `ArtifactError` when the disk refuses; either way
        the checkpoints that exist stay as they are.
        """
        check_weights(step, files["weights"])
        path = self.root / f"step-{step:08d}"
        beside = self.root / f"{HIDDEN}{path.name}.tmp"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            discard(beside)
            beside.mkdir()
            self._fill(beside, files, {**state, "step": step})
            discard(path)
            beside.rename(path)
            sync_folder(self.root)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise ArtifactError(
                f"could not write the checkpoint of step {step} in {self.root}: {error}. "
                "Earlier checkpoints are untouched; free some space, then resume"
            ) from error
        for old in self._steps()[KEEP:]:
            discard(old)
        return path

    def finish(self, step: int) -> Path:
        """Make the checkpoint of `step` the final one and forget all others."""
        path, last = self.root / FINAL, self.root / f"step-{step:08d}"
        if last.is_dir():  # else it was made final before
            discard(path)
            last.rename(path)
            sync_folder(self.root)
        for old in self._steps():
            discard(old)
        return path

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; a warning names each damaged one that was passed over."""
        best: Checkpoint | None = None
        for path in self.paths():
            if best is not None and path.name != FINAL:
                continue
            try:
                found = read_checkpoint(path)
            except ArtifactError as error:
                warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=2)
                continue
            best = found if best is None or found.step > best.step else best
        return best

    def paths(self) -> list[Path]:
        """Every checkpoint's folder, whole or damaged, newest first; the final one last."""
        return [p for p in (*self._steps(), self.root / FINAL) if p.is_dir()]

    def clean(self) -> None:
        """Remove what an interrupted save or removal left behind."""
        if self.root.is_dir():
            for leftover in self.root.glob(f"{HIDDEN}*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def _steps(self) -> list[Path]:
        found = self.root.iterdir() if self.root.is_dir() else ()
        return sorted((p for p in found if re.fullmatch(r"step-\d{8,}", p.name)), key=step_of, reverse=True)

    def _fill(self, folder: Path, files: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
        marks = {}
        for name, tensors in files.items():
            file = folder / f"{name}.safetensors"
            save_file(on_cpu(tensors), file, metadata={"format": "pt"})
            sync(file)
            marks[name] = {"bytes": file.stat().st_size, "crc32": crc32(file)}
        record = folder / STATE
        record.write_text(to_json({**state, "format": 1, "files": marks}), encoding="utf-8")
        sync(record)
        sync_folder(folder)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder; raises `ArtifactError` for anything missing, truncated or changed."""
    state = read_json(path / STATE)
    files = {}
    for name, mark in state.get("files", {}).items():
        file = path / f"{name}.safetensors"
        if not file.is_file() or file.stat().st_size != mark["bytes"] or crc32(file) != mark["crc32"]:
            raise ArtifactError(f"{file} is missing, truncated or damaged")
        try:
            files[name] = load_file(file)
        except SafetensorError as error:
            raise ArtifactError(f"{file} is not a safetensors file: {error}") from error
    if "weights" not in files or "step" not in state:
        raise ArtifactError(f"{path / STATE} lists no weights: is this a checkpoint?")
    return Checkpoint(path, state, files)


def discard(path: Path) -> None:
    """Remove a folder in such a way that a kill in the middle never leaves half of it under its name."""
    if path.exists():
        hidden = path.with_name(f"{HIDDEN}{path.name.lstrip(HIDDEN)}.old")
        shutil.rmtree(hidden, ignore_errors=True)
        path.rename(hidden)
        shutil.rmtree(hidden)


def on_cpu(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Contiguous CPU tensors that share no memory, as safetensors wants them."""
    ready: Tensors = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        ready[name] = value
    return ready


def check_weights(step: int, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise `NonFiniteError` for a weight that is NaN or infinite: such a checkpoint must not replace a good one."""
    bad = [name for name, w in weights.items() if w.is_floating_point() and not bool(torch.isfinite(w).all())]
    if bad:
        raise NonFiniteError(
            f"after step {step} the weights {', '.join(bad[:3])} are not finite: nothing was saved, the checkpoint "
            "before stays; lower the learning rate"
        )


def crc32(path: Path) -> int:
    """CRC-32 of a file's bytes."""
    value = 0
    for block in blocks(path):
        value = zlib.crc32(block, value)
    return value


def blocks(path: Path, size: int = 1 << 22) -> Iterator[bytes]:
    """A file's bytes in pieces."""
    with open(path, "rb", buffering=0) as file:
        while block := file.read(size):
            yield block


def step_of(path: Path) -> int:
    """The step in a checkpoint folder's name."""
    return int(path.name.removeprefix("step-"))
