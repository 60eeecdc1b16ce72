"""Scorer: many networks judged on the same images at once."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap

from latentia.core.arguments import check_count
from latentia.errors import InputError
from latentia.methods.pdiff.layout import ParameterLayout, StateDict
from latentia.methods.pdiff.tail import Tail, trace_tail
from latentia.methods.pdiff.together import packed_at_once, together

BatchNorm = nn.modules.batchnorm._BatchNorm

CPU_ELEMENTS, GPU_ELEMENTS = 2**21, 2**27
"""Elements of the largest activation that are computed at once: what fits the caches of a CPU, the memory of a GPU."""
AT_ONCE, TOGETHER_ELEMENTS = 16, 2**21
"""Networks that a CPU takes together at most, and elements of their largest activation."""


class Scorer:
    """Networks that differ in the layout's parameters, judged on images x with labels y, in evaluation mode.

    What the parameters do not reach (the frozen trunk below the last layers) is computed once, when the first vectors
    are judged; the rest runs for many networks at once by `torch.func.vmap`. Predictions equal those of
    `load_state_dict` and a forward pass; logits differ in the last bits of float32.

    Args:
        network: the architecture; a copy is taken, on the device of `x`.
        layout: which parameters the vectors hold.
        base: state dict of the base network: everything else.
        x: images (M, ...).
        y: labels (M,) int64.
        reestimate: images on which every network's BatchNorm statistics are measured anew (mean and unbiased variance
            of this one batch) wherever the parameters reach; None keeps those of `base`.
        vectorised: False is the plain loop, `load_state_dict` and forward: the control, and the way for a network that
            `torch.func` cannot trace.

    Raises `InputError` when base, layout and network do not belong together, or x and y.
    """

    def __init__(
        self,
        network: nn.Module,
        layout: ParameterLayout,
        base: Mapping[str, torch.Tensor],
        x: torch.Tensor,
        y: torch.Tensor,
        *,
        reestimate: torch.Tensor | None = None,
        vectorised: bool = True,
    ) -> None:
        if len(x) == 0 or y.shape != x.shape[:1] or y.is_floating_point():
            raise InputError(f"give images (M, ...) and as many integer labels, got {tuple(x.shape)}, {tuple(y.shape)}")
        layout.check(base, "the base network")
        self.layout, self.x, self.y = layout, x, y.to(x.device)
        self.network = copy.deepcopy(network).to(x.device).eval().requires_grad_(False)
        try:
            self.network.load_state_dict(dict(base))
        except RuntimeError as error:
            raise InputError(f"the base state dict is not of this network: {error}") from None
        layout.check(self.network.state_dict())
        self.dtypes = {name: base[name].dtype for name in (*layout.names, *layout.ties) if name in base}
        self.reestimate = None if reestimate is None else reestimate.to(x.device)
        self.vectorised = vectorised
        self._tails: dict[tuple[str, ...], list[Tail]] = {}
        self._many: dict[tuple[Tail, int], Callable[..., Any]] = {}
        self._measure: tuple[tuple[str, ...], Tail] | None = None

    def accuracies(
        self, vectors: torch.Tensor, chunk: int | None = None, own: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Fraction of the images that each of the networks (N, D) labels correctly, (N,) float32 on the CPU."""
        return 1 - self.wrong(vectors, chunk, own).float().mean(1)

    def wrong(
        self, vectors: torch.Tensor, chunk: int | None = None, own: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Which images each of the networks (N, D) labels wrongly, (N, M) bool on the CPU. A NaN is wrong."""
        return self._each(lambda logits: mistakes(logits, self.y), vectors, chunk, own)

    def probabilities(
        self, vectors: torch.Tensor, chunk: int | None = None, own: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Class probabilities of the networks (N, D), (N, M, classes) float32 on the CPU."""
        return self._each(lambda logits: logits.float().softmax(-1), vectors, chunk, own)

    def logits(
        self, vectors: torch.Tensor, chunk: int | None = None, own: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Logits of the networks (N, D), (N, M, classes) on the CPU.

        Args:
            vectors: one network per row.
            chunk: networks at once; None takes as many as the caches hold.
            own: name → (N, *shape): tensors outside of the layout that each network has for itself (BatchNorm
                statistics, `Checkpoints.own`).

        Raises `InputError` for vectors of another layout and for own tensors that do not fit.
        """
        return self._each(lambda logits: logits, vectors, chunk, own)

    @torch.no_grad()
    def _each(
        self,
        read: Callable[[torch.Tensor], torch.Tensor],
        vectors: torch.Tensor,
        chunk: int | None,
        own: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        self.layout.unflatten(vectors)  # says what is wrong with the shape
        if vectors.ndim != 2 or not len(vectors):
            raise InputError(f"give vectors (N, {self.layout.size}) with N at least 1, got {tuple(vectors.shape)}")
        own = self._own(own or {}, len(vectors))
        chunk = check_count("chunk", chunk) if chunk is not None else None
        if not self.vectorised:
            return torch.cat(
                [
                    read(self._one(vectors[i], {n: t[i] for n, t in own.items()})[None]).cpu()
                    for i in range(len(vectors))
                ]
            )
        results = []
        at = 0
        step = chunk or self._chunk(tuple(own))
        while at < len(vectors):
            rows = vectors[at : at + step].to(self.x.device)
            mine = {name: stacked[at : at + step] for name, stacked in own.items()}
            results.append(read(self._logits(rows, mine, step)).cpu())
            at += step
        return torch.cat(results)

    def _logits(self, vectors: torch.Tensor, own: StateDict, limit: int) -> torch.Tensor:
        if self.reestimate is not None:
            own = {**own, **self._statistics(vectors, limit)}
        names = tuple(own)
        blocks = [self._run(tail, limit, vectors, *own.values())[0] for tail in self._tail(names)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)

    def _run(self, tail: Tail, limit: int, *stacked: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tail for every row; on a CPU up to `limit` rows at once in layouts of their own, few ones one by one."""
        if self.x.device.type != "cpu":
            return _as_tuple(vmap(tail)(*stacked))
        most = min(limit, self._at_once(tail))
        parts = []
        for piece in zip(*(each.split(most) for each in stacked)):
            count = len(piece[0])
            if most == 1 or 2 * count < most:
                parts.append(_one_by_one(tail, piece))
                continue
            if count < most:  # a lowered tail has a fixed size: surplus rows are cut off again
                piece = tuple(torch.cat([each, each[-1:].expand(most - count, *each.shape[1:])]) for each in piece)
            made = _as_tuple(self._lowered(tail, piece)(*piece))
            if tail.grouped and not all(bool(each.isfinite().all()) for each in made):
                made = _one_by_one(tail, piece)  # what is not finite spreads to the networks packed with it
            parts.append(tuple(each[:count] for each in made))
        return tuple(torch.cat(column) for column in zip(*parts))

    def _at_once(self, tail: Tail) -> int:
        """Rows that a CPU takes together."""
        return packed_at_once(tail) if tail.grouped else max(1, min(AT_ONCE, TOGETHER_ELEMENTS // tail.widest))

    def _lowered(self, tail: Tail, stacked: tuple[torch.Tensor, ...]) -> Callable[..., Any]:
        key = tail, len(stacked[0])
        if key not in self._many:
            self._many[key] = together(tail, stacked)
        return self._many[key]

    def _tail(self, names: tuple[str, ...]) -> list[Tail]:
        """One traced tail per block of images, with the named tensors as inputs beside the vector."""
        if names not in self._tails:
            state = self.network.state_dict()
            example = [self._base_vector(), *(state[name] for name in names)]
            few = self.x[:64]
            probe = trace_tail(self._forward(few, names), example)
            block = max(64, self._elements() * len(few) // probe.widest)
            self._tails[names] = [trace_tail(self._forward(x, names), example) for x in self.x.split(block)]
        return self._tails[names]

    def _chunk(self, names: tuple[str, ...]) -> int:
        if self.reestimate is not None:
            names = (*names, *(n for n in self._measuring()[0] if n not in names))
        widest = max(tail.widest for tail in self._tail(names))
        return 64 if self.x.device.type == "cpu" else max(1, min(64, GPU_ELEMENTS // widest))

    def _elements(self) -> int:
        return CPU_ELEMENTS if self.x.device.type == "cpu" else GPU_ELEMENTS

    def _base_vector(self) -> torch.Tensor:
        return self.layout.flatten(self.network).to(self.x.device)

    def _generated(self, vector: torch.Tensor) -> StateDict:
        tensors = self.layout.unflatten(vector)
        cast = {name: tensors[name].to(self.dtypes.get(name, tensors[name].dtype)) for name in self.layout.names}
        return cast | {other: cast[name] for other, name in self.layout.ties.items()}

    def _forward(self, x: torch.Tensor, names: tuple[str, ...]) -> Callable[..., torch.Tensor]:
        def forward(vector: torch.Tensor, *own: torch.Tensor) -> torch.Tensor:
            return functional_call(self.network, self._generated(vector) | dict(zip(names, own)), (x,))

        return forward

    def _own(self, own: Mapping[str, torch.Tensor], count: int) -> StateDict:
        state = self.network.state_dict()
        floats: StateDict = {}
        for name, stacked in own.items():
            if name not in state or tuple(stacked.shape) != (count, *state[name].shape):
                shape = (count, *state[name].shape) if name in state else "no such tensor in the network"
                raise InputError(f"own tensor {name!r} has shape {tuple(stacked.shape)}, expected {shape}")
            if stacked.is_floating_point() or not name.endswith("num_batches_tracked"):  # counters change no logit
                floats[name] = stacked.to(self.x.device, state[name].dtype)
        return floats

    def _one(self, vector: torch.Tensor, own: StateDict) -> torch.Tensor:
        """The control: load everything, run everything."""
        vector = vector.to(self.x.device)
        if self.reestimate is not None:
            own = {**own, **{name: rows[0] for name, rows in self._statistics(vector[None]).items()}}
        kept = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        self.network.load_state_dict({**kept, **self._generated(vector), **own})
        try:
            return self.network(self.x)
        finally:
            self.network.load_state_dict(kept)

    def _statistics(self, vectors: torch.Tensor, limit: int = 1) -> StateDict:
        """BatchNorm statistics of each network on the batch, name → (N, C)."""
        names, tail = self._measuring()
        if not names:
            return {}
        return dict(zip(names, self._run(tail, limit, vectors)))

    def _measuring(self) -> tuple[tuple[str, ...], Tail]:
        """Names of the statistics that the parameters reach, and the traced function that measures them."""
        if self._measure is None:
            assert self.reestimate is not None
            layers = _reached(self.network, self._generated(self._base_vector()), self.reestimate[:2])
            names = tuple(f"{path}.{name}" for path in layers for name in ("running_mean", "running_var"))

            def measure(vector: torch.Tensor) -> tuple[torch.Tensor, ...]:
                return batch_statistics(self.network, self._generated(vector), self.reestimate, layers)

            self._measure = names, trace_tail(measure, [self._base_vector()])
        return self._measure


def mistakes(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Where the first greatest of the logits (N, M, classes) is not the label (M,): bool (N, M). A NaN is wrong.

    Equal to `logits.argmax(-1) != y` but for NaN, and several times as fast on a CPU.
    """
    best = logits.amax(-1)
    wrong = logits.gather(-1, y.expand(len(logits), -1)[..., None]).squeeze(-1) != best
    greatest = logits == best[..., None]
    if int(greatest.count_nonzero()) > int((best == best).count_nonzero()):  # more than one somewhere
        earlier = torch.arange(logits.shape[-1], device=y.device) < y[:, None]
        wrong |= (greatest & earlier).any(-1)
    return wrong


def batch_statistics(
    network: nn.Module, tensors: Mapping[str, torch.Tensor], x: torch.Tensor | None, layers: list[str]
) -> tuple[torch.Tensor, ...]:
    """Mean and unbiased variance of the inputs of the named BatchNorm layers on one batch, each normalised by its own.

    Equal to running statistics after one forward pass of these layers in training mode with momentum 1. No buffer is
    written, so that it runs under `vmap` and in a trace. Returns mean, variance of layer 0, of layer 1, ….
    """
    measured: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def normalise(path: str) -> Callable[[BatchNorm, tuple[torch.Tensor], torch.Tensor], torch.Tensor]:
        def hook(layer: BatchNorm, args: tuple[torch.Tensor], _: torch.Tensor) -> torch.Tensor:
            over = [d for d in range(args[0].ndim) if d != 1]
            variance, mean = torch.var_mean(args[0], over, correction=0)
            count = args[0].numel() // args[0].shape[1]
            measured[path] = mean, variance * (count / max(count - 1, 1))
            shape = (1, -1, *[1] * (args[0].ndim - 2))
            y = (args[0] - mean.view(shape)) * torch.rsqrt(variance + layer.eps).view(shape)
            return y if layer.weight is None else y * layer.weight.view(shape) + layer.bias.view(shape)

        return hook

    handles = [network.get_submodule(path).register_forward_hook(normalise(path)) for path in layers]
    try:
        functional_call(network, dict(tensors), (x,))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(tensor for path in layers for tensor in measured[path])


def _reached(network: nn.Module, generated: StateDict, x: torch.Tensor) -> list[str]:
    """Paths of the BatchNorm layers whose input depends on the generated tensors: those that a gradient reaches."""
    found: list[str] = []

    def note(path: str) -> Callable[[nn.Module, tuple[torch.Tensor]], None]:
        return lambda _, args: found.append(path) if args[0].requires_grad and path not in found else None

    layers = [(p, m) for p, m in network.named_modules() if isinstance(m, BatchNorm) and m.running_mean is not None]
    handles = [layer.register_forward_pre_hook(note(path)) for path, layer in layers]
    try:
        with torch.enable_grad():
            functional_call(network, {n: t.detach().requires_grad_() for n, t in generated.items()}, (x,))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _as_tuple(result: Any) -> tuple[torch.Tensor, ...]:
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def _one_by_one(tail: Tail, stacked: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    rows = [_as_tuple(tail(*row)) for row in zip(*stacked)]
    return tuple(torch.stack(column) for column in zip(*rows))
