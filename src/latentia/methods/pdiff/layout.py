"""ParameterLayout: which tensors of a network make up its vector, and where each of them lies in it."""

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import torch
from torch import nn

from latentia.errors import ArtifactError, InputError, NonFiniteError, nearest

StateDict = dict[str, torch.Tensor]
Shape = tuple[int, ...]

STATISTICS = ("running_mean", "running_var")
"""Last part of the names of BatchNorm's statistics: floating point, yet measured rather than learnt."""


@dataclass(frozen=True)
class ParameterLayout:
    """The exact map between a network's selected tensors and one vector of length `size`.

    Tensor i fills `slices[i]` of the vector in row-major order. A tensor with several names (tied weights) lies in it
    once, under the first; `ties` maps the other names to that one, and `unflatten` gives all of them.

    Args:
        names: of the tensors, in the order of the network's state dict.
        shapes: of the tensors, in the same order.
        ties: further name → name in `names`.

    Raises `InputError` for names that repeat, for no names, and for ties that lead nowhere.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    ties: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.names or len(self.names) != len(self.shapes):
            raise InputError(f"a layout needs names and as many shapes, got {len(self.names)} and {len(self.shapes)}")
        if len(set(self.names)) != len(self.names) or set(self.names) & set(self.ties):
            raise InputError("a layout names each tensor once: some of its names repeat")
        lost = sorted(set(self.ties.values()) - set(self.names))
        if lost:
            raise InputError(f"the layout ties names to {', '.join(lost)}, which it does not hold")

    @classmethod
    def select(
        cls, source: nn.Module | Mapping[str, torch.Tensor], patterns: str | Sequence[str], statistics: bool = False
    ) -> "ParameterLayout":
        """The layout of the parameters of `source` that match one of `patterns`, in the order of its state dict.

        A pattern is a name, the path of a module (everything in it), a shell pattern (`layer3.*.bn?.weight`; `*` also
        crosses dots) or, after `re:`, a regular expression for the whole name. Only floating-point tensors are ever
        selected; BatchNorm's running mean and variance only with `statistics`. Of a module, buffers are left out too.

        Raises `InputError` for a pattern that matches nothing (naming the nearest parameters), for a broken regular
        expression, and for two names that see the same memory in different shapes.
        """
        patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        if not patterns:
            raise InputError("give at least one pattern for the parameters to select, such as '*'")
        tensors = _candidates(source, statistics)
        chosen: set[str] = set()
        for pattern in patterns:
            matched = {name for name in tensors if _matches(pattern, name)}
            if not matched:
                raise _matches_nothing(pattern, tensors)
            chosen |= matched
        groups = _tied(tensors)
        kept = [group for group in groups if chosen.intersection(group)]
        return cls(
            tuple(group[0] for group in kept),
            tuple(tuple(tensors[group[0]].shape) for group in kept),
            {other: group[0] for group in kept for other in group[1:]},
        )

    @cached_property
    def size(self) -> int:
        """D, the length of the vector."""
        return sum(map(math.prod, self.shapes))

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where each tensor lies in the vector."""
        ends = [0]
        for shape in self.shapes:
            ends.append(ends[-1] + math.prod(shape))
        return tuple(slice(begin, end) for begin, end in itertools.pairwise(ends))

    def check(self, state: Mapping[str, torch.Tensor], what: str = "the network") -> None:
        """Raise `InputError` unless `state` holds every tensor of the layout, telling the first that differs."""
        for number, (name, shape) in enumerate(zip(self.names, self.shapes), start=1):
            found = self._find(state, name)
            where = f"tensor {number} of {len(self.names)} of the layout, {name!r} {shape}"
            advice = "the layout is of another network; select a new one, or give the network it was made for"
            if found is None:
                match = nearest(name, state)
                hint = f" (nearest: {match!r} {tuple(state[match].shape)})" if match else ""
                raise InputError(f"{what} differs first at {where}, which it does not have{hint}: {advice}")
            if tuple(found.shape) != shape:
                raise InputError(f"{what} differs first at {where}, which has shape {tuple(found.shape)}: {advice}")
            if not found.is_floating_point():
                raise InputError(f"{what} differs first at {where}, which holds {found.dtype}: {advice}")

    def flatten(self, state: Mapping[str, torch.Tensor] | nn.Module, what: str = "the network") -> torch.Tensor:
        """State dict → vector (D,) float32 on the CPU, a copy.

        Raises `InputError` for a state of another network and for tied names with different values,
        `NonFiniteError` naming the tensor that holds a NaN or infinity. `what` names the state in the messages.
        """
        state = state.state_dict() if isinstance(state, nn.Module) else state
        self.check(state, what)
        vector = torch.empty(self.size)
        for name, where, shape in zip(self.names, self.slices, self.shapes):
            vector[where].view(shape).copy_(_present(self._find(state, name)).detach())
        for other, name in self.ties.items():
            if name in state and other in state and not torch.equal(state[name], state[other]):
                raise InputError(f"{what} has different values in {name!r} and {other!r}, which the layout ties")
        self.check_finite(vector, what)
        return vector

    def flatten_many(self, states: Iterable[Mapping[str, torch.Tensor] | nn.Module]) -> torch.Tensor:
        """State dicts → vectors (K, D) float32, one row per network; errors say which network."""
        rows = [self.flatten(state, f"network {i}") for i, state in enumerate(states)]
        return torch.stack(rows) if rows else torch.empty(0, self.size)

    def unflatten(self, vectors: torch.Tensor) -> StateDict:
        """Vector (D,) → tensors by name, tied names included; (K, D) → stacked ones, (K, *shape). All are views."""
        if vectors.ndim not in (1, 2) or vectors.shape[-1] != self.size:
            raise InputError(
                f"this layout holds {self.size:,} numbers in {len(self.names)} tensors: "
                f"give a vector ({self.size},) or vectors (K, {self.size}), got {tuple(vectors.shape)}"
            )
        lead = vectors.shape[:-1]
        tensors = {
            name: vectors[..., where].reshape(lead + shape)
            for name, where, shape in zip(self.names, self.slices, self.shapes)
        }
        return tensors | {other: tensors[name] for other, name in self.ties.items()}

    def check_finite(self, vectors: torch.Tensor, what: str = "the vectors") -> None:
        """Raise `NonFiniteError` that names the first row and tensor with a NaN or infinity in (D,) or (K, D)."""
        if torch.isfinite(vectors.sum()) or torch.isfinite(vectors).all():  # the sum is cheap, and may only overflow
            return
        rows = vectors.reshape(-1, self.size)
        row = int((~torch.isfinite(rows)).any(1).nonzero()[0])
        for name, where in zip(self.names, self.slices):
            bad = int((~torch.isfinite(rows[row, where])).sum())
            if bad:
                which = f"row {row} of {what}" if vectors.ndim == 2 else what
                raise NonFiniteError(
                    f"{which} has a NaN or infinity in {name!r} ({bad:,} of {where.stop - where.start:,} numbers): "
                    "leave it out"
                )

    def to_json(self) -> str:
        """The layout as JSON text."""
        tensors = [{"name": name, "shape": list(shape)} for name, shape in zip(self.names, self.shapes)]
        record = {"_class_name": type(self).__name__, "size": self.size, "tensors": tensors, "ties": dict(self.ties)}
        return json.dumps(record, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, path: object = "the text") -> "ParameterLayout":
        """The layout that `to_json` wrote; raises `ArtifactError` for any other text. `path` names it there."""
        try:
            record: Any = json.loads(text)
            if record["_class_name"] != cls.__name__:
                raise ValueError(f"it is a {record['_class_name']}")
            tensors = [(str(entry["name"]), tuple(map(_size, entry["shape"]))) for entry in record["tensors"]]
            layout = cls(tuple(n for n, _ in tensors), tuple(s for _, s in tensors), {**record["ties"]})
            if layout.size != record["size"]:
                raise ValueError(f"its tensors hold {layout.size} numbers, not {record['size']}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{path} is not a parameter layout ({error}): copy or save it again") from None
        return layout

    def _find(self, state: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
        """The tensor, under its first name or, where a file kept only another, under that."""
        if name in state:
            return state[name]
        return next((state[other] for other, first in self.ties.items() if first == name and other in state), None)


def is_statistic(name: str) -> bool:
    """Whether a tensor of this name is a running mean or variance of BatchNorm."""
    return name.rpartition(".")[2] in STATISTICS


def _candidates(source: nn.Module | Mapping[str, torch.Tensor], statistics: bool) -> StateDict:
    if isinstance(source, nn.Module):
        parameters = {name for name, _ in source.named_parameters(remove_duplicate=False)}
        state: Mapping[str, torch.Tensor] = {
            name: tensor
            for name, tensor in source.state_dict(keep_vars=True).items()
            if name in parameters or is_statistic(name)
        }
    else:
        state = source
    floats = {
        name: tensor
        for name, tensor in state.items()
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
    }
    return floats if statistics else {name: tensor for name, tensor in floats.items() if not is_statistic(name)}


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("re:"):
        try:
            return re.fullmatch(pattern[3:], name) is not None
        except re.error as error:
            raise InputError(f"{pattern!r} is not a regular expression: {error}") from None
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern + ".*")


