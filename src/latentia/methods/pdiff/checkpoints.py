"""Checkpoints: K networks of one architecture as vectors, and the base network that holds everything else."""

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentia.core import transaction
from latentia.core.artifacts import load_state_dict, save_state_dict, untie
from latentia.core.files import read_json
from latentia.core.weight_files import PICKLES
from latentia.errors import ArtifactError, InputError, nearest
from latentia.methods.pdiff.layout import ParameterLayout, StateDict, is_statistic

STEM = "checkpoints"
LAYOUT, META = "layout.json", "meta.json"
ORDER = "_names"
"""Entry of the meta file: the base network's tensors in its own order, which a weight file does not keep."""


@dataclass(frozen=True, eq=False)
class Checkpoints:
    """K networks: their selected parameters as rows, the rest once.

    Args:
        layout: which tensors the vectors hold.
        vectors: (K, D) float32, one row per network.
        base: the whole state dict of the base network; what is not in the layout is taken from here.
        meta: how they were made; anything that JSON holds.
        own: name → (K, *shape): tensors outside of the layout that each network has for itself all the same, such as
            the BatchNorm statistics of independently trained networks.

    Raises `InputError` for shapes that do not fit together, `NonFiniteError` for a NaN or infinity in the vectors.
    """

    layout: ParameterLayout
    vectors: torch.Tensor
    base: StateDict
    meta: dict[str, Any] = field(default_factory=dict)
    own: StateDict = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape, size = tuple(self.vectors.shape), self.layout.size
        if len(shape) != 2 or shape[0] < 1 or shape[1] != size or self.vectors.dtype != torch.float32:
            raise InputError(f"vectors must be (K, {size}) float32 with K at least 1, got {shape} {self.vectors.dtype}")
        self.layout.check(self.base, "the base network")
        self.layout.check_finite(self.vectors, "the checkpoints")
        for name, stacked in self.own.items():
            if name not in self.base or name in self.layout.names:
                raise InputError(f"own tensor {name!r} must be one of the base network outside of the layout")
            if tuple(stacked.shape) != (shape[0], *self.base[name].shape):
                expected = (shape[0], *self.base[name].shape)
                raise InputError(f"own tensor {name!r} must have shape {expected}, got {tuple(stacked.shape)}")

    def __len__(self) -> int:
        return len(self.vectors)

    def state_dict(self, i: int) -> StateDict:
        """Everything network i needs for `load_state_dict`, in the base's dtypes; its tensors are its own."""
        return self.overlay(self.vectors[i], {name: stacked[i] for name, stacked in self.own.items()})

    def overlay(self, vector: torch.Tensor, own: Mapping[str, torch.Tensor] | None = None) -> StateDict:
        """The base network's state dict with the tensors of any vector (D,), and of `own`, in place of its own."""
        laid = {**self.layout.unflatten(vector), **(own or {})}
        laid = {name: tensor for name, tensor in laid.items() if name in self.base}
        clones: dict[int, torch.Tensor] = {}  # a tensor with two names stays one
        state: StateDict = {}
        for name, tensor in self.base.items():
            source = laid.get(name, tensor)
            if id(source) not in clones:
                clones[id(source)] = source.detach().to(tensor.dtype, copy=True).contiguous()
            state[name] = clones[id(source)]
        return state

    def select(self, rows: Sequence[int] | slice | torch.Tensor) -> "Checkpoints":
        """The networks at `rows` (indices, a slice, or a mask), in that order."""
        if not isinstance(rows, slice):
            rows = torch.as_tensor(rows)
            if rows.dtype != torch.bool:
                bad = rows[(rows < -len(self)) | (rows >= len(self))]
                if bad.numel():
                    raise InputError(f"there is no checkpoint {int(bad[0])}: there are {len(self)}")
                rows = rows.long()
        own = {name: stacked[rows] for name, stacked in self.own.items()}
        return Checkpoints(self.layout, self.vectors[rows], self.base, dict(self.meta), own)

    def save(self, folder: Path | str) -> None:
        """Write `checkpoints.safetensors`, `layout.json` and `meta.json`, all or nothing."""
        folder = Path(folder)
        tensors = {"vectors": self.vectors}
        tensors |= {f"base.{name}": tensor for name, tensor in self.base.items()}
        tensors |= {f"own.{name}": tensor for name, tensor in self.own.items()}
        meta = {**self.meta, ORDER: list(self.base)}
        texts = {LAYOUT: self.layout.to_json(), META: json.dumps(meta, indent=2, sort_keys=True) + "\n"}
        save_state_dict(tensors, folder, stem=STEM, texts=texts)

    @classmethod
    def load(cls, folder: Path | str) -> "Checkpoints":
        """Read what `save` wrote; raises `ArtifactError` for a folder that is none, or whose layout is another's."""
        folder = Path(folder)
        layout = read_layout(folder / LAYOUT)
        tensors = load_state_dict(folder, stem=STEM)
        meta = read_json(transaction.current(folder / META))
        if "vectors" not in tensors:
            raise ArtifactError(f"{folder} holds no 'vectors': are these saved checkpoints?")
        base, own = under("base.", tensors), under("own.", tensors)
        names = meta.pop(ORDER, None)
        if isinstance(names, list) and set(names) == set(base):
            base = {name: base[name] for name in names}
        try:
            return cls(layout, tensors["vectors"], base, meta, own)
        except InputError as error:
            raise ArtifactError(f"{folder}: the files do not belong together: {error}") from None

    @classmethod
    def from_folder(
        cls, folder: Path | str, patterns: str | Sequence[str], network: nn.Module | None = None
    ) -> "Checkpoints":
        """K networks from a folder of state-dict files, one each: `*.safetensors`, or pickles of tensors alone.

        Files are taken in natural order (`step2` before `step10`), as `from_states` takes states. Raises
        `ArtifactError` for an empty folder or a file that cannot be read, and what `from_states` raises.
        """
        files = state_files(Path(folder))
        names = [file.name for file in files]
        states = map(load_state_dict, files)
        return cls.from_states(states, patterns, names, {"source": "folder", "files": names}, network)

    @classmethod
    def from_states(
        cls,
        states: Iterable[Mapping[str, torch.Tensor] | nn.Module],
        patterns: str | Sequence[str],
        names: Sequence[str] | None = None,
        meta: Mapping[str, Any] | None = None,
        network: nn.Module | None = None,
    ) -> "Checkpoints":
        """K networks from their state dicts, such as a training function yields: each is read before the next is asked.

        The first is the base. BatchNorm statistics and counters that differ are kept per network in `own`.

        Args:
            states: state dicts, or one network again and again while it trains.
            patterns: which parameters (`ParameterLayout.select`).
            names: what messages call the states; default `network 0`, ….
            meta: recorded with the checkpoints.
            network: whose states these are. It tells parameters from buffers and which tensors are one (a file may
                hold each of their names, or one alone), and every state must fit it; without, the first state is all
                that is known.

        Warns when parameters that are not selected differ between the states: their values come from the first then.
        Raises `InputError` when the names or shapes of a state differ from the first's (or the network's), saying where
        they differ first, `NonFiniteError` for a NaN or infinity.
        """
        gathering = Gathering(patterns, meta, network)
        for i, state in enumerate(states):
            gathering.add(state, names[i] if names else f"network {i}")
        return gathering.finish()


