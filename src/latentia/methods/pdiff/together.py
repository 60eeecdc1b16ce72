"""A traced tail for many networks at once on a CPU: the layouts and products in which a population is cheap.

`torch.func.vmap` turns convolutions of many networks into grouped ones and keeps images outermost, where a CPU
vectorises badly. `together` carries out a tail on stacked parameters (n, …) with its own rules instead:

    last    (n, C, …, M): images innermost. A layer on fixed images is one product for all networks,
            (n·C', K) @ (K, M·H'·W'), whose right side is computed once; pooling and ReLU run over contiguous rows.
    packed  (M, n·C, H, W): the kernels of n narrow networks on the diagonal of one wide kernel, for maps too large for
            a product: a convolution of 4 channels costs a CPU about as much as one of 16.

What has no rule is left to `vmap`, one operation at a time, so that every network works. The whole is traced once more
for its n: nothing of the bookkeeping is left when networks are judged.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.func import vmap
from torch.utils import _pytree as pytree

from latentia.methods.pdiff.tail import (
    CONVOLUTION,
    Tail,
    convolution,
    dense_kernel,
    fold,
    is_small,
    max_pool,
    multiply_add,
)

Kind = Literal["rows", "last", "packed"]
aten = torch.ops.aten
LANES = 16
"""Channels that a CPU's convolution computes at once: narrower networks are packed to about as many."""


@torch.no_grad()
def together(tail: Tail, stacked: Sequence[Tensor]) -> fx.GraphModule:
    """The tail as a function of stacked arguments (n, …) of these very shapes; results are stacked too."""
    from torch.fx.experimental.proxy_tensor import make_fx

    kind: Kind = "packed" if tail.grouped else "last"
    module = make_fx(lambda *rows: _Population(tail.module, kind, len(rows[0])).run_many(rows))(*stacked)
    fold(module)
    return module


