"""Starting, going on, and what must be the same for that: a run that is resumed is the run that was started."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentia.errors import TrainingError
from latentia.training.checkpoint import Checkpoint, CheckpointFolder
from latentia.training.phase import Phase


def check_folder(out: Path, resume: bool) -> None:
    """Raise `TrainingError` when `out` already holds a run that is not to be resumed, or is no folder."""
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out} is a file: choose a folder for the run")
    if resume:
        return
    metrics, checkpoints = out / "metrics.jsonl", out / "checkpoints"
    if (metrics.exists() and metrics.stat().st_size) or (checkpoints.is_dir() and any(checkpoints.iterdir())):
        raise TrainingError(f"{out} already holds a run: go on with --resume (resume=True), or choose another folder")


def check_resumable(
    found: Checkpoint, phase: Phase, agreed: Mapping[str, Any], later: Sequence[CheckpointFolder]
) -> None:
    """Raise `TrainingError` when going on from `found` would not be the same run.

    Everything in `agreed` must be as it was when the run was started. `steps` may grow, but not below what was
    taken, and not once a later phase has been built on this one's weights.
    """
    before, now = found.state["agreed"], jsonable(agreed)
    differ = [k for k in sorted(before.keys() | now.keys()) if before.get(k) != now.get(k)]
    if differ:
        listed = "; ".join(f"{k} was {before.get(k)!r}, is {now.get(k)!r}" for k in differ)
        raise TrainingError(
            f"phase {phase.name!r} cannot go on from {found.path} with other values: {listed}. "
            "Use the values of the start, or another folder"
        )
    if found.step > phase.steps:
        raise TrainingError(
            f"phase {phase.name!r} has already taken {found.step} steps and {phase.steps} were asked for: "
            f"ask for at least {found.step}, or choose another folder"
        )
    started = [folder.root.name for folder in later if folder.paths()]
    if found.final and found.step < phase.steps and started:
        raise TrainingError(
            f"phase {phase.name!r} was finished at {found.step} steps and {', '.join(started)} is built on it: "
            f"keep {found.step} steps, or choose another folder"
        )


def jsonable(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they look after a trip through JSON (tuples are lists)."""
    loaded: dict[str, Any] = json.loads(json.dumps(values))
    return loaded
