"""Symmetries of a network: which hidden units may change places or be rescaled without changing what it does.

    y = W₂ f(W₁ x)  =  (W₂ Pᵀ D⁻¹) f(D P W₁ x)    P any permutation,
                                                 D > 0 diagonal if f(a·u) = a·f(u) for a > 0 (ReLU, pooling),
                                                 D = ±1 diagonal if f is odd (tanh)

Units that are added (skip connections) are one group; those of the input and of the output stay where they are.
Behind BatchNorm the convolution in front has a scale of its own, which the running statistics follow.
`latentia.methods.pdiff.follow` reads them off a network.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Axis:
    """Axis `axis` of a tensor runs over the units of `group`, each of them `repeat` times in a row."""

    axis: int
    group: int
    repeat: int


@dataclass(frozen=True, slots=True)
class Action:
    """What scaling the units by s does to a tensor along `axis`: times sign(s)^odd · |s|^power.

    With `eps` the tensor is a running variance v and becomes |s|²(v + eps) − eps, which is exact.
    """

    tensor: str
    axis: int
    repeat: int
    power: int
    odd: bool = True
    eps: float | None = None


@dataclass(frozen=True, slots=True)
class Scaling:
    """A scale that units of `group` have: any positive one, a sign, or both; `actions` keep the function as it was."""

    group: int
    size: int
    positive: bool
    sign: bool
    actions: tuple[Action, ...]


@dataclass(frozen=True)
class Symmetries:
    """Everything that may be done to a network's units.

    Attributes:
        sizes: number of units of each group.
        axes: for each tensor the axes that run over a group.
        scalings: scales that are free.
        buffers: names in `axes` that are running statistics, not parameters.
    """

    sizes: tuple[int, ...]
    axes: Mapping[str, tuple[Axis, ...]]
    scalings: tuple[Scaling, ...]
    buffers: frozenset[str]

    def within(self, names: tuple[str, ...]) -> "Symmetries":
        """Those that change no parameter outside `names`: what is left when only some layers are generated.

        Running statistics outside are no hindrance: they have to be measured again for other weights anyway.
        """
        outside = set(self.axes) - set(names) - self.buffers
        held = {axis.group for name in outside for axis in self.axes[name]}
        kept = [group for group in range(len(self.sizes)) if group not in held]
        number = {group: i for i, group in enumerate(kept)}
        axes = {
            name: tuple(replace(a, group=number[a.group]) for a in found if a.group in number)
            for name, found in self.axes.items()
            if name in names
        }
        scalings = tuple(
            replace(s, group=number.get(s.group, -1), actions=tuple(a for a in s.actions if a.tensor in names))
            for s in self.scalings
            if not outside.intersection(a.tensor for a in s.actions)
        )
        sizes = tuple(self.sizes[group] for group in kept)
        return Symmetries(sizes, {n: a for n, a in axes.items() if a}, scalings, self.buffers & set(names))