def packed_at_once(tail: Tail) -> int:
    """How many networks of a grouped tail one convolution takes; 1: there is nothing to gain."""
    return max(1, LANES // tail.narrowest)


@dataclass(frozen=True, slots=True)
class Many:
    """A value that each of n networks has: the tensor, and how it lies (see the module)."""

    tensor: Tensor
    kind: Kind
    n: int

    def rows(self) -> Tensor:
        """(n, …) in the order that one network knows; a view."""
        if self.kind == "last":
            return self.tensor.movedim(-1, 1)
        if self.kind == "packed":
            return self.tensor.unflatten(1, (self.n, -1)).transpose(0, 1)
        return self.tensor

    def channels(self, values: Tensor | Many) -> Tensor:
        """One number for each channel, (C,) or of each network (n, C), so that it meets this 4-D value."""
        own = values.rows() if isinstance(values, Many) else values.expand(self.n, -1)
        return own.reshape(-1, 1, 1) if self.kind == "packed" else own[:, :, None, None, None]


class _Population(fx.Interpreter):
    """Runs the graph of one network on n of them."""

    def __init__(self, module: fx.GraphModule, kind: Kind, n: int) -> None:
        super().__init__(module)
        self.kind, self.n = kind, n

    def run_many(self, stacked: Sequence[Tensor]) -> Any:
        result = self.run(*(Many(each, "rows", self.n) for each in stacked))
        return pytree.tree_map(lambda each: each.rows() if isinstance(each, Many) else each, result, is_leaf=_is_many)

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is operator.getitem and not isinstance(args[0], Many):
            return args[0][args[1]]
        flat, _ = pytree.tree_flatten((args, kwargs), is_leaf=_is_many)
        if not any(isinstance(each, Many) for each in flat):
            return target(*args, **kwargs)
        rule = RULES.get(target)
        made = None if rule is None or kwargs else rule(self, target, *args)
        return self.each(target, args, kwargs) if made is None else made

    def each(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation under `vmap`; what is no tensor of its result stays as it is."""
        flat, spec = pytree.tree_flatten((args, kwargs), is_leaf=_is_many)
        places = [i for i, each in enumerate(flat) if isinstance(each, Many)]
        kept: list[Any] = []

        def one(*mine: Tensor) -> tuple[Tensor, ...]:
            filled = list(flat)
            for i, value in zip(places, mine):
                filled[i] = value
            own_args, own_kwargs = pytree.tree_unflatten(filled, spec)
            results, shape = pytree.tree_flatten(target(*own_args, **own_kwargs))
            kept[:] = [shape, *(None if isinstance(each, Tensor) else each for each in results)]
            kept.append([i for i, each in enumerate(results) if isinstance(each, Tensor)])
            return tuple(each for each in results if isinstance(each, Tensor))

        tensors = vmap(one)(*(flat[i].rows() for i in places))
        shape, *results, found = kept
        for i, tensor in zip(found, tensors):
            results[i] = Many(tensor, "rows", self.n)
        return pytree.tree_unflatten(results, shape)

    # -- rules: None where they do not hold ------------------------------------------------------------------------

    def convolve(
        self, _: Any, x: Any, kernel: Any, bias: Any, stride: Any, padding: Any, dilation: Any, *rest: Any
    ) -> Many | None:
        """One product, or one convolution of packed kernels."""
        transposed, _output_padding, groups = rest
        if transposed or groups != 1 or not isinstance(kernel, Many) or any(d != 1 for d in dilation):
            return None
        weights = kernel.rows()
        if weights.ndim != 5 or (isinstance(x, Many) and x.kind != self.kind):
            return None
        if self.kind == "packed":
            offset = None if bias is None else _each_channel(bias, self.n).reshape(-1)
            if isinstance(x, Many):
                weights, x = _on_the_diagonal(weights), x.tensor
            return Many(F.conv2d(x, weights.flatten(0, 1), offset, stride, padding), "packed", self.n)
        geometry = tuple(weights.shape[3:]), tuple(stride), tuple(padding)
        if isinstance(x, Many):
            if not is_small(x.rows()[0], weights[0]):
                return None
            size, images = x.tensor.shape[2:4], x.tensor.shape[4]
            matrices = vmap(lambda w: dense_kernel(w, size, stride, padding)[0])(weights)
            y = matrices.transpose(1, 2) @ x.tensor.flatten(1, 3)
            y = y.view(self.n, -1, *_outputs(size, *geometry), images)
        else:
            patches = _patches(x.movedim(0, -1), *geometry)  # (C·k·k, H', W', M), fixed: computed once
            y = self.on_fixed(weights.flatten(2), patches.flatten(1), bias)
            return Many(y.unflatten(2, patches.shape[1:]), "last", self.n)
        if bias is not None:
            y.add_(_each_channel(bias, self.n)[:, :, None, None, None])
        return Many(y, "last", self.n)

    def on_fixed(self, weights: Tensor, inputs: Tensor, bias: Any) -> Tensor:
        """(n, C', K) on fixed (K, P) as one product, (n, C', P); a bias is the weight of an input that is 1."""
        if bias is not None:
            weights = torch.cat([weights, _each_channel(bias, self.n)[:, :, None]], 2)
            inputs = torch.cat([inputs, torch.ones_like(inputs[:1])])
        return (weights.flatten(0, 1) @ inputs).unflatten(0, (self.n, -1))

    def affine(self, _: Any, x: Any, scale: Any, shift: Any) -> Many | None:
        """x·scale + shift, channel by channel."""
        if not isinstance(x, Many) or x.kind == "rows" or x.rows().ndim != 5:
            return None
        return Many(torch.addcmul(x.channels(shift), x.tensor, x.channels(scale)), x.kind, self.n)

    def pool(self, target: Any, x: Any, kernel: Any, stride: Any = (), *rest: Any) -> Any:
        """2×2 maxima without overlap."""
        if not isinstance(x, Many) or x.kind == "rows":
            return None
        if x.kind == "packed":
            pooled, second = target(x.tensor, kernel, stride, *rest)
            return Many(pooled, "packed", self.n), second
        plain = list(kernel) == [2, 2] and list(stride or kernel) == [2, 2] and not any(map(_nonzero, rest))
        height, width = x.tensor.shape[2:4]
        if not plain or height % 2 or width % 2:
            return None
        rows = torch.maximum(x.tensor[:, :, ::2], x.tensor[:, :, 1::2])
        return Many(torch.maximum(rows[:, :, :, ::2], rows[:, :, :, 1::2]), "last", self.n), None

    def relu(self, target: Any, x: Any) -> Many | None:
        """In place where the value is this graph's own and nothing else reads it."""
        if not isinstance(x, Many):
            return None
        source = self.node.args[0]
        own = isinstance(source, fx.Node) and len(source.users) == 1 and x.kind != "rows"
        return Many(x.tensor.relu_() if own else target(x.tensor), x.kind, self.n)

    def pointwise(self, target: Any, x: Any, *rest: Any) -> Many | None:
        """A function of each number, or of the same place in two values."""
        if not isinstance(x, Many) or any(isinstance(each, Tensor) for each in rest):
            return None
        others = [each for each in rest if isinstance(each, Many)]
        if any(each.kind != x.kind or each.tensor.shape != x.tensor.shape for each in others):
            return None
        plain = [each.tensor if isinstance(each, Many) else each for each in rest]
        return Many(target(x.tensor, *plain), x.kind, self.n)

    def flatten(self, _: Any, x: Any, shape: Any) -> Many | None:
        """(M, C, H, W) → (M, C·H·W)."""
        if not isinstance(x, Many) or x.kind != "last":
            return None
        *features, images = x.tensor.shape[1:]
        if len(shape) != 2 or shape[0] not in (images, -1) or shape[1] not in (math.prod(features), -1):
            return None
        return Many(x.tensor.flatten(1, -2), "last", self.n)

    def mean(self, _: Any, x: Any, dims: Any, keepdim: bool = False) -> Many | None:
        """(M, C, H, W) → (M, C)."""
        if not isinstance(x, Many) or x.kind == "rows" or keepdim or [d % 4 for d in dims] != [2, 3]:
            return None
        means = x.tensor.mean((2, 3))
        if x.kind == "packed":
            means = means.unflatten(1, (self.n, -1)).permute(1, 2, 0)
        return Many(means, "last", self.n)

    def linear(self, _: Any, bias: Any, x: Any, weight: Any) -> Many | None:
        """bias + x·W: of fixed x (M, K) one product for all networks."""
        if not isinstance(weight, Many) or weight.tensor.ndim != 3 or (isinstance(x, Many) and x.kind != "last"):
            return None
        if bias is not None and (bias.rows()[0] if isinstance(bias, Many) else bias).ndim != 1:
            return None
        rows = weight.rows().transpose(1, 2)  # (n, F, K), as the layer stores it
        if not isinstance(x, Many):
            return Many(self.on_fixed(rows, x.t(), bias), "last", self.n)
        y = rows @ x.tensor
        if bias is not None:
            y.add_(_each_channel(bias, self.n)[:, :, None])
        return Many(y, "last", self.n)


def _is_many(value: object) -> bool:
    return isinstance(value, Many)


def _nonzero(value: object) -> bool:
    return any(value) if isinstance(value, list | tuple) and list(value) != [1, 1] else value not in (0, False, [1, 1])


def _each_channel(values: Tensor | Many, n: int) -> Tensor:
    return values.rows() if isinstance(values, Many) else values.expand(n, -1)


def _on_the_diagonal(kernels: Tensor) -> Tensor:
    """(n, O, C, k, k) → (n, O, n·C, k, k), zero between different networks."""
    n = len(kernels)
    same = torch.eye(n, dtype=torch.bool, device=kernels.device)[:, None, :, None, None, None]
    return torch.where(same, kernels[:, :, None], 0.0).flatten(2, 3)


def _outputs(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> list[int]:
    return [(s + 2 * p - k) // d + 1 for s, k, d, p in zip(size, kernel, stride, padding)]


def _patches(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """x (C, H, W, M) → what each place of the result sees, (C·k·k, H', W', M)."""
    padded = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    windows = padded.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])  # (C, H', W', M, k, k)
    return windows.permute(0, 4, 5, 1, 2, 3).flatten(0, 2).contiguous()


Rule = Callable[..., Any]
_POINTWISE = (aten.gelu, aten.silu, aten.tanh, aten.sigmoid, aten.elu, aten.leaky_relu, aten.hardtanh)
RULES: dict[Any, Rule] = {
    **{each.default: _Population.pointwise for each in _POINTWISE},
    aten.relu.default: _Population.relu,
    aten.add.Tensor: _Population.pointwise,
    aten.sub.Tensor: _Population.pointwise,
    aten.mul.Tensor: _Population.pointwise,
    aten.clamp.default: _Population.pointwise,
    CONVOLUTION: _Population.convolve,
    convolution: _Population.convolve,
    multiply_add: _Population.affine,
    max_pool: _Population.pool,
    aten.view.default: _Population.flatten,
    aten._unsafe_view.default: _Population.flatten,
    aten.reshape.default: _Population.flatten,
    aten.mean.dim: _Population.mean,
    aten.addmm.default: _Population.linear,
    aten.mm.default: lambda run, target, x, weight: _Population.linear(run, target, None, x, weight),
}
"""Operation → what it is for many networks; returns None where it is left to `vmap`."""
