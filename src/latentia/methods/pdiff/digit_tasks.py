"""Many tasks on the same images: "is the digit one of these?", or two digits told apart; and networks that learn them.

A task is a code of ten numbers: +1 for a digit whose images belong to class 1, −1 for class 0, 0 for a digit that the
task does not ask about. So a subset of digits is a code of ±1, and a pair is one +1, one −1 and zeros.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, vmap

from latentia.core.arguments import check_count
from latentia.core.rng import derive_seed
from latentia.errors import InputError, check_choice
from latentia.methods.pdiff.layout import StateDict
from latentia.methods.pdiff.many import Fit, Images, epoch_order
from latentia.methods.pdiff.scoring import Scorer

DIGITS = 10
KINDS = ("pair", "subset")


class TaskMLP(nn.Module):
    """Trunk and head: (B, 1, S, S) → linear → ReLU → linear → logits (B, 2).

    Named `trunk` and `head`. With few hidden units the trunk cannot serve all tasks at once, with many it can.
    """

    def __init__(self, hidden: int = 4, size: int = 8) -> None:
        super().__init__()
        self.trunk = nn.Linear(check_count("size", size) ** 2, check_count("hidden", hidden))
        self.head = nn.Linear(hidden, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, 1, S, S) → logits (B, 2)."""
        logits: torch.Tensor = self.head(F.relu(self.trunk(x.flatten(1))))
        return logits


def all_codes(kind: str = "subset", least: int = 2) -> torch.Tensor:
    """Every task of a kind, (N, 10) float32; with each code also its opposite, in which both classes are swapped.

    Args:
        kind: `subset` or `pair` (90 codes).
        least: digits in the smaller class of a subset, 1 to 5; at 2 there are 1,002 codes.
    """
    check_choice("kind of task", kind, KINDS)
    if kind == "pair":
        ordered = torch.tensor(list(itertools.permutations(range(DIGITS), 2)))
        return (F.one_hot(ordered[:, 0], DIGITS) - F.one_hot(ordered[:, 1], DIGITS)).float()
    if not 1 <= check_count("least", least) <= DIGITS // 2:
        raise InputError(f"least must be between 1 and {DIGITS // 2}, got {least}")
    codes = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=DIGITS)))
    ones = (codes > 0).sum(1)
    return codes[(ones >= least) & (ones <= DIGITS - least)]