class Gathering:
    """State dicts, one after the other, on their way to `Checkpoints`; arguments as of `Checkpoints.from_states`."""

    def __init__(
        self,
        patterns: str | Sequence[str],
        meta: Mapping[str, Any] | None = None,
        network: nn.Module | None = None,
    ) -> None:
        self.patterns, self.meta = patterns, dict(meta or {})
        self.rows: list[torch.Tensor] = []
        self.base: StateDict = {}
        self._first = "your network"
        self._own: dict[str, list[torch.Tensor]] = {}
        self._differ: set[str] = set()
        self._ties: dict[str, str] = {}
        self._wanted: StateDict = {}
        self._layout: ParameterLayout | None = None
        if network is not None:
            self._layout = ParameterLayout.select(network, patterns)
            self._wanted = network.state_dict()
            self._ties = untie(self._wanted)[1]

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, source: Mapping[str, torch.Tensor] | nn.Module, name: str) -> None:
        """Read one more network, called `name` in messages; a copy is taken. Nothing is added when it raises."""
        state = self._state(source, name)
        layout = self._layout or ParameterLayout.select(source, self.patterns)
        check_same(self._wanted or state, state, self._first, name)
        row = layout.flatten(state, name)
        if not self.rows:
            self._begin(layout, state, name)
        for key, stack in self._own.items():
            stack.append(state[key].detach().cpu().clone())
        others = (key for key in self._outside(layout) - self._differ if key not in self._own)
        self._differ.update(key for key in others if not torch.equal(state[key].cpu(), self.base[key]))
        self.rows.append(row)

    def finish(self) -> Checkpoints:
        """All that were added. Raises `InputError` when there are none."""
        if not self.rows or self._layout is None:
            raise InputError("there are no states: give at least one network")
        if self._differ:
            warnings.warn(
                f"{len(self._differ)} parameters outside of the selection differ between the networks, first "
                f"{min(self._differ)!r}: they are taken from {self._first}; select them too, or these are other "
                "networks",
                stacklevel=3,
            )
        own = {key: torch.stack(stack) for key, stack in self._own.items() if any(not t.equal(stack[0]) for t in stack)}
        meta = {**self.meta, "differ": sorted(self._differ)}
        return Checkpoints(self._layout, torch.stack(self.rows), self.base, meta, own)

    def _begin(self, layout: ParameterLayout, state: StateDict, name: str) -> None:
        """The first network is the base, and what the others are compared with."""
        self._layout, self._first = layout, name
        self.base = _cloned(state)
        self.base |= {other: self.base[first] for other, first in self._ties.items()}
        self._wanted = self.base
        self._own = {key: [] for key in sorted(self._outside(layout)) if _is_own(key, self.base[key])}

    def _outside(self, layout: ParameterLayout) -> set[str]:
        return set(self.base) - {*layout.names, *layout.ties}

    def _state(self, source: Mapping[str, torch.Tensor] | nn.Module, name: str) -> StateDict:
        """The state dict, with every name of a tensor that has several; `InputError` when it is none."""
        given = source.state_dict() if isinstance(source, nn.Module) else source
        if not isinstance(given, Mapping):
            raise InputError(f"{name} is a {type(given).__name__}: give state dicts, or networks")
        for key, tensor in given.items():
            if not isinstance(tensor, torch.Tensor):
                raise InputError(f"{name} holds a {type(tensor).__name__} at {key!r}: state dicts hold tensors alone")
        state = dict(given)
        for _ in range(2):  # a name may come by way of another
            for other, first in self._ties.items():
                if first in state:
                    state.setdefault(other, state[first])
                elif other in state:
                    state[first] = state[other]
        return state


