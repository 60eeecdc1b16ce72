"""The tail of a network: what is left of its forward pass on fixed images once all that never changes is computed.

A network whose parameters are generated in part is evaluated again and again on the same images. `trace_tail` records
the operations of one forward pass, computes those that no generated parameter reaches (the frozen trunk) once, and
rewrites what remains for evaluation: BatchNorm becomes part of the convolution before it or one multiply-add, pooling
becomes two maxima, and a convolution on a map of few pixels one matrix product.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

Function = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]

aten = torch.ops.aten
CONVOLUTION = aten.convolution.default
BATCH_NORMS = (aten._native_batch_norm_legit_no_training.default, aten.native_batch_norm.default)
MAX_POOL = aten.max_pool2d_with_indices.default

DENSE = 4
"""A convolution is done as a matrix product while its map has at most this many times its kernel's pixels."""
DENSE_WIDE, WIDE = 0.5, 16
"""The same for `WIDE` or more channels, which convolution itself does at full speed."""


class Tail:
    """A traced function of the generated tensors.

    `widest` is the number of elements of its largest result. `grouped` tells that some convolution has kernels of its
    own for each network and large maps: under `vmap` it becomes a grouped convolution, which a CPU does slowly.
    `narrowest` is the least number of channels that such a convolution reads.
    """

    def __init__(self, module: fx.GraphModule, widest: int, narrowest: int | None) -> None:
        self.module = module
        self.widest = widest
        self.grouped = narrowest is not None
        self.narrowest = narrowest or 1

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """What the traced function returns for these tensors."""
        return self.module(*tensors)


@torch.no_grad()
def trace_tail(function: Function, example: Sequence[torch.Tensor], simplify: bool = True) -> Tail:
    """Record `function(*example)` and compute once whatever does not depend on its arguments.

    The result holds for arguments of the example's shapes and may run under `torch.func.vmap`. `simplify` also rewrites
    the remaining operations for speed, which changes results in the last bits.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    return prepare(make_fx(function)(*example), example, simplify)


def prepare(module: fx.GraphModule, example: Sequence[torch.Tensor], simplify: bool = True) -> Tail:
    """A recorded function without what never changes, rewritten for speed if asked; `example` as in `trace_tail`."""
    fold(module)
    if simplify:
        _simplify(module)
        fold(module)
    sizes = _Sizes(module)
    sizes.run(*example)
    return Tail(module, sizes.widest, min(sizes.read, default=None))


class _Sizes(fx.Interpreter):
    """Runs a graph and notes its largest tensor, and whether it convolves large maps that its arguments reach."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.widest = 1
        self.read: list[int] = []

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if n.op == "call_function" and isinstance(result, torch.Tensor):
            self.widest = max(self.widest, result.numel())
        if n.target in (convolution, CONVOLUTION):
            inputs, kernel = n.args[:2]
            reached = not _is_constant(inputs) and not _is_constant(kernel)
            values = [self.env[source] for source in (inputs, kernel) if isinstance(source, fx.Node)]
            if reached and not is_small(*values):
                self.read.append(values[1].shape[1])
        return result


