"""Tails of many networks at once: any module, whatever its operations, gives what one network after the other does."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.scoring import Scorer
from latentia.methods.pdiff.tail import max_pool, trace_tail
from latentia.methods.pdiff.together import RULES, packed_at_once, together


class Odd(nn.Module):
    """Operations with rules and without: stride, groups, dilation, average pooling, GroupNorm, softmax, tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, 2, padding=1)
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, 8)
        self.dilated = nn.Conv2d(8, 6, 3, padding=2, dilation=2)
        self.point = nn.Conv2d(6, 6, 1)
        self.gate = nn.Linear(6, 6)
        self.head = nn.Linear(6, 5, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(self.stem(x))
        h = torch.tanh(self.norm(self.grouped(h)))
        h = F.avg_pool2d(self.dilated(h), 2)
        h = (h + 0.5 * self.point(h)).mean((2, 3))
        return self.head(h * self.gate(h).softmax(-1))


class Wide(nn.Module):
    """Maps too large for a product: packed convolutions, a shortcut, pooling of several kinds."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.third = nn.Conv2d(channels, 4, 3, stride=2)
        self.head = nn.Linear(4 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.norm(self.first(x)))
        h = F.relu(self.second(h)) + h
        return self.head(F.max_pool2d(F.leaky_relu(self.third(h)), 3, 2).flatten(1))


def judged(network, patterns, size, n=9, m=20):
    torch.manual_seed(0)
    network = network.eval()
    layout = ParameterLayout.select(network, patterns)
    vectors = layout.flatten(network) + 0.3 * torch.randn(n, layout.size)
    x, base = torch.randn(m, 1, size, size), network.state_dict()
    scorer = Scorer(network, layout, base, x, torch.zeros(m, dtype=torch.int64))
    with torch.no_grad():
        expected = torch.stack([functional_call(network, layout.unflatten(v), (x,)) for v in vectors])
    return scorer, vectors, expected


@pytest.mark.parametrize(
    ("network", "patterns", "size"),
    [
        (Odd, "*", 8),
        (Odd, ["point.*", "head.*"], 8),
        (Odd, "norm.*", 8),
        (Odd, "stem.bias", 8),
        (Wide, "*", 16),
        (Wide, ["second.bias", "third.*"], 16),
        (Wide, ["norm.*", "head.bias"], 16),
    ],
)
def test_any_module(network, patterns, size):
    scorer, vectors, expected = judged(network(), patterns, size)
    assert torch.allclose(scorer.logits(vectors), expected, atol=2e-5)


def test_narrow_networks_are_packed_and_wide_ones_are_not():
    scorer, _, _ = judged(Wide(), "*", 16)
    tail = scorer._tail(())[0]
    assert (tail.grouped, tail.narrowest, packed_at_once(tail)) == (True, 3, 5)
    wide = judged(Wide(20), "*", 16)[0]._tail(())[0]
    assert packed_at_once(wide) == 1


def test_a_layer_on_fixed_images_is_one_product():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    layout = ParameterLayout.select(network, "*")
    x = torch.randn(30, 1, 8, 8)
    tail = trace_tail(lambda v: functional_call(network, layout.unflatten(v), (x,)), [layout.flatten(network)])
    module = together(tail, [torch.randn(6, layout.size)])
    targets = [node.target for node in module.graph.nodes]
    assert targets.count(torch.ops.aten.mm.default) == 1
    assert targets.count(torch.ops.aten.bmm.default) == 1
    vectors = torch.randn(6, layout.size)
    assert torch.allclose(module(vectors), torch.stack([tail(v) for v in vectors]), atol=1e-5)


def test_relu_waits_for_the_pooling():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 3))
    layout = ParameterLayout.select(network, "*")
    x = torch.randn(5, 1, 8, 8)
    tail = trace_tail(lambda v: functional_call(network, layout.unflatten(v), (x,)), [layout.flatten(network)])
    order = [node.target for node in tail.module.graph.nodes if node.target in (max_pool, torch.ops.aten.relu.default)]
    assert order == [max_pool, torch.ops.aten.relu.default]
    vector = layout.flatten(network)
    assert torch.allclose(tail(vector), network(x), atol=1e-5)


def test_batch_norm_is_part_of_the_convolution():
    scorer, _, _ = judged(Wide(), "*", 16)
    targets = {node.target for node in scorer._tail(())[0].module.graph.nodes}
    assert not any("batch_norm" in str(target) for target in targets)
    assert RULES  # what has none is left to vmap