def split_codes(codes: torch.Tensor, held_out: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes to train on and `held_out` codes that are not, (N − H, 10) and (H, 10).

    A code and its opposite stay together: a network for one is a network for the other with its outputs swapped.
    Raises `InputError` for an odd number, and for one that leaves fewer than two codes to train on.
    """
    if check_count("held_out", held_out) % 2 or held_out > len(codes) - 4:
        raise InputError(f"held_out must be even and at most {len(codes) - 4}, of {len(codes)} codes: got {held_out}")
    first = (codes != 0).int().argmax(1, keepdim=True)
    half = codes[codes.gather(1, first).squeeze(1) > 0]
    generator = torch.Generator().manual_seed(derive_seed("held-out tasks", seed))
    order = torch.randperm(len(half), generator=generator)
    held, kept = half[order[: held_out // 2]], half[order[held_out // 2 :]]
    return torch.cat([kept, -kept]), torch.cat([held, -held])


def task_labels(codes: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """Class of every image in every task: codes (T, 10), digits (M,) → (T, M) int64, −1 where a task does not ask."""
    if codes.ndim != 2 or codes.shape[1] != DIGITS or not len(codes):
        raise InputError(f"codes must be (T, {DIGITS}), got {tuple(codes.shape)}")
    signs = codes[:, digits.cpu()].sign()
    return torch.where(signs == 0, -1, (signs > 0).long()).to(digits.device)


def train_tasks(
    network: nn.Module,
    start: StateDict,
    codes: torch.Tensor,
    data: Images,
    fit: Fit,
    seed: int = 0,
    patterns: Sequence[str] = ("*",),
) -> StateDict:
    """Train one network for each code, all at once by `torch.func.vmap`; returns their states, stacked (T, *shape).

    All start from `start` and differ in their tasks and in the order of their images, which follows from the seed and
    the row. A task that does not ask about some digits sees the others alone; all take as many steps an epoch as the
    task with the fewest images. Cross-entropy of two classes.

    Args:
        network: the architecture, of networks without buffers.
        start: the common initialisation.
        codes: (T, 10), a row for each network; a code may stand in many rows.
        data: images and the digits on them.
        fit: how each is trained.
        seed: of the order of the images.
        patterns: the parameters that are trained, by the names of modules or parameters; `*` is all of them.
    """
    from latentia.methods.pdiff.layout import ParameterLayout

    x, digits = data
    labels = task_labels(codes, digits)
    trained = {*ParameterLayout.select(network, patterns).names}
    stacked = {n: t.detach().expand(len(codes), *t.shape).clone() for n, t in start.items()}
    moving = {name: tensor.requires_grad_() for name, tensor in stacked.items() if name in trained}
    still = {name: tensor for name, tensor in stacked.items() if name not in trained}

    def loss_of(moving: StateDict, still: StateDict, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(functional_call(network, (moving, still), (x,)), y)

    losses, optimizer = vmap(loss_of), fit.build(list(moving.values()))
    asked = labels >= 0
    count = int(asked.sum(1).min())
    if count < 1:
        raise InputError("a task asks about digits of which there is no image to train on")
    batch = min(fit.batch_size, count)
    per_epoch = count // batch
    for epoch in range(fit.epochs):
        order = _orders(asked, seed, epoch)
        for at in range(per_epoch):
            rows = order[:, at * batch : (at + 1) * batch]
            optimizer.param_groups[0]["lr"] = fit.rate(epoch * per_epoch + at, fit.epochs * per_epoch)
            optimizer.zero_grad()
            losses(moving, still, x[rows], labels.gather(1, rows)).sum().backward()
            optimizer.step()
    return {name: tensor.detach() for name, tensor in stacked.items()}


def _orders(asked: torch.Tensor, seed: int, epoch: int) -> torch.Tensor:
    """For each task its own images in a new order, then the others, (T, M) int64."""
    if bool(asked.all()) and len(asked) == 1:
        return epoch_order(seed, epoch, asked.shape[1])[None]
    generator = torch.Generator().manual_seed(derive_seed("task order", seed, epoch))
    places = torch.rand(asked.shape, generator=generator).to(asked.device)
    return (places + ~asked).argsort(1)


def task_accuracies(scorer: Scorer, vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Share of the scorer's images, of the digits that its task asks about, that each network gets right, (N,).

    Args:
        scorer: of the images to judge on, labelled by their digits.
        vectors: (N, D).
        codes: (N, 10), the task of each.
    """
    if len(codes) != len(vectors):
        raise InputError(f"give a code for each network, got {len(codes)} for {len(vectors)}")
    labels = task_labels(codes, scorer.y.cpu())
    right = scorer.logits(vectors).argmax(-1) == labels
    return right.double().sum(1) / (labels >= 0).sum(1)


def shared_trunk(
    network: nn.Module, start: StateDict, codes: torch.Tensor, data: Images, fit: Fit, seed: int = 0
) -> StateDict:
    """One trunk for all tasks, trained under all of their heads together; returns a state with that trunk.

    The strongest trunk for a generator of heads alone: min over trunk and heads of the mean loss over all tasks.
    Every step sees the same images in all tasks. The head is that of `start`.

    Args:
        network, start, codes, data, fit, seed: as of `train_tasks`; the network has parts `trunk` and `head`, all of
            its parameters.
    """
    x, digits = data
    labels = task_labels(codes, digits)
    trunk = {n: t.detach().clone().requires_grad_() for n, t in start.items() if n.startswith("trunk.")}
    heads = {
        n: t.detach().expand(len(codes), *t.shape).clone().requires_grad_() for n, t in start.items() if n not in trunk
    }

    def logits_of(heads: StateDict, trunk: StateDict, x: torch.Tensor) -> torch.Tensor:
        return functional_call(network, (heads, trunk), (x,))

    forward, optimizer = vmap(logits_of, in_dims=(0, None, None)), fit.build([*trunk.values(), *heads.values()])
    per_epoch = fit.steps_per_epoch(len(x))
    for epoch in range(fit.epochs):
        order = epoch_order(seed, epoch, len(x)).to(x.device)
        for at in range(per_epoch):
            rows = order[at * fit.batch_size : (at + 1) * fit.batch_size]
            optimizer.param_groups[0]["lr"] = fit.rate(epoch * per_epoch + at, fit.epochs * per_epoch)
            optimizer.zero_grad()
            logits = forward(heads, trunk, x[rows]).flatten(0, 1)
            F.cross_entropy(logits, labels[:, rows].flatten(), ignore_index=-1).backward()
            optimizer.step()
    return {name: trunk[name].detach() if name in trunk else tensor for name, tensor in start.items()}
