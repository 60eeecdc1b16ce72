"""Phase, Optim, EMA: one stretch of training as a value."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentia.core.arguments import check_count
from latentia.core.protocols import Dataset
from latentia.data.dataset import TensorDataset
from latentia.errors import InputError, check_choice
from latentia.training.objective import Objective

SCHEDULES = ("constant", "cosine", "linear")
OPTIMIZERS = ("adam", "adamw", "muon")
FETCHERS = 4


@dataclass(frozen=True)
class Optim:
    """The optimizer and its learning rate over time.

        lr(k) = lr · min(1, (k+1)/warmup) · decay(progress), decay from 1 to `final_lr`

    Attributes:
        lr: peak learning rate.
        betas, eps, weight_decay: of Adam(W); with `adamw` and `muon` the decay is decoupled from the gradient.
        warmup: steps of linear warm-up, none for 0.
        schedule: `constant`, `cosine` or `linear` decay over the steps after warm-up.
        final_lr: where the decay ends, as a fraction of `lr`.
        clip: largest global gradient norm (of this optimizer's parameters); None for no clipping.
        optimizer: `adamw` or `adam`, both PyTorch's fused kernels; or `muon`, AdamW but for matrices (`Muon`).

    Raises `InputError` for a value out of range.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    eps: float = 1e-8
    warmup: int = 0
    schedule: str = "constant"
    final_lr: float = 0.0
    clip: float | None = 1.0
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_count("warmup", self.warmup, least=0)
        if not self.lr > 0:
            raise InputError(f"lr must be positive, got {self.lr}")
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be positive, or None for no clipping, got {self.clip}")
        if not 0 <= self.final_lr <= 1:
            raise InputError(f"final_lr is a fraction of lr in [0, 1], got {self.final_lr}")


@dataclass(frozen=True)
class EMA:
    """How weights are averaged over time; the arguments of `EMAModel`.

    Attributes:
        decay, min_decay: bounds of the decay.
        warmup: decay 1 − (1 + n/inv_gamma)^−power instead of (1 + n)/(10 + n) after n steps.
        inv_gamma, power: of that warm-up.
        update_after_step: steps during which the average is only a copy.
    """

    decay: float = 0.9999
    warmup: bool = False
    inv_gamma: float = 1.0
    power: float = 2 / 3
    update_after_step: int = 0
    min_decay: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_decay <= self.decay <= 1:
            raise InputError(f"need 0 <= min_decay <= decay <= 1, got {self.min_decay} and {self.decay}")


@dataclass(frozen=True)
class Phase:
    """One stretch of training: an objective, its data, for so many steps.

    Attributes:
        name: names its checkpoints and log lines; a plain file name.
        objective: what one step means.
        data: samples by index; may be smaller than a batch (it is gone through again and again, freshly
            permuted each time, and a batch may straddle two passes). Not empty.
        steps: optimizer steps.
        batch_size: samples an optimizer step sees, over all processes and accumulated batches.
        optim: one for all turns, or one by turn name.
        accumulate: forward and backward passes an optimizer step is made of.
        ema: how weights are averaged; None for not at all.
        preview: called every `Settings.preview_every` steps with averaged weights in place; returns
            pictures (B, C, H, W) in [-1, 1], or None for nothing.
        workers: background threads that fetch batches ahead; 0 fetches in line. None: 0 for tensors in memory,
            else `FETCHERS`. The batches are the same either way.

    Raises `InputError` for a value out of range.
    """

    name: str
    objective: Objective
    data: Dataset
    steps: int
    batch_size: int
    optim: Optim | Mapping[str, Optim] = Optim()
    accumulate: int = 1
    ema: EMA | None = None
    preview: Callable[[], torch.Tensor | None] | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if not self.name or Path(self.name).name != self.name or self.name.startswith("."):
            raise InputError(f"a phase's name must be a plain file name, got {self.name!r}")
        check_count("steps", self.steps)
        check_count("batch_size", self.batch_size)
        check_count("accumulate", self.accumulate)
        check_count("workers", self.fetchers, least=0)
        if len(self.data) < 1:
            raise InputError(f"phase {self.name!r} has an empty dataset: check the folder or the split")
        for turn in self.objective.turns:
            self.optim_of(turn)

    @property
    def fetchers(self) -> int:
        """Threads that fetch batches ahead."""
        if self.workers is None:
            return 0 if isinstance(self.data, TensorDataset) else FETCHERS
        return self.workers

    def optim_of(self, turn: str) -> Optim:
        """The optimizer settings of one turn."""
        if isinstance(self.optim, Optim):
            return self.optim
        if turn not in self.optim:
            raise InputError(f"phase {self.name!r} has no optim for turn {turn!r}; it has: {', '.join(self.optim)}")
        return self.optim[turn]

    def micro_batch(self, processes: int) -> int:
        """Samples in one forward pass of one process; `InputError` unless the batch divides evenly."""
        return micro_batch(self.name, self.batch_size, processes, self.accumulate)

    def must_agree(self) -> dict[str, Any]:
        """Everything about this phase that changes its result; `steps` may grow and is not part of it."""
        return {
            "objective": type(self.objective).__name__,
            **{f"objective.{k}": v for k, v in self.objective.settings().items()},
            "samples": len(self.data),
            "batch_size": self.batch_size,
            "accumulate": self.accumulate,
            **{f"{turn}.{k}": v for turn in self.objective.turns for k, v in asdict(self.optim_of(turn)).items()},
            "ema": None if self.ema is None else asdict(self.ema),
        }


def micro_batch(phase: str, batch_size: int, processes: int, accumulate: int) -> int:
    """Samples in one forward pass of one process; `InputError` unless the batch divides evenly."""
    passes = processes * accumulate
    if batch_size % passes:
        raise InputError(
            f"phase {phase!r}: batch_size {batch_size} is not divisible by {processes} processes × "
            f"{accumulate} accumulated batches: use a multiple of {passes}"
        )
    return batch_size // passes


@dataclass(frozen=True)
class PhaseResult:
    """What a phase leaves behind.

    Attributes:
        name: the phase's.
        objective: it, its modules holding the raw (last) weights, in eval mode.
        averaged: {module name: state dict} of averaged weights; None without EMA.
        steps: optimizer steps taken in all, earlier runs included.
        samples: samples seen in all.
        seconds: wall time of training in all, without previews and checkpoints.
    """

    name: str
    objective: Objective
    averaged: dict[str, dict[str, torch.Tensor]] | None
    steps: int
    samples: int
    seconds: float

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The trained modules by name."""
        return self.objective.modules_by_name
