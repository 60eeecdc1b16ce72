"""The symmetries of a network, read off its operations: `torch.fx` lists them, rules say what becomes of the units."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from latentia.core.evaluating import evaluating
from latentia.errors import InputError
from latentia.methods.pdiff.symmetries import Action, Axis, Scaling, Symmetries

KNOWN = (
    "linear layers, convolutions (plain and depthwise), batch, layer and one-group normalisation, element-wise "
    "activations, pooling, means over positions, flattening, addition, dropout"
)


def find_symmetries(network: nn.Module, example: torch.Tensor) -> Symmetries:
    """The symmetries of `network`, found by following `example` (B, C, …) through it in evaluation mode.

    Known: `KNOWN`. Raises `InputError` that names the operation where a network does anything else, and for one that
    `torch.fx` cannot trace (whose path depends on its values).
    """
    with evaluating([network]), torch.no_grad():
        try:
            graph = fx.GraphModule(network, fx.Tracer().trace(network))
        except (fx.proxy.TraceError, RuntimeError, TypeError) as error:
            raise InputError(f"{type(network).__name__} cannot be traced for its symmetries: {error}") from None
        follower = _Follower(graph, network)
        follower.run(example)
    return follower.symmetries()


@dataclass(slots=True)
class _Wire:
    """The units in a value: on which axis, which class of units and of scales, each unit how often in a row."""

    axis: int
    units: int
    scale: int
    repeat: int = 1


class _Classes:
    """Union-find over numbered classes; `free` is what is still allowed of each, and of two joined what is of both."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.size: list[int] = []
        self.free: list[set[str]] = []

    def new(self, size: int, *free: str) -> int:
        self.parent.append(len(self.parent))
        self.size.append(size)
        self.free.append(set(free))
        return len(self.parent) - 1

    def find(self, i: int) -> int:
        while self.parent[i] != i:
            i = self.parent[i]
        return i

    def join(self, i: int, j: int) -> None:
        i, j = self.find(i), self.find(j)
        if i != j:
            self.parent[j] = i
            self.free[i] &= self.free[j]

    def only(self, i: int, *free: str) -> None:
        self.free[self.find(i)] &= set(free)


_MODULES: tuple[tuple[tuple[Any, ...], tuple[str, ...]], ...] = (
    ((nn.Identity, nn.Dropout, nn.modules.pooling._AvgPoolNd, nn.modules.pooling._AdaptiveAvgPoolNd), ("+", "-")),
    ((nn.ReLU, nn.LeakyReLU, nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AdaptiveMaxPoolNd), ("+",)),
    ((nn.Tanh, nn.Softsign, nn.Hardtanh), ("-",)),
    ((nn.GELU, nn.SiLU, nn.Sigmoid, nn.ELU, nn.SELU, nn.Softplus, nn.Hardswish, nn.Mish), ()),
)
"""Element-wise and pooling modules → what of a scale passes through them: positive ones (+), signs (-).

The first kind that fits counts; ReLU6 is a Hardtanh to PyTorch and therefore named below.
"""

_FUNCTIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("dropout", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool2d", "contiguous", "clone"), ("+", "-")),
    **dict.fromkeys(("relu", "relu_", "leaky_relu", "max_pool1d", "max_pool2d", "adaptive_max_pool2d"), ("+",)),
    **dict.fromkeys(("tanh", "softsign", "sin", "erf"), ("-",)),
    **dict.fromkeys(("gelu", "silu", "sigmoid", "elu", "selu", "softplus", "hardswish", "mish", "relu6"), ()),
}
"""The same for functions and methods of tensors, by name."""

_NAMES: Mapping[Any, str] = {F.max_pool1d: "max_pool1d", F.max_pool2d: "max_pool2d"}
"""Functions that PyTorch hides behind a dispatcher."""


