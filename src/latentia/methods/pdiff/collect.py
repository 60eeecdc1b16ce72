"""Collecting checkpoints: K along one training run, or one from each of K seeds; written as they come, resumable."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import nn

from latentia.core.arguments import check_count
from latentia.core.rng import derive_seed
from latentia.errors import InputError, NonFiniteError, check_choice
from latentia.methods.pdiff.checkpoints import Checkpoints, under
from latentia.methods.pdiff.layout import ParameterLayout, StateDict
from latentia.methods.pdiff.many import (
    Fit,
    Images,
    Loss,
    batch_rows,
    fork_rng,
    loss_name,
    new_network,
    train_one_by_one,
    train_together,
)
from latentia.methods.pdiff.place import Place, digests

Build = Callable[[], nn.Module]
Progress = Callable[[int, int], None]
"""Called with (done, total); what it raises stops the run, which goes on from its last save when called again."""


@dataclass(frozen=True)
class Trajectory:
    """One training run and K checkpoints at its end.

    Args:
        main: training of the whole network; 0 epochs takes it as `build` makes it (a pretrained one).
        collect: training of the selected parameters, the rest frozen, under a new optimizer; its `epochs` are not
            read (it lasts until there are K) and its rate stays at `lr`.
        skip: first steps that are not saved.
        every: steps from one checkpoint to the next.
        batch_norm: mode of the BatchNorm layers while collecting, `train` (batch statistics) or `eval` (those of the
            main run). The base keeps the main run's running statistics in both.
    """

    main: Fit
    collect: Fit
    skip: int = 0
    every: int = 1
    batch_norm: str = "train"

    def __post_init__(self) -> None:
        check_choice("batch_norm", self.batch_norm, ("train", "eval"))
        check_count("skip", self.skip, least=0)
        check_count("every", self.every)


PRESETS: Mapping[str, Trajectory] = MappingProxyType(
    {
        "sgd": Trajectory(
            main=Fit("sgd", lr=0.1, epochs=30, batch_size=64, weight_decay=5e-4, schedule="thirds"),
            collect=Fit("sgd", lr=1e-4, batch_size=64, weight_decay=5e-4, schedule="constant"),
        ),
        "adamw": Trajectory(
            main=Fit("adamw", lr=5e-4, epochs=10, batch_size=128, weight_decay=5e-4, schedule="cosine"),
            collect=Fit("adamw", lr=0.03, batch_size=128, weight_decay=5e-4, schedule="constant"),
            skip=1,
        ),
    }
)
"""`sgd`: the article's way with its first code's values (CIFAR-100 ResNet-18; rate 0.1 cut to 1e-4, then the last two
BatchNorm layers alone at that residual rate; saved densely; that code saved once an epoch: `every=steps_per_epoch`).
`adamw`: the later edition's (constant rate 0.03 on norm layers, a checkpoint every step from the second on)."""


def train_trajectory(
    build: Build,
    data: Images,
    patterns: str | Sequence[str],
    K: int = 200,
    settings: Trajectory | str = "sgd",
    *,
    seed: int = 0,
    loss: Loss = F.cross_entropy,
    folder: Path | str | None = None,
    save_every: int = 100,
    progress: Progress | None = None,
) -> Checkpoints:
    """Train a network, freeze all but the selected parameters, go on and keep K checkpoints of them.

    Args:
        build: makes the network from torch's global generator, which is seeded before.
        data: images (N, ...) and labels (N,), int64 for cross-entropy; the device they lie on is used.
        patterns: which parameters (`ParameterLayout.select`).
        K: number of checkpoints.
        settings: a `Trajectory` or the name of one in `PRESETS`.
        seed: of the initialisation, the data order and dropout.
        loss: logits (B, classes), labels (B,) → the mean to minimise.
        folder: where to write; a run that was stopped there goes on exactly, a finished one is only read.
        save_every: steps between writes of what a stopped run needs.
        progress: called after every step.

    Raises `NonFiniteError` when the weights diverge, `TrainingError` when `folder` holds a run with other values.
    """
    if isinstance(settings, str):
        check_choice("preset", settings, PRESETS)
        settings = PRESETS[settings]
    check_count("K", K)
    _check_data(data, loss)
    network = new_network(build, seed).to(data[0].device)
    layout = ParameterLayout.select(network, patterns)
    identity = {"kind": "trajectory", "K": K, "seed": seed, "settings": asdict(settings)}
    identity["loss"] = loss_name(loss)
    place = Place(folder, identity | digests(network, layout) | {"data": _digest(data)})
    if place.finished():
        return Checkpoints.load(place.folder)
    return TrajectoryRun(network, layout, data, settings, K, seed, loss).carry_out(place, save_every, progress)


