"""Run: what all phases of one run share, and what happens around a step: go on, save, finish, preview, fail."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from latentia.errors import NonFiniteError
from latentia.training.checkpoint import CheckpointFolder, Tensors
from latentia.training.log import RunLog
from latentia.training.phase import Phase
from latentia.training.resume import check_resumable
from latentia.training.settings import Settings
from latentia.training.state import PhaseState


@dataclass(frozen=True)
class Run:
    """A run in the folder `out`. Every process calls every method; the first one writes."""

    out: Path
    settings: Settings
    accelerator: Accelerator
    log: RunLog
    resume: bool

    def checkpoints(self, phase: str) -> CheckpointFolder:
        """The checkpoints of one phase."""
        return CheckpointFolder(self.out / "checkpoints" / phase)

    def agreed(self, phase: Phase) -> dict[str, Any]:
        """Everything that changes a phase's result, and so must be the same when it goes on."""
        here = {"seed": self.settings.seed, "precision": self.settings.precision}
        return {**here, "processes": self.accelerator.num_processes, **phase.must_agree()}

    def go_on(self, state: PhaseState, mark: int, later: Sequence[str]) -> int:
        """Load the newest checkpoint, if resuming and there is one, and return metrics.jsonl to that moment."""
        state.train_mode()
        if not self.resume:
            return mark
        folder = self.checkpoints(state.phase.name)
        if self.accelerator.is_main_process:
            folder.clean()
        self.accelerator.wait_for_everyone()
        found = folder.newest()
        if found is None:
            self.log.cut(mark)
            return mark
        check_resumable(found, state.phase, self.agreed(state.phase), [self.checkpoints(name) for name in later])
        state.restore(found)
        mark = int(found.state["metrics_bytes"])
        if not (found.final and found.step == state.phase.steps):  # what follows a finished phase belongs to later ones
            self.log.cut(mark)
        return mark

    def save(self, state: PhaseState) -> int:
        """Write a checkpoint; returns where metrics.jsonl stood."""
        files, rest = state.snapshot()
        mark = self.log.mark()
        if self.accelerator.is_main_process:
            rest |= {"metrics_bytes": mark, "agreed": self.agreed(state.phase), "phase": state.phase.name}
            self.checkpoints(state.phase.name).save(state.step, files, rest)
        self.accelerator.wait_for_everyone()
        return mark

    def finish(self, state: PhaseState) -> None:
        """Make the last checkpoint the phase's final one."""
        if self.accelerator.is_main_process:
            self.checkpoints(state.phase.name).finish(state.step)
        self.accelerator.wait_for_everyone()

    def preview(self, state: PhaseState) -> None:
        """Pictures made with averaged weights, into samples/ and TensorBoard."""
        if state.phase.preview is None:
            return
        with state.averaged_in_place(), torch.no_grad():
            pictures = state.phase.preview()
        if pictures is not None:
            self.log.picture(state.step, pictures)

    def non_finite(self, state: PhaseState, turn: str, loss: float, norm: float, parts: Tensors) -> NonFiniteError:
        """The error that names phase, step and part; nothing has been changed by the step."""
        values = {name: part.item() for name, part in parts.items()} | {"total": loss, "gradient norm": norm}
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        saved = self.checkpoints(state.phase.name).paths()
        kept = f"the last good checkpoint is {saved[0]}" if saved else "no checkpoint had been written"
        said = "; ".join(bad) or "another process failed"
        return NonFiniteError(
            f"phase {state.phase.name!r}, step {state.step + 1}, turn {turn!r}: {said}. "
            f"Stopped before the optimizer step; {kept}. Lower the learning rate, clip gradients, or use precision='no'"
        )
