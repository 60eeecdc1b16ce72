"""The embedded extractor of edits, `scenes`: two towers trained on demand on the world's pictures and captions."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from latentia.core.rng import derive_seed
from latentia.methods.emu_edit.datasets import SceneRows
from latentia.methods.emu_edit.measures.contrastive import CaptionedEdits, ContrastiveObjective
from latentia.methods.emu_edit.measures.towers import SceneTowers
from latentia.training.loop import train
from latentia.training.parallel import alone
from latentia.training.phase import Optim, Phase
from latentia.training.settings import Settings

STEPS, BATCH = 400, 64
ROWS = 1_000_000
"""More rows than are ever drawn: none comes twice."""


def scene_towers(folder: str | os.PathLike[str] | None = None, progress: bool = False) -> SceneTowers:
    """The towers, always the same; from `folder` if they were kept there, else trained (about a minute) and kept.

    None keeps nothing.
    """
    kept = None if folder is None else Path(folder)
    if kept is not None and (kept / "config.json").is_file():
        return SceneTowers.from_pretrained(kept).requires_grad_(False)
    towers = train_towers(progress=progress)
    if kept is not None:
        towers.save_pretrained(kept)
    return towers


def towers_phase(towers: SceneTowers, steps: int | None = None, batch_size: int | None = None, seed: int = 0) -> Phase:
    """The phase that trains the towers on rows of all tasks; `STEPS` of `BATCH` by default."""
    steps = steps or STEPS
    data = CaptionedEdits(SceneRows("train", ROWS, towers.config.size, seed=derive_seed("towers", seed)), towers)
    optim = Optim(lr=4e-3, weight_decay=0.05, schedule="cosine", warmup=min(30, steps))
    return Phase("towers", ContrastiveObjective(towers), data, steps, batch_size or BATCH, optim)


def train_towers(
    seed: int = 0, steps: int | None = None, batch_size: int | None = None, progress: bool = False
) -> SceneTowers:
    """Towers in evaluation mode and frozen; a function of the arguments."""
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed("towers", seed))
        towers = SceneTowers()
        phase = towers_phase(towers, steps, batch_size, seed)
    settings = Settings(seed=seed, device="cpu", progress=progress, tensorboard=False)
    with tempfile.TemporaryDirectory() as folder, alone():
        train([("towers", lambda: phase)], Path(folder) / "run", settings)
    return towers.eval().requires_grad_(False)
