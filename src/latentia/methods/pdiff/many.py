"""Many networks of one architecture trained at once: their parameters stacked, `torch.func.vmap` over the stack.

The one training loop (`training/loop.py`) trains one network with one objective; here S small networks, each with its
own initialisation and order of the data, take each step together, so this loop is its own. One by one is the control.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap

from latentia.core.arguments import check_count, check_number
from latentia.core.rng import derive_seed
from latentia.errors import check_choice
from latentia.methods.pdiff.layout import StateDict

Images = tuple[torch.Tensor, torch.Tensor]
"""x (N, ...) and labels (N,) int64."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Logits (B, classes) and labels (B,) → the mean to minimise; cross-entropy by default."""

SCHEDULES = ("constant", "cosine", "thirds")
OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Fit:
    """How a network is trained.

    Args:
        optimizer: `sgd` (with `momentum`) or `adamw`.
        lr: learning rate at the start.
        epochs: passes over the data, each in a new order; a last incomplete batch is left out.
        batch_size: images a step, at most all of them.
        weight_decay: of the optimizer.
        momentum: of SGD.
        schedule: `constant`, `cosine` (to 0), or `thirds` (×0.1 after each third: the residual rate is lr/1000).
    """

    optimizer: str = "adamw"
    lr: float = 3e-3
    epochs: int = 30
    batch_size: int = 32
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: str = "cosine"

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_number("lr", self.lr, 0, open_low=True)
        check_count("epochs", self.epochs, least=0)
        check_count("batch_size", self.batch_size)

    def steps_per_epoch(self, count: int) -> int:
        """Steps in one pass over `count` images."""
        return max(1, count // self.batch_size)

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of step `step` of `steps`."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * step / steps)) / 2
        return self.lr * 0.1 ** (3 * step // steps) if self.schedule == "thirds" else self.lr

    def build(self, parameters: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
        """The optimizer over these parameters, or over stacks of them: every rule works element by element."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay)
        return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay, fused=True)


def batch_rows(seed: int, step: int, count: int, batch_size: int) -> torch.Tensor:
    """The images of step `step`, (B,) int64: a function of the seed and the step alone."""
    per_epoch = max(1, count // batch_size)
    epoch, at = divmod(step, per_epoch)
    return epoch_order(seed, epoch, count)[at * batch_size : (at + 1) * batch_size]


def epoch_order(seed: int, epoch: int, count: int) -> torch.Tensor:
    """A permutation of the images, (N,) int64."""
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(count, generator=generator)


def new_network(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The network that `build` makes from this seed, in training mode; torch's global generator stays as it is."""
    with fork_rng(torch.device("cpu")):
        torch.manual_seed(derive_seed("network", seed))
        return build().train()


def fork_rng(device: torch.device) -> AbstractContextManager[None]:
    """Leave the global generators of the CPU and of `device` as they were at the end of the block."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def loss_name(loss: Loss) -> str:
    """What a run records of its loss."""
    return str(getattr(loss, "__qualname__", type(loss).__name__))


def train_together(
    network: nn.Module,
    states: Sequence[StateDict],
    seeds: Sequence[int],
    data: Images,
    fit: Fit,
    loss: Loss = F.cross_entropy,
) -> StateDict:
    """Train S networks at once from their state dicts; returns the trained states, stacked (S, *shape).

    Network s sees the batches of seed s. BatchNorm in training mode normalises by each network's own batch and moves
    the running statistics of its own, which are part of the stack: as in a loop over the networks. Dropout draws
    differently for each network, and not as a loop would.

    Measured (one CPU core, width 8, batches of 32): convolutions become grouped ones, about 3 times as fast as the
    loop; as matrix products of unfolded images they were half as fast as that, so they stay.
    """
    x, y = data
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    stacked = {name: torch.stack([state[name] for state in states]) for name in _own_names(network)}
    parameters = {name: tensor.requires_grad_() for name, tensor in stacked.items() if name in trainable}
    rest = {name: tensor for name, tensor in stacked.items() if name not in trainable}

    def loss_of(parameters: StateDict, rest: StateDict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return loss(functional_call(network, (parameters, rest), (x,)), y)

    losses = vmap(loss_of, randomness="different")
    optimizer = fit.build(list(parameters.values()))
    per_epoch = fit.steps_per_epoch(len(x))
    for epoch in range(fit.epochs):
        order = torch.stack([epoch_order(seed, epoch, len(x)) for seed in seeds]).to(x.device)
        for at in range(per_epoch):
            rows = order[:, at * fit.batch_size : (at + 1) * fit.batch_size]
            optimizer.param_groups[0]["lr"] = fit.rate(epoch * per_epoch + at, fit.epochs * per_epoch)
            optimizer.zero_grad()
            losses(parameters, rest, x[rows], y[rows]).sum().backward()
            optimizer.step()
    return _with_ties(network, {name: tensor.detach() for name, tensor in stacked.items()})


def train_one_by_one(
    network: nn.Module,
    states: Sequence[StateDict],
    seeds: Sequence[int],
    data: Images,
    fit: Fit,
    loss: Loss = F.cross_entropy,
) -> StateDict:
    """What `train_together` does, one network after the other: the control of its results and its speed."""
    x, y = data
    trained: list[StateDict] = []
    per_epoch = fit.steps_per_epoch(len(x))
    for state, seed in zip(states, seeds):
        network.load_state_dict(state)
        optimizer = fit.build([parameter for parameter in network.parameters() if parameter.requires_grad])
        for epoch in range(fit.epochs):
            order = epoch_order(seed, epoch, len(x)).to(x.device)
            for at in range(per_epoch):
                rows = order[at * fit.batch_size : (at + 1) * fit.batch_size]
                optimizer.param_groups[0]["lr"] = fit.rate(epoch * per_epoch + at, fit.epochs * per_epoch)
                optimizer.zero_grad()
                loss(network(x[rows]), y[rows]).backward()
                optimizer.step()
        trained.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
    return {name: torch.stack([state[name] for state in trained]) for name in trained[0]}


def _own_names(network: nn.Module) -> list[str]:
    """Names of the parameters and buffers in the state dict, each tensor once."""
    state = network.state_dict()
    tensors = (*network.named_parameters(), *network.named_buffers())
    return [name for name, _ in tensors if name in state]


def _with_ties(network: nn.Module, stacked: StateDict) -> StateDict:
    first: dict[int, str] = {
        id(tensor): name for name, tensor in (*network.named_parameters(), *network.named_buffers())
    }
    state = network.state_dict(keep_vars=True)
    return {name: stacked[first[id(tensor)]] for name, tensor in state.items()}
