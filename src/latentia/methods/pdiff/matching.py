"""Weight matching: independent networks brought into one order of units, so that their weights can be compared.

Two networks from different seeds may do the same with their hidden units in another order, at other scales.
`canonicalise` removes that freedom before anything is learnt from the weights:

    1. scale: each unit's incoming and outgoing weights get the same norm; in front of BatchNorm norm 1, and γ > 0
    2. order: permutations P that minimise ‖θ_ref − P(θ)‖², by coordinate descent over the groups of units, each a
       linear assignment problem (Git Re-Basin, Ainsworth et al. 2023, algorithm 1)
    3. reference: for each network the mean of all others, as they are by now, until the residual stops falling; that is
       coordinate descent on Σ‖θ_k − mean‖², where a mean that holds the network itself would keep it where it is

Every step leaves each network's function as it was. All networks are matched at once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentia.core.arguments import check_count
from latentia.errors import InputError
from latentia.methods.pdiff.follow import find_symmetries
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.symmetries import Action, Axis, Scaling, Symmetries

BALANCE_SWEEPS = 12
MATCH_SWEEPS = 50
TURNS = 8
ENOUGH = 1e-3
"""Relative fall of the residual at which another round is not worth it."""


@dataclass(frozen=True, slots=True)
class Canonical:
    """Networks in one order of units.

    Attributes:
        vectors: (K, D), each the same function as before.
        reference: (D,) to which later networks can be brought by `align`: the mean of `vectors`.
        residual: share of the squared length that is not the mean's, 1 − ‖mean‖² / mean ‖θ‖²; for K ≫ 1 it is 0 for
            equal and about 1 for unrelated networks.
        rounds: times that the reference was renewed.
    """

    vectors: Tensor
    reference: Tensor
    residual: float
    rounds: int


def canonicalise(
    vectors: Tensor,
    network: nn.Module,
    layout: ParameterLayout,
    example: Tensor,
    *,
    rounds: int = 20,
    starts: int = 2,
    symmetries: Symmetries | None = None,
) -> Canonical:
    """Bring networks (K, D) into one order and scale of units, without changing what any of them does.

    Args:
        network: their architecture; its values do not matter.
        example: images (B, C, H, W) to follow through it; B ≥ 1, their values do not matter.
        rounds: how often at most the reference is renewed.
        starts: networks tried as the first reference; the one that leaves the least residual is kept.
        symmetries: given by hand for a network that cannot be followed.

    Where running statistics of BatchNorm are not in the layout they belong to none of these networks, and must be
    measured again before use, as always. Raises `InputError` for a network whose symmetries cannot be told, and for
    a layout without a group of units that is free to move.
    """
    check_count("rounds", rounds, least=0)
    check_count("starts", starts)
    found = (symmetries or find_symmetries(network, example)).within(layout.names)
    if not found.sizes and not found.scalings:
        names = ", ".join(layout.names[:4]) + (", …" if len(layout.names) > 4 else "")
        raise InputError(
            f"nothing can be matched: no units of {type(network).__name__} have all their weights among {names}; "
            "select whole layers, on both sides of the units"
        )
    scaled = rescale(vectors, found, layout)
    first = torch.linspace(0, len(scaled) - 1, min(starts, len(scaled))).long().tolist()
    return min((_settle(scaled, scaled[row], found, layout, rounds) for row in first), key=lambda c: c.residual)


def rescale(vectors: Tensor, symmetries: Symmetries, layout: ParameterLayout) -> Tensor:
    """The same networks (K, D) with canonical scales and, in front of BatchNorm, signs: (K, D).

    A unit's scale s makes ‖incoming weights and bias‖ = ‖outgoing weights‖; these depend on each other, so they are
    balanced in turn, `BALANCE_SWEEPS` times. A unit without incoming or outgoing weights keeps its scale.
    """
    stack = _unstack(vectors, layout)
    for scaling in symmetries.scalings:
        if scaling.sign and (weight := _undoing(scaling)) is not None:
            _scale(stack, scaling.actions, stack[weight.tensor].sgn().where(stack[weight.tensor] != 0, 1.0))
    for _ in range(BALANCE_SWEEPS):
        for scaling in symmetries.scalings:
            if scaling.positive:
                _scale(stack, scaling.actions, _balance(stack, scaling, symmetries.buffers))
    return _restack(stack, layout)


def align(
    vectors: Tensor, reference: Tensor, symmetries: Symmetries, layout: ParameterLayout, sweeps: int = MATCH_SWEEPS
) -> Tensor:
    """Networks (K, D) with their units in the order that is nearest to `reference`, (D,) or one each (K, D): (K, D).

    The first sweep takes groups in the order in which they hang on what is already settled, and looks only at that;
    later sweeps look at all weights until nothing moves, at most `sweeps` times.
    """
    stack, target = _unstack(vectors, layout), _unstack(torch.atleast_2d(reference), layout)
    signs = {(a.tensor, a.axis): i for i, s in enumerate(symmetries.scalings) if _free(s) for a in s.actions if a.odd}
    order = _order(symmetries, layout)
    settled: set[int] = set()
    for sweep in range(sweeps + 1):
        moved = False
        for group in order:
            known = None if sweep else settled
            moved |= _match(group, stack, target, symmetries, signs, known)
            settled.add(group)
        if sweep and not moved:
            break
    return _restack(stack, layout)


def residual(vectors: Tensor) -> float:
    """1 − ‖mean‖² / mean ‖θ‖² of networks (K, D)."""
    return float(1 - vectors.mean(0).square().sum() / vectors.square().sum(1).mean())


def _settle(
    vectors: Tensor, reference: Tensor, symmetries: Symmetries, layout: ParameterLayout, rounds: int
) -> Canonical:
    vectors = align(vectors, reference, symmetries, layout)
    best, done = residual(vectors), 0
    while done < rounds and len(vectors) > 1:
        tried = vectors.clone()
        for first in range(TURNS):  # a few networks at a time: all at once would chase each other
            own = tried[first::TURNS]
            if len(own):
                tried[first::TURNS] = align(own, (tried.sum(0) - own) / (len(tried) - 1), symmetries, layout)
        left = residual(tried)
        if left < best:
            vectors, done = tried, done + 1
        if left >= best * (1 - ENOUGH):
            break
        best = left
    return Canonical(vectors, vectors.mean(0), residual(vectors), done)


# -- order ---------------------------------------------------------------------------------------------------------


def _order(symmetries: Symmetries, layout: ParameterLayout) -> list[int]:
    """Groups, each time the one with the largest share of its weights among settled neighbours."""
    size = {name: shape.numel() for name, shape in zip(layout.names, map(torch.Size, layout.shapes))}
    order: list[int] = []
    while len(order) < len(symmetries.sizes):
        shares = {}
        for group in set(range(len(symmetries.sizes))) - set(order):
            on = [(name, axes) for name, axes in symmetries.axes.items() if any(a.group == group for a in axes)]
            known = sum(size[name] for name, axes in on if all(a.group in (*order, group) for a in axes))
            shares[group] = known / sum(size[name] for name, _ in on)
        order.append(max(shares, key=lambda group: shares[group]))
    return order


def _match(
    group: int,
    stack: dict[str, Tensor],
    target: dict[str, Tensor],
    symmetries: Symmetries,
    signs: Mapping[tuple[str, int], int],
    known: set[int] | None,
) -> bool:
    """Permute the units of one group in all networks; False if none moved.

    Similarity C[i, j] = Σ over tensors ⟨target unit i, unit j⟩; where units may change sign, of its absolute value.
    With `known` only tensors count whose other units are among these.
    """
    from scipy.optimize import linear_sum_assignment  # imported late: scipy takes a third of a second

    size, networks = symmetries.sizes[group], len(next(iter(stack.values())))
    similar: dict[int | None, Tensor] = {}
    for name, axis in _axes(symmetries, group, known):
        ours, theirs = _by_unit(stack[name], axis, size), _by_unit(target[name], axis, size)
        sign = signs.get((name, axis.axis))
        found = theirs @ ours.mT  # (K, units of the target, units)
        similar[sign] = similar[sign] + found if sign in similar else found
    if not similar:
        return False
    total = torch.stack([c if sign is None else c.abs() for sign, c in similar.items()]).sum(0)
    chosen = torch.stack([torch.from_numpy(linear_sum_assignment(c, maximize=True)[1]) for c in total.double().numpy()])
    moved = not torch.equal(chosen, torch.arange(size).expand(networks, -1))
    if moved:
        for name, axis in _axes(symmetries, group, None):
            stack[name] = _permute(stack[name], axis, chosen)
    for sign, c in similar.items():
        if sign is not None:
            flips = torch.where(c.gather(2, chosen[..., None]).squeeze(2) < 0, -1.0, 1.0)
            _scale(stack, symmetries.scalings[sign].actions, flips)
            moved |= bool((flips < 0).any())
    return moved


def _axes(symmetries: Symmetries, group: int, known: set[int] | None) -> Iterable[tuple[str, Axis]]:
    for name, axes in symmetries.axes.items():
        for axis in axes:
            others = {other.group for other in axes if other is not axis}
            if axis.group == group and (known is None or others <= known):
                yield name, axis


def _by_unit(tensor: Tensor, axis: Axis, size: int) -> Tensor:
    """(K, …) → (K, units, everything else)."""
    return tensor.movedim(axis.axis + 1, 1).reshape(len(tensor), size, -1)


def _permute(tensor: Tensor, axis: Axis, chosen: Tensor) -> Tensor:
    """Unit i of network k becomes its unit chosen[k, i]."""
    moved = tensor.movedim(axis.axis + 1, 1)
    units = moved.unflatten(1, (chosen.shape[1], axis.repeat))
    return units[torch.arange(len(tensor))[:, None], chosen].flatten(1, 2).movedim(1, axis.axis + 1)


# -- scale ---------------------------------------------------------------------------------------------------------


def _undoing(scaling: Scaling) -> Action | None:
    """The weight behind a BatchNorm, which undoes a sign in front of it."""
    return next((action for action in scaling.actions if action.power == 0 and action.odd), None)


def _free(scaling: Scaling) -> bool:
    """Whether matching may choose the sign."""
    return scaling.sign and scaling.group >= 0 and _undoing(scaling) is None


def _balance(stack: Mapping[str, Tensor], scaling: Scaling, buffers: frozenset[str]) -> Tensor:
    """The scale (K, units) that makes incoming and outgoing norms equal, or the incoming ones 1 if nothing goes out."""
    squares = {1: torch.zeros(()), -1: torch.zeros(())}
    for action in scaling.actions:
        if action.power in squares and action.tensor not in buffers:
            axis = Axis(action.axis, scaling.group, action.repeat)
            part = _by_unit(stack[action.tensor], axis, scaling.size).square().sum(2)
            squares[action.power] = squares[action.power] + part
    incoming, outgoing = squares[1], squares[-1]
    if not outgoing.ndim:  # BatchNorm follows
        outgoing = 1 / incoming
    usable = (incoming > 1e-20) & (outgoing > 1e-20) & torch.isfinite(outgoing)
    return torch.where(usable, outgoing / incoming, 1.0).pow(0.25)


def _scale(stack: dict[str, Tensor], actions: Iterable[Action], s: Tensor) -> None:
    """Scale units by s (K, units), everywhere at once."""
    for action in actions:
        factor = s.abs() ** action.power * (s.sgn() if action.odd else 1.0)
        tensor = stack[action.tensor]
        shape = [1] * tensor.ndim
        shape[0], shape[action.axis + 1] = len(s), -1
        factor = factor.repeat_interleave(action.repeat, 1).view(shape)
        shift = action.eps or 0.0
        stack[action.tensor] = (tensor + shift) * factor - shift if shift else tensor * factor


def _unstack(vectors: Tensor, layout: ParameterLayout) -> dict[str, Tensor]:
    tensors = layout.unflatten(vectors)
    return {name: tensors[name] for name in layout.names}


def _restack(stack: Mapping[str, Tensor], layout: ParameterLayout) -> Tensor:
    return torch.cat([stack[name].flatten(1) for name in layout.names], 1)
