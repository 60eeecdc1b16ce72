"""Where the checkpoints of `pdiff` come from: a folder, a training function, or a training on the user's data."""

from __future__ import annotations

import copy
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from latentia.core import transaction
from latentia.core.rng import derive_seed
from latentia.errors import InputError, LatentiaError, TrainingError
from latentia.methods.pdiff.checkpoints import LAYOUT, META, Checkpoints, Gathering, check_same
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.many import fork_rng
from latentia.recipes.user_code import a, called, images_of, load_named, network_of, reason, score_of

if TYPE_CHECKING:
    from torch import nn

    from latentia.recipes.pdiff_own import OwnNetworks
    from latentia.recipes.plan import Work
    from latentia.recipes.user_code import Images

STOPPED = "stopped"
"""Subfolder of the checkpoints' folder for what a trainer gave before it failed or was interrupted."""
LEAST = 4
"""Images that a part of the data needs, so that there is something to judge on."""


def rehearse(recipe: OwnNetworks) -> None:
    """Build the network, select the parameters, call data, loss and score once, and import the trainer."""
    network = recipe.build()
    ParameterLayout.select(network, recipe.patterns)
    if recipe.trainer:
        load_named(recipe.trainer, "trainer")
    if recipe.score and math.isnan(score_of(recipe.score, copy.deepcopy(network))):
        raise InputError(f"score: {recipe.score} says NaN or infinity of your network as it is built: return a number")
    if not recipe.data:
        return
    x, y = images_of(recipe.data)
    split(recipe, len(x))
    trains = not (recipe.checkpoints or recipe.trainer)
    if not are_classes(y) and not (trains and recipe.loss):
        advice = "name a loss=mynets:loss of (output, y)" if trains else "leave data out, and name a score=mynets:score"
        wants = "cross-entropy" if trains else "judging by accuracy"
        raise InputError(f"data: y is {y.dtype} {tuple(y.shape)}, but {wants} wants classes, integers (N,): {advice}")
    try_out(recipe, network, x[:LEAST], y[:LEAST], trains)


def try_out(recipe: OwnNetworks, network: nn.Module, x: torch.Tensor, y: torch.Tensor, trains: bool) -> None:
    """One forward pass, and the loss and its gradient where your network is to be trained."""
    loss = loss_of(recipe)
    try:
        with fork_rng(x.device):
            output = network(x)
            if trains:
                loss(output, y).backward()
            elif are_classes(y):
                F.cross_entropy(output, y)
    except Exception as error:
        what = f"x {tuple(x.shape)}, y {tuple(y.shape)}"
        raise InputError(f"your network fails on the first {len(x)} of your data, {what}: {reason(error)}") from error


def from_folder(recipe: OwnNetworks) -> Checkpoints:
    """The networks of a folder of state dicts, of saved `Checkpoints`, or of a run."""
    folder, network = Path(recipe.checkpoints), recipe.build()
    saved = next((each for each in (folder, folder / "originals") if transaction.current(each / LAYOUT).exists()), None)
    if saved is None:
        return Checkpoints.from_folder(folder, recipe.patterns, network)
    found = Checkpoints.load(saved)
    check_same(network.state_dict(), found.base, "your network", str(saved))
    check_layout(found, ParameterLayout.select(network, recipe.patterns), saved)
    return found


def check_layout(found: Checkpoints, wanted: ParameterLayout, where: Path) -> None:
    """Raise `InputError` when saved checkpoints hold other parameters than those that are asked for."""
    if found.layout != wanted:
        held = found.layout.names
        other = next((name for name in wanted.names if name not in held), None)
        lacks = f"it lacks {other!r}" if other else f"it also holds {next(n for n in held if n not in wanted.names)!r}"
        raise InputError(
            f"{where} holds checkpoints of {len(held)} tensors, but patterns select {len(wanted.names)}: {lacks}; "
            "give the patterns that they were collected with"
        )


def from_trainer(recipe: OwnNetworks, folder: Path | None) -> Checkpoints:
    """The first `count` networks that the trainer yields. What it gave before an error or Ctrl-C is kept, and said."""
    states = called(recipe.trainer, "trainer", recipe.seed)
    gathering = Gathering(recipe.patterns, {"source": "trainer", "trainer": recipe.trainer}, recipe.build())
    try:
        for number, state in enumerate(itertools.islice(_iterated(recipe, states), recipe.count)):
            gathering.add(state, f"network {number} of {recipe.trainer}")
        if not len(gathering):
            raise InputError(f"trainer: {recipe.trainer} yielded nothing: yield state dicts, network.state_dict()")
    except (Exception, KeyboardInterrupt) as error:
        count, saved = len(gathering), ""
        if folder is not None and count:
            gathering.finish().save(folder / STOPPED)
            saved = f"; the {count} networks before it are kept: checkpoints={folder / STOPPED} goes on with them"
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"interrupted{saved or ' in the trainer'}; --resume calls it anew") from None
        words = str(error) if isinstance(error, LatentiaError) else f"trainer: {recipe.trainer} failed: {reason(error)}"
        raise TrainingError(words + saved) from error
    return gathering.finish()