def read_layout(path: Path) -> ParameterLayout:
    """The layout in a file; raises `ArtifactError` when it is missing or none."""
    try:
        text = transaction.current(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ArtifactError(f"no {path.name} in {path.parent}: are these saved checkpoints?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"could not read {path}: {error}") from None
    return ParameterLayout.from_json(text, path)


def state_files(folder: Path) -> list[Path]:
    """The state-dict files of a folder in natural order; `ArtifactError` when there is none."""
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder: give the folder that holds one state-dict file per network")
    endings = (".safetensors", *PICKLES)
    files = [path for path in folder.iterdir() if path.suffix in endings and not path.name.startswith(".")]
    if not files:
        raise ArtifactError(f"{folder} holds no state dicts: expected files that end in {', '.join(endings)}")
    return sorted(files, key=lambda path: list(_natural(path.name)))


def check_same(
    first: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], first_name: str, other_name: str
) -> None:
    """Raise `InputError` unless two state dicts agree in names and shapes; tells the first that differs."""
    for name, tensor in first.items():
        shape = tuple(tensor.shape)
        if name not in other:
            match = nearest(name, other)
            hint = f"; the nearest there is {match!r}" if match else ""
            raise InputError(f"{other_name} differs from {first_name} first at {name!r} {shape}: it lacks it{hint}")
        if tuple(other[name].shape) != shape:
            found = tuple(other[name].shape)
            raise InputError(f"{other_name} differs from {first_name} first at {name!r}: {found} against {shape}")
    for name in other:
        if name not in first:
            raise InputError(f"{other_name} differs from {first_name} first at {name!r}, which {first_name} lacks")


def _is_own(name: str, tensor: torch.Tensor) -> bool:
    return is_statistic(name) or not tensor.is_floating_point()


def _cloned(state: Mapping[str, torch.Tensor]) -> StateDict:
    """The state on the CPU in memory of its own; a tensor with two names stays one."""
    tensors, ties = untie(state)
    clones = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    return {name: clones[ties.get(name, name)] for name in state}


def _natural(name: str) -> Iterator[tuple[int, int, str]]:
    for part in re.findall(r"\d+|\D+", name):
        yield (0, int(part), "") if part.isdigit() else (1, 0, part)


def under(prefix: str, tensors: StateDict) -> StateDict:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
