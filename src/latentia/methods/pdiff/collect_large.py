"""Collecting checkpoints of networks of paper size: batches from a data set, augmented, on a GPU, in 16 bits.

The settings, the order of the data, the folder and what a checkpoint is are those of `collect`; here images are
decoded as they are needed. It is a loop of its own beside `training/loop.py` because its result is the weights after
each of its steps, its first edition trains by SGD, and half of it trains a few tensors of a frozen network.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from latentia.core.arguments import check_count
from latentia.core.protocols import Batch, Dataset
from latentia.core.rng import derive_seed
from latentia.errors import InputError, NonFiniteError, check_choice
from latentia.methods.pdiff.augmentation import Augmentation
from latentia.methods.pdiff.checkpoints import Checkpoints
from latentia.methods.pdiff.collect import PRESETS, Build, Progress, Trajectory, TrajectoryRun
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.many import Fit, Loss, epoch_order, loss_name, new_network
from latentia.methods.pdiff.place import Place, digests
from latentia.training.log import ProgressLine
from latentia.training.order import batches
from latentia.training.parallel import to_device

LOOK_EVERY = 20
"""Steps between looks at the loss, for which a CPU waits for the GPU."""
PRECISIONS = ("no", "bf16")


def train_trajectory_large(
    build: Build,
    data: Dataset,
    patterns: str | Sequence[str],
    K: int = 300,
    settings: Trajectory | str = "adamw",
    *,
    augmentation: Augmentation | None = None,
    device: torch.device | str = "cpu",
    precision: str = "no",
    channels_last: bool = False,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
    folder: Path | str | None = None,
    save_every: int = 1000,
    workers: int = 4,
    show: bool = False,
    progress: Progress | None = None,
) -> Checkpoints:
    """What `train_trajectory` does, for networks and data that want a GPU.

    Args:
        build, patterns, K, settings, seed, loss, folder, progress: as for `train_trajectory`.
        data: `{"x": (B, C, H, W), "label": (B,) int64}` by index.
        augmentation: of the images of both halves of the run; None takes them as they are.
        device: where the network is trained.
        precision: `no` (float32), or autocast to `bf16`; weights, optimizer and checkpoints stay float32.
        channels_last: hold convolutions and images as NHWC.
        save_every: steps between writes of what a stopped run needs: network, optimizer and checkpoints so far.
        workers: threads that fetch batches ahead.
        show: a progress bar with the loss, or a line every ten seconds where the output is no terminal.

    On a CPU, a run that was stopped goes on exactly. Raises `NonFiniteError` when the loss or the weights diverge,
    `TrainingError` when `folder` holds a run with other values, `InputError` for an empty data set.
    """
    if isinstance(settings, str):
        check_choice("preset", settings, PRESETS)
        settings = PRESETS[settings]
    check_count("K", K)
    check_count("save_every", save_every)
    check_choice("precision", precision, PRECISIONS)
    if len(data) < 1:
        raise InputError("there are no images to train on: check the folder or the split")
    network = new_network(build, seed).to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layout = ParameterLayout.select(network, patterns)
    identity: dict[str, Any] = {"kind": "trajectory", "K": K, "seed": seed, "settings": asdict(settings)}
    identity |= {"loss": loss_name(loss), "precision": precision, "data": fingerprint(data)}
    identity["augmentation"] = asdict(augmentation) if augmentation else None
    place = Place(folder, identity | digests(network, layout))
    if place.finished():
        return Checkpoints.load(place.folder)
    run = LargeRun(network, layout, data, settings, K, seed, loss, torch.device(device))
    run.augmentation, run.precision, run.channels_last, run.workers = augmentation, precision, channels_last, workers
    with ExitStack() as stack:
        stack.callback(run.close)
        if show:
            bar = ProgressLine(sys.stderr)
            progress = _shown(bar, run, progress)
            stack.callback(bar.end)
        return run.carry_out(place, save_every, progress)


class LargeRun(TrajectoryRun):
    """A trajectory over a data set; the images of later steps are decoded while the network learns from these."""

    augmentation: Augmentation | None = None
    precision = "no"
    channels_last = False
    workers = 0
    last_loss = math.nan

    def __init__(
        self,
        network: nn.Module,
        layout: ParameterLayout,
        images: Dataset,
        settings: Trajectory,
        K: int,
        seed: int,
        loss: Loss,
        device: torch.device,
    ) -> None:
        self.images, self.where = images, device
        self._order: tuple[tuple[int, int], torch.Tensor] = ((-1, -1), torch.empty(0))
        self._fetched: Iterator[list[Batch]] | None = None
        empty = torch.empty(0, device=device)
        super().__init__(network, layout, (empty, empty), settings, K, seed, loss)

    @property
    def count(self) -> int:
        """Images that are trained on."""
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.where

    def rows_at(self, step: int) -> tuple[Fit, torch.Tensor]:
        """As of the small run; the permutation of an epoch is drawn once."""
        collecting = step >= self.main_steps
        fit = self.settings.collect if collecting else self.settings.main
        epoch, at = divmod(step - self.main_steps if collecting else step, fit.steps_per_epoch(self.count))
        key = derive_seed("trajectory", self.seed, int(collecting)), epoch
        if self._order[0] != key:
            self._order = key, epoch_order(*key, self.count)
        return fit, self._order[1][at * fit.batch_size : (at + 1) * fit.batch_size]

    def loss_at(self, rows: torch.Tensor) -> torch.Tensor:
        """The loss on this step's augmented images."""
        if self._fetched is None:
            total = self.main_steps + self.collect_steps
            plan = ([self._indices(step)] for step in range(self.step, total))
            self._fetched = batches(self.images, plan, self.workers)
        (batch,) = next(self._fetched)
        moved = to_device(batch, self.where)
        x, y = moved["x"], moved["label"]
        if self.augmentation is not None:
            x = self.augmentation(x, derive_seed("augment", self.seed, self.step))
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.where.type, torch.bfloat16, enabled=self.precision == "bf16"):
            logits = self.network(x)
        total_loss = self.loss(logits.float(), y)
        if self.step % LOOK_EVERY == 0:
            self.last_loss = float(total_loss.detach())
            if not math.isfinite(self.last_loss):
                raise NonFiniteError(
                    f"the loss is {self.last_loss} at step {self.step + 1} of collecting: lower the learning rate"
                )
        return total_loss

    def close(self) -> None:
        """Stop fetching."""
        if self._fetched is not None:
            self._fetched.close()  # type: ignore[attr-defined]

    def _indices(self, step: int) -> list[int]:
        indices: list[int] = self.rows_at(step)[1].tolist()
        return indices


def fingerprint(data: Dataset, samples: int = 8) -> str:
    """What a run records of its data: the number of images, and a digest of a few of them spread evenly."""
    rows = sorted({i * (len(data) - 1) // max(samples - 1, 1) for i in range(samples)})
    batch = data.batch(rows)
    digest = hashlib.blake2b(digest_size=8)
    for name in ("x", "label"):
        digest.update(batch[name].detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return f"{len(data)} images {digest.hexdigest()}"


def _shown(bar: ProgressLine, run: LargeRun, also: Progress | None) -> Progress:
    """Report to the bar, which begins at the first step that is taken."""
    begun = False

    def progress(done: int, total: int) -> None:
        nonlocal begun
        if not begun:
            bar.begin("originals", done - 1, total)
            begun = True
        bar.advance(done, run.last_loss)
        if also is not None:
            also(done, total)

    return progress