def _iterated(recipe: OwnNetworks, states: Any) -> Iterator[Any]:
    """An iterator over the states; `InputError` for anything else."""
    if isinstance(states, Iterable) and not isinstance(states, Mapping | torch.nn.Module | torch.Tensor | str):
        return iter(states)
    raise InputError(f"trainer: {recipe.trainer} returned {a(states)}: it must yield a state dict for each network")


def from_data(recipe: OwnNetworks, folder: Path | None) -> Checkpoints:
    """One training run on the data's first part, and K checkpoints at its end."""
    from latentia.methods.pdiff.collect import train_trajectory

    x, y = images_of(recipe.data)
    rows = split(recipe, len(x))["fit"]
    return train_trajectory(
        lambda: network_of(recipe.module),
        (x[rows], y[rows]),
        recipe.patterns,
        recipe.count,
        recipe.training.build(),
        seed=recipe.seed,
        loss=loss_of(recipe),
        folder=folder if _first() else None,
    )


def kept(recipe: OwnNetworks, folder: Path | None, make: Callable[[], Checkpoints]) -> Checkpoints:
    """The checkpoints that `folder` holds, or what `make` gives, saved there.

    Of several processes the first makes and the others wait: what a trainer does need not be the same twice.
    """
    if folder is None:
        return make()
    if not transaction.current(folder / META).exists():
        if _first():
            made = make()
            made.save(folder)
            return made
        while not transaction.current(folder / META).exists():
            time.sleep(0.1)
    found = Checkpoints.load(folder)
    check_layout(found, ParameterLayout.select(recipe.build(), recipe.patterns), folder)
    return found


def split(recipe: OwnNetworks, count: int) -> dict[str, torch.Tensor]:
    """Rows of the data by what they are for: `fit` (where we train), `select` and `test`.

    Raises `InputError` when one of them has fewer than `LEAST`.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed("own data", recipe.seed)))
    trains = not (recipe.checkpoints or recipe.trainer)
    fit = count - round(recipe.holdout * count) if trains else 0
    half = fit + (count - fit) // 2
    parts = {"fit": order[:fit], "select": order[fit:half], "test": order[half:]}
    for name, rows in parts.items():
        if len(rows) < LEAST and (trains or name != "fit"):
            raise InputError(
                f"data: {count} samples leave {len(rows)} to {name}, at least {LEAST} are needed: give more"
            )
    return {name: rows.sort().values for name, rows in parts.items()}


def judging_images(recipe: OwnNetworks) -> tuple[Images, Images] | None:
    """What chooses and what reports; None without data, and where y are no classes."""
    if not recipe.data:
        return None
    x, y = images_of(recipe.data)
    if not are_classes(y):
        return None
    rows = split(recipe, len(x))
    return (x[rows["select"]], y[rows["select"]]), (x[rows["test"]], y[rows["test"]])


def loss_of(recipe: OwnNetworks) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The user's loss, or cross-entropy."""
    return load_named(recipe.loss, "loss") if recipe.loss else F.cross_entropy


def are_classes(y: torch.Tensor) -> bool:
    """Whether labels are classes: integers (N,)."""
    return y.ndim == 1 and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)


def training_work(recipe: OwnNetworks, network: nn.Module) -> list[Work]:
    """What training your network costs; nothing where it cannot run without values (on the meta device)."""
    from latentia.recipes.plan import Work

    x, _ = images_of(recipe.data)
    run, fit = recipe.training, len(split(recipe, len(x))["fit"])

    def images(batch: int) -> tuple[torch.Tensor, ...]:
        return (torch.zeros(batch, *x.shape[1:], dtype=x.dtype),)

    def placed() -> nn.Module:
        return copy.deepcopy(network).to(torch.get_default_device())

    def call(network: nn.Module, x: torch.Tensor) -> Any:
        return network.eval()(x)  # BatchNorm has no use for one sample

    try:
        with torch.device("meta"), torch.no_grad():
            call(placed(), *images(1))
    except Exception:  # a network may look at values
        return []
    collecting = run.skip + 1 + (recipe.count - 1) * run.every
    seen = run.main.epochs * fit + collecting * run.collect.batch_size
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # they do not share this training out
    batch = max(1, min(run.main.batch_size, fit) // processes) * processes
    return [Work("autoencoder", recipe.module, placed, images, seen, batch, batch, call=call)]


def _first() -> bool:
    return os.environ.get("RANK", "0") == "0"
