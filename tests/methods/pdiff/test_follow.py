"""Symmetries found by following a network: which there are, and that applying them changes nothing."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from latentia.errors import InputError
from latentia.methods.pdiff.follow import find_symmetries
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.matching import _permute, _restack, _scale, _unstack
from latentia.methods.pdiff.networks import MLP3, ConvNet3, ResNetDigits

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Depthwise(nn.Module):
    """Depthwise and pointwise convolutions, one-group normalisation, average pooling."""

    def __init__(self):
        super().__init__()
        self.a, self.d = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, groups=6)
        self.n, self.p, self.o = nn.GroupNorm(1, 6), nn.Conv2d(6, 5, 1), nn.Linear(5, 3)

    def forward(self, x):
        h = torch.relu(self.d(torch.relu(self.a(x))))
        h = nn.functional.gelu(self.p(self.n(h)))
        return self.o(nn.functional.adaptive_avg_pool2d(h, 1).view(x.size(0), 5))


class Twice(nn.Module):
    """The same layer twice, with a skip connection around it: its units are one group with those it reads."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(64, 7), nn.Linear(7, 7), nn.Linear(7, 3)
        self.norm = nn.LayerNorm(7)

    def forward(self, x):
        h = torch.relu(self.first(x.flatten(1)))
        h = h + torch.relu(self.again(h))
        h = h + torch.relu(self.again(h))
        return self.last(0.5 * self.norm(h))


def tanh_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 5), nn.Identity(), nn.Linear(5, 3))


NETWORKS = {
    "mlp": lambda: MLP3(hidden=(7, 5)),
    "convnet": lambda: ConvNet3(width=3),
    "resnet": lambda: ResNetDigits(width=2, blocks=(2, 1)),
    "depthwise": Depthwise,
    "twice": Twice,
    "tanh": tanh_network,
}


def lived_in(network):
    """The network in double precision, with statistics as if it had been trained."""
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape) + 0.1 if name.endswith("var") else 0.5 * torch.randn(tensor.shape))
    return network.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_symmetry_keeps_the_function(name):
    torch.manual_seed(1)
    network = lived_in(NETWORKS[name]()).double()
    found = find_symmetries(network, IMAGES.double())
    layout = ParameterLayout.select(network, "*", statistics=True)
    stack = {n: t.double() for n, t in _unstack(layout.flatten_many([network]), layout).items()}
    network.load_state_dict({n: t[0] for n, t in stack.items()}, strict=False)  # as rounded to float32
    expected = network(IMAGES.double())
    before = _restack(stack, layout)
    for group, size in enumerate(found.sizes):
        order = torch.randperm(size)[None]
        for tensor, axes in found.axes.items():
            for axis in axes:
                if axis.group == group:
                    stack[tensor] = _permute(stack[tensor], axis, order)
    for scaling in found.scalings:
        s = torch.rand(1, scaling.size).double() + 0.5 if scaling.positive else torch.ones(1, scaling.size).double()
        if scaling.sign:
            s = s * torch.randint(2, s.shape).mul(2).sub(1)
        _scale(stack, scaling.actions, s)
    assert (_restack(stack, layout) - before).abs().max() > 0.1
    moved = functional_call(network, {n: t[0] for n, t in stack.items()}, (IMAGES.double(),))
    assert torch.allclose(moved, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mlp", [5, 7]),
        ("convnet", [3, 3, 3]),
        ("resnet", [2, 2, 2, 4, 4]),  # two streams, and the inside of three blocks
        ("depthwise", [5, 6]),
        ("twice", [7]),
        ("tanh", [5, 6]),
    ],
)
def test_groups_of_units(name, sizes):
    assert sorted(find_symmetries(NETWORKS[name](), IMAGES).sizes) == sizes


def test_kinds_of_scale():
    kinds = lambda name: {(s.positive, s.sign) for s in find_symmetries(NETWORKS[name](), IMAGES).scalings}  # noqa: E731
    assert kinds("mlp") == {(True, False)}
    assert kinds("tanh") == {(False, True), (True, True)}  # odd; and linear between two layers
    assert kinds("resnet") == {(True, True), (True, False)}  # in front of BatchNorm; behind it
    assert kinds("twice") == {(True, True)}  # only LayerNorm's own weights; it forgets nothing unit by unit


def test_only_what_changes_no_other_layer():
    network = ResNetDigits(width=2, blocks=(1, 1))
    found = find_symmetries(network, IMAGES)
    inside = ParameterLayout.select(network, ["layer2.0.conv1", "layer2.0.bn1", "layer2.0.conv2.weight"]).names
    assert found.within(inside).sizes == (4,)
    assert found.within(("layer2.0.bn1.weight", "layer2.0.bn1.bias")).sizes == ()


def test_modes_are_left_as_they_were():
    network = ResNetDigits(width=2, blocks=(1,)).train()
    network.bn1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    find_symmetries(network, IMAGES)
    assert network.training
    assert not network.bn1.training
    assert network.layer1[0].bn1.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Odd(nn.Module):
    def __init__(self, operation):
        super().__init__()
        self.a, self.b, self.operation = nn.Linear(64, 6), nn.Linear(6, 3), operation

    def forward(self, x):
        return self.b(self.operation(self.a(x.flatten(1))))


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (lambda h: h.cumsum(1), "cumsum"),
        (lambda h: h * h, "mul"),
        (lambda h: torch.cat(h.chunk(2, 1), 1), "chunk"),
        (lambda h: h.reshape(-1, 2, 3).flatten(1), "reshapes"),
        (lambda h: h - h.mean(1, keepdim=True), "mean"),
        (lambda h: h if h.sum() > 0 else -h, "cannot be traced"),
        (nn.GroupNorm(2, 6), "GroupNorm"),
    ],
)
def test_an_unknown_operation_is_named(operation, said):
    with pytest.raises(InputError, match=said):
        find_symmetries(Odd(operation), IMAGES)