def train_seeds(
    build: Build,
    data: Images,
    patterns: str | Sequence[str] = "*",
    seeds: int | Sequence[int] = 200,
    fit: Fit | None = None,
    *,
    vectorised: bool = True,
    chunk: int = 50,
    init_seed: int | None = None,
    loss: Loss = F.cross_entropy,
    folder: Path | str | None = None,
    progress: Progress | None = None,
) -> Checkpoints:
    """Train one network from each seed, `chunk` of them at once; the selected parameters of each are a row.

    What is not selected, BatchNorm statistics above all, is kept per network in `Checkpoints.own`; the base is the
    first network. A network's result does not depend on the others.

    Args:
        build, data, patterns, loss, folder, progress: as for `train_trajectory`; `progress` counts networks.
        seeds: their number (0, 1, …) or the seeds themselves.
        fit: how each is trained.
        vectorised: False trains one after the other: the control.
        chunk: networks at once; also the unit that is written, and repeated by a run that was stopped within it.
        init_seed: one initialisation for all, so that only the data order differs; None: each from its own seed.

    Raises `NonFiniteError` naming a seed that diverged, `TrainingError` when `folder` holds a run with other values.
    """
    seeds = list(range(check_count("seeds", seeds))) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"give at least one seed, each once, got {seeds[:8]}")
    check_count("chunk", chunk)
    _check_data(data, loss)
    fit = fit or Fit()
    device = data[0].device
    network = new_network(build, seeds[0]).to(device)
    layout = ParameterLayout.select(network, patterns)
    identity = {"kind": "seeds", "seeds": seeds, "fit": asdict(fit), "chunk": chunk, "init_seed": init_seed}
    place = Place(
        folder,
        identity
        | {"vectorised": vectorised, "loss": loss_name(loss), "data": _digest(data)}
        | digests(network, layout),
    )
    if place.finished():
        return Checkpoints.load(place.folder)
    train = train_together if vectorised else train_one_by_one
    parts: list[StateDict] = []
    for number, at in enumerate(range(0, len(seeds), chunk)):
        some = seeds[at : at + chunk]
        part = place.read(f"part-{number:05d}")
        if part is None:
            starts = [new_network(build, s if init_seed is None else init_seed).to(device).state_dict() for s in some]
            with fork_rng(device):
                torch.manual_seed(derive_seed("together", *some))  # for dropout
                trained = train(network, starts, some, data, fit, loss)
            part = {name: tensor.cpu() for name, tensor in trained.items()}
            _check_finite(part, some)
            place.write(f"part-{number:05d}", part)
        parts.append(part)
        if progress is not None:
            progress(min(at + chunk, len(seeds)), len(seeds))
    stacked = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    vectors = torch.cat([stacked[name].flatten(1).float() for name in layout.names], 1)
    inside = {*layout.names, *layout.ties}
    own = {name: tensor for name, tensor in stacked.items() if name not in inside}
    return place.finish(layout, vectors, {name: tensor[0].clone() for name, tensor in stacked.items()}, own)


