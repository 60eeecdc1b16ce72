"""DatasetScorer: many large networks judged on a data set, batch by batch; the frozen trunk runs once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import fx, nn
from torch.func import functional_call, vmap

from latentia.core.arguments import check_count
from latentia.core.protocols import Dataset
from latentia.errors import InputError, check_choice
from latentia.methods.pdiff.layout import ParameterLayout, StateDict
from latentia.methods.pdiff.scoring import CPU_ELEMENTS, GPU_ELEMENTS
from latentia.methods.pdiff.tail import Tail, prepare
from latentia.training.order import batches
from latentia.training.parallel import to_device

PRECISIONS = ("no", "bf16")


class DatasetScorer:
    """Networks that differ in the layout's parameters, judged on all images of a data set, in evaluation mode.

    What `Scorer` does for images in memory. One forward pass is recorded and cut in two: the *trunk*, which no
    generated parameter reaches, and the *tail* behind it. The trunk runs once for each batch and its results are kept
    up to `cache` bytes (the rest is decoded and computed again in every call); the tail runs for many networks at once.

    Args:
        network: the architecture; a copy is taken, on `device`.
        layout: which parameters the vectors hold.
        base: state dict of the base network: everything else.
        data: `{"x": (B, C, H, W), "label": (B,) int64}` by index.
        batch_size: images at once.
        device: where to compute.
        precision: `no` (float32) or `bf16` autocast.
        cache: bytes of the trunk's results that may be kept on `device`.
        workers: threads that decode batches ahead.

    Raises `InputError` when base, layout and network do not belong together, or for an empty data set.
    """

    def __init__(
        self,
        network: nn.Module,
        layout: ParameterLayout,
        base: Mapping[str, torch.Tensor],
        data: Dataset,
        *,
        batch_size: int = 128,
        device: torch.device | str = "cpu",
        precision: str = "no",
        cache: int = 2**31,
        workers: int = 4,
    ) -> None:
        check_choice("precision", precision, PRECISIONS)
        if len(data) < 1:
            raise InputError("there are no images to judge on: check the folder or the split")
        layout.check(base, "the base network")
        self.layout, self.data, self.device, self.precision = layout, data, torch.device(device), precision
        self.batch_size = min(check_count("batch_size", batch_size), len(data))
        self.cache, self.workers = check_count("cache", cache, least=0), workers
        self.network = copy.deepcopy(network).to(self.device).eval().requires_grad_(False)
        try:
            self.network.load_state_dict(dict(base))
        except RuntimeError as error:
            raise InputError(f"the base state dict is not of this network: {error}") from None
        self._parts: tuple[fx.GraphModule, Tail] | None = None
        self._kept: list[tuple[torch.Tensor, ...]] = []
        self._labels: torch.Tensor | None = None

    @property
    def y(self) -> torch.Tensor:
        """The true classes (M,) on the CPU; the first look goes through the data set."""
        if self._labels is None:
            for _ in self._features():
                pass
        assert self._labels is not None
        return self._labels

    def accuracies(
        self, vectors: torch.Tensor, chunk: int | None = None, own: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Fraction of the images that each of the networks (N, D) labels correctly, (N,) float32 on the CPU."""
        return 1 - self.wrong(vectors, chunk, own).float().mean(1)

    def wrong(
        self, vectors: torch.Tensor, chunk: int | None = None, own: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Which images each of the networks (N, D) labels wrongly, (N, M) bool on the CPU. A NaN is wrong."""
        return self._each(lambda z, y: (z.argmax(-1) != y) | z.isnan().any(-1), vectors, chunk, own)

    def probabilities(
        self, vectors: torch.Tensor, chunk: int | None = None, own: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Class probabilities of the networks (N, D), (N, M, classes) float32 on the CPU."""
        return self._each(lambda z, _: z.float().softmax(-1), vectors, chunk, own)

    @torch.no_grad()
    def _each(
        self,
        read: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        vectors: torch.Tensor,
        chunk: int | None,
        own: Mapping[str, torch.Tensor] | None,
    ) -> torch.Tensor:
        self.layout.unflatten(vectors)  # says what is wrong with the shape
        if vectors.ndim != 2 or not len(vectors):
            raise InputError(f"give vectors (N, {self.layout.size}) with N at least 1, got {tuple(vectors.shape)}")
        if own:
            raise InputError(
                f"these networks share all but the layout's parameters, got own tensors {', '.join(own)}: use Scorer"
            )
        vectors = vectors.to(self.device)
        found: list[torch.Tensor] = []
        for features, y in self._features():
            tail = self._split()[1]
            step = check_count("chunk", chunk) if chunk is not None else self._chunk(tail)
            rows = [read(self._run(tail, part, features)[:, : len(y)], y).cpu() for part in vectors.split(step)]
            found.append(torch.cat(rows))
        return torch.cat(found, 1)

    def _run(self, tail: Tail, vectors: torch.Tensor, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits (n, B, classes), at once, or one by one: where a CPU is faster that way, and in mixed types."""
        if (tail.grouped and self.device.type == "cpu") or self.precision != "no":
            return torch.stack([tail(vector, *features) for vector in vectors])
        logits: torch.Tensor = vmap(tail, in_dims=(0, *[None] * len(features)))(vectors, *features)
        return logits

    def _chunk(self, tail: Tail) -> int:
        elements = CPU_ELEMENTS if self.device.type == "cpu" else GPU_ELEMENTS
        return max(1, min(64, elements // tail.widest))

    def _features(self) -> Iterator[tuple[tuple[torch.Tensor, ...], torch.Tensor]]:
        """What the tail needs of each batch, in order, and the batch's labels on the device."""
        size, count = self.batch_size, len(self.data)
        ready = len(self._kept) if self._labels is not None else 0
        for number, features in enumerate(self._kept[:ready]):
            assert self._labels is not None
            yield features, self._labels[number * size : (number + 1) * size].to(self.device)
        self._kept = self._kept[:ready]
        starts = range(ready * size, count, size)
        plan = ([list(range(at, min(at + size, count)))] for at in starts)
        room = self.cache - sum(_bytes(features) for features in self._kept)
        labels: list[torch.Tensor] = []
        for (batch,) in batches(self.data, plan, self.workers):
            moved = to_device(batch, self.device)
            x, y = moved["x"], moved["label"]
            filled = torch.cat([x, x[:1].expand(size - len(x), *x.shape[1:])]) if len(x) < size else x
            features = tuple(self._split(filled)[0](filled))
            if self._labels is None:
                labels.append(y.cpu())
                room -= _bytes(features)
                if room >= 0:
                    self._kept.append(features)
            yield features, y
        if self._labels is None:
            self._labels = torch.cat(labels)

    def _split(self, x: torch.Tensor | None = None) -> tuple[fx.GraphModule, Tail]:
        """Trunk and tail, recorded on the first batch."""
        if self._parts is None:
            assert x is not None
            vector = self.layout.flatten(self.network).to(self.device)
            plain = (
                self.device.type == "cpu" and self.precision == "no"
            )  # a GPU merges networks where kernels are shared
            self._parts = split(self._forward(), vector, x, simplify=plain)
        return self._parts

    def _forward(self) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        state = self.network.state_dict()

        def forward(vector: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
            tensors: StateDict = {
                n: t.to(state[n].dtype) for n, t in self.layout.unflatten(vector).items() if n in state
            }
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                logits: torch.Tensor = functional_call(self.network, tensors, (x,))
            return logits

        return forward


@torch.no_grad()
def split(
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    vector: torch.Tensor,
    x: torch.Tensor,
    simplify: bool = True,
) -> tuple[fx.GraphModule, Tail]:
    """Record `function(vector, x)` as `tail(vector, *trunk(x))`, with all that needs no vector in the trunk.

    Both hold for arguments of these shapes. `simplify` as in `trace_tail`.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    module = make_fx(function)(vector, x)
    first, second = [node for node in module.graph.nodes if node.op == "placeholder"]
    late, early = {first}, {second}
    for node in module.graph.nodes:
        if node.op == "output" or late.intersection(node.all_input_nodes):
            late.add(node)
        elif early.intersection(node.all_input_nodes):
            early.add(node)
    border = [node for node in module.graph.nodes if node in early and late.intersection(node.users)]
    trunk = _part(module, [second], [node for node in module.graph.nodes if node not in late], border)
    rest = [node for node in module.graph.nodes if node not in early]
    tail = _part(module, [first, *border], rest, None)
    return trunk, prepare(tail, [vector, *trunk(x)], simplify)


def _part(
    module: fx.GraphModule, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], outputs: Sequence[fx.Node] | None
) -> fx.GraphModule:
    """The graph of some nodes alone, with `inputs` as its arguments; `outputs` None is the output they end in."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(f"input_{i}") for i, node in enumerate(inputs)}
    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    if outputs is not None:
        graph.output(tuple(copies[node] for node in outputs))
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