class _Follower(fx.Interpreter):
    """Runs a graph and keeps for each value the wire that it is, or None where no units are in it."""

    def __init__(self, graph: fx.GraphModule, network: nn.Module) -> None:
        super().__init__(graph)
        self.extra_traceback = False  # the errors below speak for themselves
        self.network = network
        self.wires: dict[fx.Node, _Wire | None] = {}
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.units, self.scales = _Classes(), _Classes()
        self.axes: dict[tuple[str, int], tuple[int, int]] = {}
        self.actions: list[tuple[int, Action]] = []
        self.seen: set[nn.Module] = set()
        self.buffers = frozenset(name for name, _ in network.named_buffers())
        self.names: dict[int, str] = {}
        for name, tensor in (*network.named_parameters(remove_duplicate=False), *network.named_buffers()):
            self.names.setdefault(id(tensor), name)

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation, and follow the units through it."""
        value = super().run_node(n)
        if isinstance(value, torch.Tensor):
            self.shapes[n] = value.shape
        self.wires[n] = self._follow(n, value)
        return value

    def symmetries(self) -> Symmetries:
        """What was found, its classes numbered anew."""
        roots = [i for i in range(len(self.units.parent)) if self.units.find(i) == i and self.units.free[i]]
        number = {root: i for i, root in enumerate(roots)}
        axes: dict[str, tuple[Axis, ...]] = {}
        for (name, axis), (units, repeat) in self.axes.items():
            root = self.units.find(units)
            if root in number:
                axes[name] = (*axes.get(name, ()), Axis(axis, number[root], repeat))
        scalings: dict[int, Scaling] = {}
        for scale, action in self.actions:
            root = self.scales.find(scale)
            free, group = self.scales.free[root], number.get(self.units.find(self.axes[action.tensor, action.axis][0]))
            if free and group is not None:
                found = scalings.get(root, Scaling(group, self.scales.size[root], "+" in free, "-" in free, ()))
                scalings[root] = replace(found, actions=(*found.actions, action))
        return Symmetries(tuple(self.units.size[i] for i in roots), axes, tuple(scalings.values()), self.buffers)

    # -- rules: the wire that an operation makes -----------------------------------------------------------------

    def _follow(self, n: fx.Node, value: Any) -> _Wire | None:
        wires = [wire for arg in n.all_input_nodes if (wire := self.wires[arg]) is not None]
        if n.op == "placeholder":
            return _Wire(1, self.units.new(value.shape[1]), self.scales.new(value.shape[1]))
        if n.op == "output":
            for wire in wires:
                self._hold(wire)
            return None
        if n.op == "get_attr" and isinstance(value, torch.Tensor):
            raise self._unknown(n, "uses a tensor that belongs to no layer")
        if not isinstance(value, torch.Tensor) or not wires:
            if wires and isinstance(value, tuple | list) and any(isinstance(v, torch.Tensor) for v in value):
                raise self._unknown(n)
            return None
        if n.op == "call_module":
            return self._module(n, self.network.get_submodule(str(n.target)), wires, value)
        return self._function(n, wires, value)

    def _module(self, n: fx.Node, module: nn.Module, wires: list[_Wire], value: torch.Tensor) -> _Wire:
        wire, last = wires[0], value.ndim - 1
        if len(wires) > 1:
            raise self._unknown(n, "takes several values")
        if isinstance(module, nn.Linear) and wire.axis == last:
            return self._matrix(module, wire, last)
        if isinstance(module, nn.modules.conv._ConvNd) and not module.transposed and wire.axis == 1:
            if module.groups == 1:
                return self._matrix(module, wire, 1)
            if module.groups == module.in_channels == module.out_channels:
                return self._each(module, wire, takes=True)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and wire.axis == 1 and wire.repeat == 1:
            return self._batch_norm(module, wire)
        if isinstance(module, nn.LayerNorm) and wire.axis == last and len(module.normalized_shape) == wire.repeat == 1:
            return self._each(module, wire, takes=False)
        if isinstance(module, nn.GroupNorm) and module.num_groups == 1 and wire.axis == 1:
            return self._each(module, wire, takes=False)
        if isinstance(module, nn.Flatten):
            return self._flatten(n, wire, value)
        if isinstance(module, nn.ReLU6):
            self.scales.only(wire.scale)
            return wire
        for kinds, passes in _MODULES:
            if isinstance(module, kinds):
                self.scales.only(wire.scale, *passes)
                return wire
        raise self._unknown(n)

    def _function(self, n: fx.Node, wires: list[_Wire], value: torch.Tensor) -> _Wire:
        name = n.target if isinstance(n.target, str) else _NAMES.get(n.target, getattr(n.target, "__name__", ""))
        wire = wires[0]
        if name in ("add", "add_", "iadd") and len(wires) == 2 and "alpha" not in n.kwargs:
            return self._add(n, *wires)
        if len(wires) > 1:
            raise self._unknown(n, "combines several values")
        if name in ("flatten", "view", "reshape"):
            return self._flatten(n, wire, value)
        if name == "mean" and value.ndim > 1 and value.shape[wire.axis] == self._width(wire):
            return self._mean(n, wire, value)
        if name in ("mul", "imul", "truediv", "div") and _by_number(name, n.args):
            return wire
        if name in _FUNCTIONS:
            self.scales.only(wire.scale, *_FUNCTIONS[name])
            return wire
        raise self._unknown(n)

    def _matrix(self, module: Any, wire: _Wire, axis: int) -> _Wire:
        """Weights (new units, old units, …)."""
        size = len(module.weight)
        made = _Wire(axis, self.units.new(size, "move"), self.scales.new(size, "+", "-"))
        weight, again = self._name(module.weight), module in self.seen
        self._axis(weight, 1, wire.units, wire.repeat)
        if not again:
            self.actions.append((wire.scale, Action(weight, 1, wire.repeat, -1)))
        self._made(module, made, again)
        if again:
            self.scales.only(wire.scale)
        return made

    def _each(self, module: Any, wire: _Wire, takes: bool) -> _Wire:
        """One weight for each unit: a depthwise convolution (which `takes` the scale), or a normalisation."""
        made = replace(wire, scale=self.scales.new(self._size(wire), "+", "-"))
        again = module in self.seen
        if takes and not again:
            self.actions.append((wire.scale, Action(self._name(module.weight), 0, 1, -1)))
        self._made(module, made, again)
        if again or not takes:
            self.scales.only(wire.scale)
        if module.weight is None:
            self.scales.only(made.scale)
        return made

    def _batch_norm(self, module: Any, wire: _Wire) -> _Wire:
        """Batch normalisation forgets the scale in front of it, up to the sign, which its weight can undo."""
        made = replace(wire, scale=self.scales.new(self._size(wire), "+", "-"))
        again = module in self.seen
        if module.running_mean is not None:
            mean, var = self._name(module.running_mean), self._name(module.running_var)
            self._axis(mean, 0, wire.units, 1)
            self._axis(var, 0, wire.units, 1)
            if not again:
                self.actions.append((wire.scale, Action(mean, 0, 1, 1)))
                self.actions.append((wire.scale, Action(var, 0, 1, 2, odd=False, eps=module.eps)))
        if module.weight is not None and not again:
            self.actions.append((wire.scale, Action(self._name(module.weight), 0, 1, 0)))
        self._made(module, made, again)
        if again:
            self.scales.only(wire.scale)
        if module.weight is None:
            self.scales.only(wire.scale, "+")
            self.scales.only(made.scale)
        return made

    def _made(self, module: Any, made: _Wire, again: bool) -> None:
        """Weight and bias that make the units of `made`; weights that are used twice keep their scale."""
        for tensor in (module.weight, module.bias):
            if tensor is None:
                continue
            self._axis(self._name(tensor), 0, made.units, 1)
            if not again:
                self.actions.append((made.scale, Action(self._name(tensor), 0, 1, 1)))
        if again:
            first = next(scale for scale, action in self.actions if action.tensor == self._name(module.weight))
            for scale in (made.scale, first):
                self.scales.only(scale)
        self.seen.add(module)

    def _add(self, n: fx.Node, a: _Wire, b: _Wire) -> _Wire:
        if (a.axis, a.repeat) != (b.axis, b.repeat) or self._size(a) != self._size(b):
            raise self._unknown(n, "adds values whose units do not lie alike")
        self.units.join(a.units, b.units)
        self.scales.join(a.scale, b.scale)
        return a

    def _flatten(self, n: fx.Node, wire: _Wire, value: torch.Tensor) -> _Wire:
        """(B, C, …) → (B, C·…): each unit fills a run of positions."""
        before = self.shapes[n.all_input_nodes[0]]
        if wire.axis != 1 or value.shape != (before[0], before[1:].numel()):
            raise self._unknown(n, f"reshapes {tuple(before)} to {tuple(value.shape)}")
        return replace(wire, repeat=wire.repeat * before[2:].numel())

    def _mean(self, n: fx.Node, wire: _Wire, value: torch.Tensor) -> _Wire:
        """A mean over positions: the units stay on their axis."""
        dims = n.kwargs.get("dim", n.args[1] if len(n.args) > 1 else None)
        before = self.shapes[n.all_input_nodes[0]]
        listed = (dims,) if isinstance(dims, int) else dims
        if not isinstance(listed, tuple | list) or wire.axis in {int(str(d)) % len(before) for d in listed}:
            raise self._unknown(n, "takes a mean over units")
        return wire

    # -- book-keeping ------------------------------------------------------------------------------------------

    def _size(self, wire: _Wire) -> int:
        return self.units.size[wire.units]

    def _width(self, wire: _Wire) -> int:
        return self._size(wire) * wire.repeat

    def _name(self, tensor: torch.Tensor) -> str:
        return self.names[id(tensor)]

    def _axis(self, name: str, axis: int, units: int, repeat: int) -> None:
        """Note that an axis of a tensor runs over units; a second note says that both are the same units."""
        before = self.axes.setdefault((name, axis), (units, repeat))
        if before[0] != units:
            self.units.join(before[0], units)

    def _hold(self, wire: _Wire) -> None:
        self.units.only(wire.units)
        self.scales.only(wire.scale)

    def _unknown(self, n: fx.Node, why: str = "is not known to move with its units") -> InputError:
        what = type(self.network.get_submodule(str(n.target))).__name__ if n.op == "call_module" else n.target
        return InputError(
            f"cannot tell the symmetries of {type(self.network).__name__}: operation {n.name!r} ({what}) {why}; "
            f"known are {KNOWN}. Give Symmetries by hand, or generate without matching"
        )


def _by_number(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a product or quotient is that of units and a number (a number over units is not)."""
    numbers = [isinstance(arg, int | float) for arg in args]
    return numbers == [False, True] or (name == "mul" and numbers == [True, False])