class TrajectoryRun:
    """The state of one trajectory: everything the next step reads. A step is a function of it and of the seed."""

    def __init__(
        self,
        network: nn.Module,
        layout: ParameterLayout,
        data: Images,
        settings: Trajectory,
        K: int,
        seed: int,
        loss: Loss,
    ) -> None:
        self.network, self.layout, self.data = network, layout, data
        self.settings, self.seed, self.loss = settings, seed, loss
        self.main_steps = settings.main.epochs * settings.main.steps_per_epoch(self.count)
        self.collect_steps = settings.skip + 1 + (K - 1) * settings.every
        self.step = 0
        self.rows: list[torch.Tensor] = []
        self.base: StateDict = {}
        self.optimizer = settings.main.build([p for p in network.parameters() if p.requires_grad])
        if self.main_steps == 0:
            self.freeze()

    @property
    def count(self) -> int:
        """Images that are trained on."""
        return len(self.data[0])

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.data[0].device

    def carry_out(self, place: "Place", save_every: int, progress: Progress | None = None) -> Checkpoints:
        """All steps that are left, from the last save on; the checkpoints."""
        self.restore(place)
        total = self.main_steps + self.collect_steps
        while self.step < total:
            with fork_rng(self.device):
                self.advance()
            if self.step % save_every == 0 or self.step == total:
                self.store(place)
            if progress is not None:
                progress(self.step, total)
        return place.finish(self.layout, torch.stack(self.rows), self.base)

    def rows_at(self, step: int) -> tuple[Fit, torch.Tensor]:
        """How step `step` is trained, and the images it sees (B,)."""
        collecting = step >= self.main_steps
        fit = self.settings.collect if collecting else self.settings.main
        at = step - self.main_steps if collecting else step
        return fit, batch_rows(derive_seed("trajectory", self.seed, int(collecting)), at, self.count, fit.batch_size)

    def loss_at(self, rows: torch.Tensor) -> torch.Tensor:
        """The loss on the images `rows` of this step, with its graph."""
        x, y = self.data
        rows = rows.to(x.device)
        return self.loss(self.network(x[rows]), y[rows])

    def freeze(self) -> None:
        """From the main run to collecting: the base is taken, the rest stands still, the optimizer is new."""
        self.base = {name: tensor.cpu().clone() for name, tensor in self.network.state_dict().items()}
        names = {*self.layout.names, *self.layout.ties}
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(name in names)
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(self.settings.batch_norm == "train")
        selected = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.optimizer = self.settings.collect.build(selected)

    def advance(self) -> None:
        """One step, and its checkpoint when one is due."""
        collecting = self.step >= self.main_steps
        at = self.step - self.main_steps if collecting else self.step
        fit, rows = self.rows_at(self.step)
        torch.manual_seed(derive_seed("step", self.seed, self.step))  # for dropout
        self.optimizer.param_groups[0]["lr"] = fit.lr if collecting else fit.rate(at, self.main_steps)
        self.optimizer.zero_grad()
        self.loss_at(rows).backward()
        self.optimizer.step()
        self.step += 1
        if collecting and at >= self.settings.skip and (at - self.settings.skip) % self.settings.every == 0:
            self.rows.append(self.layout.flatten(self.network, f"the network after step {self.step}"))
        if self.step == self.main_steps:
            self.layout.flatten(self.network, "the trained network")
            self.freeze()

    def store(self, place: "Place") -> None:
        """Write what `restore` reads."""
        tensors: StateDict = {f"net.{name}": tensor for name, tensor in self.network.state_dict().items()}
        for index, entries in self.optimizer.state_dict()["state"].items():
            tensors |= {f"opt.{index}.{key}": value for key, value in entries.items() if value is not None}
        tensors |= {f"base.{name}": tensor for name, tensor in self.base.items()}
        if self.rows:
            tensors["rows"] = torch.stack(self.rows)
        tensors["step"] = torch.tensor(self.step)
        place.write("trajectory", tensors)

    def restore(self, place: "Place") -> None:
        """Go on where a stopped run was last written, if one was."""
        tensors = place.read("trajectory")
        if tensors is None:
            return
        self.network.load_state_dict(under("net.", tensors))
        self.step = int(tensors["step"])
        if self.step >= self.main_steps:
            self.freeze()
            kept = under("base.", tensors)
            self.base = {name: kept[name] for name in self.network.state_dict()}  # in order, which files do not keep
        entries: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in under("opt.", tensors).items():
            index, _, key = name.partition(".")
            entries.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        self.rows = list(tensors["rows"]) if "rows" in tensors else []


def _digest(data: Images) -> str:
    images = hashlib.blake2b(digest_size=8)
    for tensor in data:
        images.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return images.hexdigest()


def _check_data(data: Images, loss: Loss) -> None:
    """Any labels do for a loss of the caller's own; cross-entropy wants classes."""
    x, y = data
    fits = y.shape[:1] == x.shape[:1] if loss is not F.cross_entropy else y.shape == x.shape[:1]
    if len(x) == 0 or not fits or (loss is F.cross_entropy and y.dtype != torch.int64):
        raise InputError(
            f"give images (N, ...) and labels (N,) int64, got {tuple(x.shape)}, {tuple(y.shape)} {y.dtype}"
        )
    if not torch.isfinite(x).all():
        raise NonFiniteError("the images hold a NaN or infinity: leave them out")


def _check_finite(stacked: StateDict, seeds: Sequence[int]) -> None:
    for name, tensor in stacked.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            row = int((~torch.isfinite(tensor)).flatten(1).any(1).nonzero()[0])
            raise NonFiniteError(f"the network of seed {seeds[row]} diverged ({name!r}): lower the learning rate")