def fold(module: fx.GraphModule) -> None:
    """Replace every result that depends on no argument by its value."""
    graph = module.graph
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(module)
        elif node.op == "call_function" and all(source in values for source in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = _call(node, *args, **kwargs)
    count = sum(name.startswith("_folded_") for name, _ in module.named_buffers())
    for node, value in values.items():
        outside = [user for user in node.users if user not in values]
        if node.op != "get_attr" and outside and isinstance(value, torch.Tensor):
            name = f"_folded_{count}"
            count += 1
            module.register_buffer(name, value.detach())
            with graph.inserting_before(node):
                constant = graph.get_attr(name)
            for user in outside:
                user.replace_input_with(node, constant)
    _clean(module)


def _call(node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    function: Any = node.target
    return function(*args, **kwargs)


def _simplify(module: fx.GraphModule) -> None:
    """Rewrite operations into equal ones that cost less, on a CPU and under `vmap`."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target in BATCH_NORMS:
            _absorb_batch_norm(graph, node)
    for node in graph.nodes:
        if node.target is CONVOLUTION:
            node.target = convolution
        elif node.target is MAX_POOL and all(
            user.target is operator.getitem and user.args[1] == 0 for user in node.users
        ):
            node.target = max_pool
    for node in list(graph.nodes):
        if node.target is max_pool:
            _pool_first(graph, node)
    _clean(module)


def _pool_first(graph: fx.Graph, pool: fx.Node) -> None:
    """max over max(x, 0) is max(max over x, 0): a ReLU costs less on what is left of a map."""
    relu = pool.args[0]
    if not isinstance(relu, fx.Node) or relu.target is not aten.relu.default or len(relu.users) > 1:
        return
    pool.replace_input_with(relu, relu.all_input_nodes[0])
    for result in [user for user in pool.users if user.args[1] == 0]:
        with graph.inserting_after(result):
            after = graph.call_function(aten.relu.default, (result,))
        for user in [user for user in result.users if user is not after]:
            user.replace_input_with(result, after)


def _absorb_batch_norm(graph: fx.Graph, node: fx.Node) -> None:
    """Make a BatchNorm with fixed statistics part of the convolution before it, or one multiply-add."""
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in node.users):
        return
    arguments: tuple[Any, ...] = node.args
    x, weight, bias, mean, variance, *training, _, epsilon = arguments
    if any(training):
        return
    before = x.target is CONVOLUTION and len(x.users) == 1 and not x.args[6]  # 6: transposed
    with graph.inserting_before(node):
        affine = graph.call_function(scale_and_shift, (weight, bias, mean, variance, epsilon))
        scale = graph.call_function(operator.getitem, (affine, 0))
        shift = graph.call_function(operator.getitem, (affine, 1))
        if before:
            inputs, kernel, offset, *rest = x.args
            kernel = graph.call_function(scale_rows, (kernel, scale))
            offset = shift if offset is None else graph.call_function(torch.addcmul, (shift, offset, scale))
            result = graph.call_function(CONVOLUTION, (inputs, kernel, offset, *rest))
        else:
            result = graph.call_function(multiply_add, (x, scale, shift))
    for user in list(node.users):
        user.replace_all_uses_with(result)


def _clean(module: fx.GraphModule) -> None:
    """Drop nodes and constants that nothing uses any longer."""
    module.graph.eliminate_dead_code()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in list(module.named_buffers(recurse=False)):
        if name not in used:
            delattr(module, name)
    for name in [name for name in vars(module) if name.startswith("_tensor_constant") and name not in used]:
        delattr(module, name)
    module.recompile()


def scale_and_shift(
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """BatchNorm with fixed statistics as x·scale + shift, each (C,)."""
    scale = torch.rsqrt(variance + epsilon)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias


def scale_rows(kernel: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """kernel (O, ...) with row o times scale[o]."""
    return kernel * scale.view(-1, *[1] * (kernel.ndim - 1))


def multiply_add(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """x (B, C, ...)·scale + shift, both (C,), in one pass."""
    shape = (-1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.view(shape), x, scale.view(shape))


def max_pool(
    x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: object = 0, *rest: object
) -> tuple[torch.Tensor, None]:
    """Max pooling (B, C, H, W); the common 2×2 without overlap as maxima of slices, ~15 times as fast on a CPU."""
    plain = list(kernel) == [2, 2] and list(stride or kernel) == [2, 2] and padding in (0, [0, 0]) and not any(rest)
    if not plain or x.shape[-1] % 2 or x.shape[-2] % 2:
        return MAX_POOL(x, kernel, stride, padding, *rest)[0], None
    rows = torch.maximum(x[..., ::2, :], x[..., 1::2, :])
    return torch.maximum(rows[..., ::2], rows[..., 1::2]), None


def convolution(
    x: torch.Tensor,
    kernel: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    *rest: object,
) -> torch.Tensor:
    """2-D convolution; on a map of few pixels as one matrix product, x (B, C·H·W) @ (C·H·W, O·H'·W')."""
    transposed, output_padding, groups = rest
    if transposed or groups != 1 or not is_small(x, kernel) or any(d != 1 for d in dilation):
        return CONVOLUTION(x, kernel, bias, stride, padding, dilation, transposed, output_padding, groups)
    matrix, rows, columns = dense_kernel(kernel, x.shape[2:], stride, padding)
    y = (x.flatten(1) @ matrix).view(-1, len(kernel), rows, columns)
    return y if bias is None else y + bias.view(-1, 1, 1)


def dense_kernel(
    kernel: torch.Tensor, size: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[torch.Tensor, int, int]:
    """A convolution of maps of `size` as a matrix (C·H·W, O·H'·W'), and H', W'."""
    taps_h, rows = _taps(size[0], kernel.shape[2], stride[0], padding[0])
    taps_w, columns = _taps(size[1], kernel.shape[3], stride[1], padding[1])
    count = kernel.shape[2] * kernel.shape[3]
    taps = taps_h[:, None, :, None] * kernel.shape[3] + taps_w[None, :, None, :]  # (H, W, H', W')
    outside = (taps_h < 0)[:, None, :, None] | (taps_w < 0)[None, :, None, :]
    taps = taps.masked_fill(outside, count).flatten().to(kernel.device)
    out, channels = kernel.shape[:2]
    matrix = F.pad(kernel.flatten(2), (0, 1)).index_select(2, taps)  # the last tap is 0
    matrix = matrix.view(out, channels, -1, rows * columns).permute(1, 2, 0, 3)
    return matrix.reshape(channels * size[0] * size[1], out * rows * columns), rows, columns


def _is_constant(argument: object) -> bool:
    return isinstance(argument, fx.Node) and argument.op == "get_attr"


def is_small(x: torch.Tensor, kernel: torch.Tensor) -> bool:
    """Whether a convolution of x (B, C, H, W) is better done as a matrix product."""
    if x.ndim != 4:
        return False
    most = DENSE if kernel.shape[1] < WIDE else DENSE_WIDE
    return x.shape[2] * x.shape[3] <= most * kernel.shape[2] * kernel.shape[3]


def _taps(size: int, kernel: int, stride: int, padding: int) -> tuple[torch.Tensor, int]:
    """Which entry of the kernel joins input i and output j, (size, outputs), −1 for none; and the outputs' number."""
    outputs = (size + 2 * padding - kernel) // stride + 1
    tap = torch.arange(size)[:, None] - stride * torch.arange(outputs) + padding
    return tap.masked_fill((tap < 0) | (tap >= kernel), -1), outputs
