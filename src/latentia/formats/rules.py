"""One table, both directions: how the tensors of another project's checkpoint correspond to ours.

A rule pairs a stem of their names with one of ours (three, where they fuse query, key and value). A stem is a name
without its `weight` or `bias`, or a whole name. Nothing here imports torch: what happens to a tensor is reshaping.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]
SUFFIXES = ("", "weight", "bias")


@dataclass(frozen=True, slots=True)
class Rule:
    """Their stem ↔ our stems.

    Attributes:
        ours: one stem; or three, when their tensor is query, key and value one below the other.
        trailing: axes of length 1 behind the matrix in theirs (a 1×1 convolution has two) that ours lacks.
        head_dim: width of a head when their rows are (head, q|k|v, head_dim); 0: (q|k|v, channels).
    """

    theirs: str
    ours: tuple[str, ...]
    trailing: int = 0
    head_dim: int = 0

    def our_shape(self, shape: Shape) -> Shape:
        """Shape of each of our tensors from that of theirs; one that cannot be split keeps its shape, to be refused."""
        if self.trailing and len(shape) > 2:
            shape = shape[:2]
        count = len(self.ours)
        fits = not count % 2 or (shape and shape[0] % (count * max(1, self.head_dim)) == 0)
        return (shape[0] // count, *shape[1:]) if count > 1 and fits else shape

    def to_ours(self, tensor: Any) -> Sequence[Any]:
        """Their tensor → ours; views of it unless heads are untangled."""
        if self.trailing and tensor.ndim > 2:
            tensor = tensor.reshape(tensor.shape[:2])
        count = len(self.ours)
        if count == 1:
            return (tensor,)
        if not self.head_dim:
            pieces: Sequence[Any] = tensor.chunk(count)
            return pieces
        rest = tensor.shape[1:]
        by_head = tensor.reshape(-1, count, self.head_dim, *rest)
        return [by_head[:, i].reshape(-1, *rest) for i in range(count)]

    def to_theirs(self, tensors: Sequence[Any]) -> Any:
        """Our tensors → theirs: the inverse of `to_ours`."""
        import torch

        tensor = tensors[0]
        if len(tensors) > 1 and not self.head_dim:
            tensor = torch.cat(list(tensors))
        elif len(tensors) > 1:
            rest = tensor.shape[1:]
            by_head = torch.stack([t.reshape(-1, self.head_dim, *rest) for t in tensors], dim=1)
            tensor = by_head.reshape(-1, *rest)
        if self.trailing and tensor.ndim == 2:
            tensor = tensor.reshape(*tensor.shape, *(1,) * self.trailing)
        return tensor


@dataclass(frozen=True, slots=True)
class Move:
    """One of their tensors and the ones of ours that it becomes."""

    theirs: str
    ours: tuple[str, ...]
    rule: Rule


def same(theirs: str, ours: str) -> Rule:
    """The plain rule: another name, the same tensor."""
    return Rule(theirs, (ours,))


def below(rules: Iterable[Rule], theirs: str, ours: str) -> Iterator[Rule]:
    """`rules` of a module that stands at `theirs` and `ours`."""
    for rule in rules:
        yield Rule(theirs + rule.theirs, tuple(ours + stem for stem in rule.ours), rule.trailing, rule.head_dim)


def to_ours(rules: Iterable[Rule], names: Iterable[str]) -> tuple[list[Move], list[str]]:
    """The moves that `rules` make of their `names`, and the names that no rule knows."""
    table = {rule.theirs: rule for rule in rules}
    moves, unknown = [], []
    for name in names:
        found = _find(name, table.get)
        if found is None:
            unknown.append(name)
        else:
            rule, suffix = found
            moves.append(Move(name, tuple(stem + suffix for stem in rule.ours), rule))
    return moves, unknown


def to_theirs(rules: Iterable[Rule], names: Iterable[str]) -> tuple[list[Move], list[str]]:
    """The moves that lead to our `names`, and the names that no rule knows or that lack their companions."""
    names = list(names)
    present = set(names)
    table = {stem: rule for rule in rules for stem in rule.ours}
    moves: dict[str, Move] = {}
    unknown = []
    for name in names:
        found = _find(name, table.get)
        ours = tuple(stem + found[1] for stem in found[0].ours) if found else ()
        if found is None or not present.issuperset(ours):
            unknown.append(name)
        else:
            # A whole name of theirs has no suffix (`positional_embedding`); ours, then, is a whole name as well.
            theirs = found[0].theirs + found[1]
            moves[theirs] = Move(theirs, ours, found[0])
    return list(moves.values()), unknown


def _find(name: str, table: Callable[[str], Rule | None]) -> tuple[Rule, str] | None:
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            rule = table(name[: len(name) - len(suffix)])
            if rule is not None:
                return rule, suffix
    return None
