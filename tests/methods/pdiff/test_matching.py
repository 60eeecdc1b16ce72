"""Weight matching: shuffled networks are put back in order, and no network does anything else than before."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from latentia.errors import InputError
from latentia.methods.pdiff.follow import find_symmetries
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.matching import _permute, _restack, _scale, _unstack, align, canonicalise, rescale, residual
from latentia.methods.pdiff.networks import MLP3, ConvNet3, ResNetDigits

IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def tanh_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 3))


NETWORKS = {
    "mlp": lambda: MLP3(hidden=(12, 9)),
    "convnet": lambda: ConvNet3(width=6),
    "resnet": lambda: ResNetDigits(width=4, blocks=(2, 1)),
    "tanh": tanh_network,
}


def some(name, count, seed=0):
    """Networks with lived-in statistics: architecture, layout with statistics, vectors (count, D)."""
    torch.manual_seed(seed)
    networks = [NETWORKS[name]().eval() for _ in range(count)]
    for network in networks:
        for key, tensor in network.state_dict().items():
            if "bn" in key and tensor.is_floating_point():
                away = torch.rand(tensor.shape) + 0.2 if key.endswith("var") else torch.randn(tensor.shape)
                tensor.copy_(away)
    layout = ParameterLayout.select(networks[0], "*", statistics=True)
    return networks[0], layout, layout.flatten_many(networks)


def outputs(network, layout, vectors):
    return torch.stack([functional_call(network, layout.unflatten(v), (IMAGES,)) for v in vectors])


def shuffled(name, network, layout, vector, count):
    """Copies of one network with units in random order and at random scales."""
    found = find_symmetries(network, IMAGES)
    stack = _unstack(vector.expand(count, -1).clone(), layout)
    for group, size in enumerate(found.sizes):
        order = torch.rand(count, size).argsort(1)
        for tensor, axes in found.axes.items():
            for axis in axes:
                if axis.group == group:
                    stack[tensor] = _permute(stack[tensor], axis, order)
    for scaling in found.scalings:
        s = torch.rand(count, scaling.size) + 0.5 if scaling.positive else torch.ones(count, scaling.size)
        if scaling.sign:
            s = s * torch.randint(2, s.shape).mul(2).sub(1)
        _scale(stack, scaling.actions, s)
    return _restack(stack, layout)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_network_does_anything_else(name):
    network, layout, vectors = some(name, 6)
    done = canonicalise(vectors, network, layout, IMAGES[:1])
    before, after = outputs(network, layout, vectors), outputs(network, layout, done.vectors)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    assert done.residual < residual(vectors)
    assert torch.allclose(done.reference, done.vectors.mean(0))


@pytest.mark.parametrize("name", NETWORKS)
def test_shuffled_and_rescaled_copies_become_one(name):
    network, layout, vectors = some(name, 1, seed=3)
    copies = shuffled(name, network, layout, vectors[0], 5)
    assert residual(copies) > 0.3
    done = canonicalise(copies, network, layout, IMAGES[:1], starts=1)
    assert done.residual < 1e-5
    assert torch.allclose(done.vectors, done.reference.expand(5, -1), atol=2e-3)


def test_independent_networks_move_together():
    network, layout, vectors = some("mlp", 8)
    done = canonicalise(vectors, network, layout, IMAGES[:1], rounds=0, starts=1)
    again = canonicalise(vectors, network, layout, IMAGES[:1], rounds=10, starts=1)
    more = canonicalise(vectors, network, layout, IMAGES[:1], rounds=10, starts=4)
    assert again.rounds > 0
    assert more.residual <= again.residual < done.residual < residual(vectors)


def test_one_group_is_the_best_of_all_orders():
    """With one hidden layer the answer can be enumerated."""
    from itertools import permutations

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.GELU(), nn.Linear(5, 3))
    layout = ParameterLayout.select(network, "*")
    found = find_symmetries(network, IMAGES)
    reference, vector = torch.randn(2, layout.size)
    (name,) = [n for n, axes in found.axes.items() if axes[0].axis == 1]
    distances = []
    for order in permutations(range(5)):
        stack = _unstack(vector[None], layout)
        for tensor, axes in found.axes.items():
            stack[tensor] = _permute(stack[tensor], axes[0], torch.tensor(order)[None])
        distances.append(float((_restack(stack, layout)[0] - reference).norm()))
    matched = align(vector[None], reference, found, layout)[0]
    assert name == "3.weight"
    assert float((matched - reference).norm()) == pytest.approx(min(distances), rel=1e-6)


def test_scales_are_balanced_and_stay_so():
    network, layout, vectors = some("mlp", 3)
    found = find_symmetries(network, IMAGES)
    once = rescale(vectors * 3, found, layout)
    t = layout.unflatten(once)
    for number in (1, 2):
        incoming = torch.cat([t[f"linear{number}.weight"], t[f"linear{number}.bias"][..., None]], 2).norm(dim=2)
        assert torch.allclose(incoming, t[f"linear{number + 1}.weight"].norm(dim=1), rtol=1e-3)
    assert torch.allclose(rescale(once, found, layout), once, rtol=1e-3, atol=1e-5)


def test_batch_norm_weights_are_positive_and_its_convolutions_of_norm_one():
    network, layout, vectors = some("resnet", 3)
    t = layout.unflatten(rescale(vectors, find_symmetries(network, IMAGES), layout))
    assert all((tensor > 0).all() for name, tensor in t.items() if "bn" in name and name.endswith("weight"))
    assert torch.allclose(t["layer2.0.conv1.weight"].flatten(2).norm(dim=2), torch.ones(3, 8), atol=1e-4)


def test_a_dead_unit_keeps_its_scale():
    network, layout, vectors = some("mlp", 2)
    layout.unflatten(vectors)["linear2.weight"][:, :, 4] = 0
    done = canonicalise(vectors, network, layout, IMAGES[:1])
    assert done.vectors.isfinite().all()
    assert torch.allclose(outputs(network, layout, done.vectors), outputs(network, layout, vectors), atol=1e-5)


def test_statistics_may_be_left_out():
    """Without them in the layout the parameters move by the same rules; the statistics are measured again later."""
    network, layout, vectors = some("resnet", 3)
    own = ParameterLayout.select(network, "*")
    parameters = torch.cat([layout.unflatten(vectors)[name].flatten(1) for name in own.names], 1)
    whole = canonicalise(vectors, network, layout, IMAGES[:1], rounds=0, starts=1)
    part = canonicalise(parameters, network, own, IMAGES[:1], rounds=0, starts=1)
    assert part.vectors.shape == parameters.shape
    assert whole.vectors.shape == vectors.shape
    assert part.residual < residual(parameters)


def test_nothing_to_match_is_said():
    network, _, _ = some("mlp", 1)
    layout = ParameterLayout.select(network, "linear3")
    with pytest.raises(InputError, match=r"nothing can be matched.*linear3\.weight"):
        canonicalise(torch.randn(4, layout.size), network, layout, IMAGES[:1])
    with pytest.raises(InputError, match="starts"):
        canonicalise(torch.randn(4, layout.size), network, layout, IMAGES[:1], starts=0)


def test_one_network_is_its_own_reference():
    network, layout, vectors = some("mlp", 1)
    done = canonicalise(vectors, network, layout, IMAGES[:1])
    assert done.residual == pytest.approx(0, abs=1e-6)
    assert torch.allclose(outputs(network, layout, done.vectors), outputs(network, layout, vectors), atol=1e-5)
