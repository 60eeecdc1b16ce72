"""Objective: what one training step means. A batch in, a total and its named parts out."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import nn

from latentia.core.protocols import Batch
from latentia.errors import InputError


class Loss(NamedTuple):
    """What is minimised, and what is written down (a tuple, so that DDP and FSDP find the tensors in it).

    Attributes:
        total: a scalar with a gradient, a mean over the batch (so that accumulated batches average).
        parts: detached scalars by name, for the log.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class Objective(nn.Module, ABC):
    """A batch in, a total and its parts out; and which modules that trains.

    An objective is itself a module whose `forward` computes the loss, because that is the call which
    DDP, FSDP and autocast can wrap: inside it every sub-module may be called freely, by any method.

        class Denoise(Objective):
            def __init__(self, network):
                super().__init__()
                self.network = network
            def forward(self, batch, turn="main", step=0):
                noise = torch.randn_like(batch["x"])          # torch's own generator: the loop seeds it every step
                total = (self.network(batch["x"] + noise) - noise).square().mean()
                return Loss(total, {"loss": total.detach()})

    Its children are trained, averaged and saved under their attribute names, except those listed in `frozen`.
    Randomness comes from torch's global generators, which the loop seeds from (seed, phase, step, process).

    Class attributes:
        turns: the updates of one step, in order, each with its own optimizer: `("generator", "discriminator")`, say.
        frozen: names of children that are only used: they stay in eval mode, and the loop turns their gradients off
            and neither averages nor saves them. Where it depends on arguments, `__init__` sets `self.frozen`.
    """

    turns: ClassVar[tuple[str, ...]] = ("main",)
    frozen: tuple[str, ...] = ()

    @property
    def modules_by_name(self) -> dict[str, nn.Module]:
        """Everything that is trained, averaged and saved, by name."""
        return {name: module for name, module in self.named_children() if name not in self.frozen}

    def turn_modules(self, turn: str) -> tuple[str, ...]:
        """Names of the modules that this turn's optimizer owns; by default all of them."""
        return tuple(self.modules_by_name)

    def train(self, mode: bool = True) -> Self:
        """Train mode for what is trained; frozen children stay in eval mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def settings(self) -> dict[str, Any]:
        """What a resumed run must agree on, JSON-able (loss, weights, times, …)."""
        return {}

    def after_update(self, turn: str) -> None:
        """Called after every optimizer step of a turn, before the weights are averaged; nothing by default.

        For constraints on weights, such as norms that stay fixed. It must be a function of the weights and of what
        `__init__` set (a resumed run builds the objective anew, from the same start, and then restores the weights).
        """

    @abstractmethod
    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """The loss of one turn on one batch, already on the modules' device."""


def take(batch: Batch, key: str) -> torch.Tensor:
    """`batch[key]`, or an `InputError` that says what the batch holds."""
    if key not in batch:
        raise InputError(f"the batch has no {key!r}; it has: {', '.join(sorted(batch))}")
    return batch[key]