def _matches_nothing(pattern: str, names: Iterable[str]) -> InputError:
    names = list(names)
    if not names:
        return InputError("there are no floating-point parameters to select from")
    close = get_close_matches(pattern.removeprefix("re:"), names, n=3, cutoff=0.3)
    shown = f"nearest: {', '.join(close)}" if close else f"there are: {', '.join(names[:8])}"
    return InputError(f"pattern {pattern!r} matches none of the {len(names)} parameters; {shown}")


def _tied(tensors: StateDict) -> list[list[str]]:
    """Names grouped by tensor, in order of the first name."""
    groups: dict[object, list[str]] = {}
    seen: dict[tuple[object, int], tuple[str, object]] = {}
    for name, tensor in tensors.items():
        if tensor.is_meta or not tensor.numel():
            groups[id(tensor)] = [*groups.get(id(tensor), []), name]
            continue
        memory = (tensor.device, tensor.data_ptr())
        form = (tensor.dtype, tuple(tensor.shape), tensor.stride())
        first, other = seen.setdefault(memory, (name, form))
        if other != form and tensor.numel() == tensors[first].numel():
            raise InputError(
                f"{first!r} and {name!r} see the same memory in different shapes, so one vector cannot hold both: "
                "select neither, or clone one of them"
            )
        groups[memory, form] = [*groups.get((memory, form), []), name]
    return list(groups.values())


def _present(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None  # checked before
    return tensor


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is not a size")
    return value
