"""Statistics measured anew: against PyTorch's own running averages; REPAIR against what it promises."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from latentia.errors import InputError
from latentia.methods.pdiff.batch_norm import (
    activation_statistics,
    batch_normalised,
    mean_statistics,
    reestimate,
    repair,
)
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.networks import MLP3, ConvNet3, ResNetDigits

IMAGES = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def some(build, count=3):
    torch.manual_seed(0)
    networks = [build() for _ in range(count)]
    for network in networks:
        for name, tensor in network.named_parameters():
            if "bn" in name:
                tensor.data = torch.rand(tensor.shape) + 0.5
    layout = ParameterLayout.select(networks[0], "*")
    return networks, layout, layout.flatten_many(networks)


def resnet():
    return ResNetDigits(width=3, blocks=(1, 1))


@pytest.mark.parametrize("batch_size", [None, 8, 9])  # 9 leaves a short batch, which does not count
def test_running_statistics_are_those_of_training_mode(batch_size):
    networks, layout, vectors = some(resnet)
    made = reestimate(networks[0], layout, networks[0].state_dict(), vectors, IMAGES, batch_size=batch_size, chunk=2)
    for i, network in enumerate(networks):
        expected = copy.deepcopy(network).train()
        for norm in expected.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None  # a plain average
                norm.reset_running_stats()
        for batch in IMAGES[: 18 if batch_size == 9 else 24].split(batch_size or 24):
            expected(batch)
        state = {name: tensor for name, tensor in expected.state_dict().items() if "running" in name}
        assert set(made) == set(state)
        for name, tensor in state.items():
            assert torch.allclose(made[name][i], tensor, rtol=1e-4, atol=1e-5), name


def test_the_network_and_its_mode_stay():
    networks, layout, vectors = some(resnet)
    networks[0].train()
    before = copy.deepcopy(networks[0].state_dict())
    reestimate(networks[0], layout, before, vectors, IMAGES)
    assert networks[0].training
    assert not any(m._forward_hooks for m in networks[0].modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in networks[0].state_dict().items())


def test_nothing_to_measure():
    networks, layout, vectors = some(MLP3)
    assert reestimate(networks[0], layout, networks[0].state_dict(), vectors, IMAGES) == {}


def test_one_image_has_no_variance():
    networks, layout, vectors = some(resnet)
    with pytest.raises(InputError, match="two images"):
        reestimate(networks[0], layout, networks[0].state_dict(), vectors, IMAGES[:1])


def test_batch_normalised_equals_training_mode():
    (network,), _, _ = some(resnet, 1)
    copied = batch_normalised(network)
    assert torch.allclose(copied(IMAGES), network.train()(IMAGES), atol=1e-5)
    assert not copied.training
    assert network.bn1.running_mean is not None


@pytest.mark.parametrize("build", [MLP3, ConvNet3, resnet])
def test_repair_gives_the_target_statistics(build):
    networks, layout, vectors = some(build)
    base = networks[0].state_dict()
    target = mean_statistics(activation_statistics(networks[0], layout, base, vectors, IMAGES))
    average = vectors.mean(0, keepdim=True)
    repaired = repair(networks[0], layout, base, average, IMAGES, target)
    found = activation_statistics(networks[0], layout, base, repaired, IMAGES)
    assert set(found) == set(target)
    for name, (mean, std) in found.items():
        wanted_mean, wanted_std = target[name]
        alive = activation_statistics(networks[0], layout, base, average, IMAGES)[name][1][0] > 1e-4
        assert torch.allclose(mean[0][alive], wanted_mean[alive], atol=1e-4), name
        assert torch.allclose(std[0][alive], wanted_std[alive], rtol=1e-3, atol=1e-4), name


def test_repair_to_its_own_statistics_changes_nothing():
    networks, layout, vectors = some(ConvNet3, 1)
    base = networks[0].state_dict()
    target = mean_statistics(activation_statistics(networks[0], layout, base, vectors, IMAGES))
    assert torch.allclose(repair(networks[0], layout, base, vectors, IMAGES, target), vectors, atol=1e-5)


def test_a_dead_unit_stays_dead():
    networks, layout, vectors = some(MLP3)
    base = networks[0].state_dict()
    target = mean_statistics(activation_statistics(networks[0], layout, base, vectors, IMAGES))
    tensors = layout.unflatten(vectors)
    tensors["linear2.weight"][:, 3] = 0
    tensors["linear2.bias"][:, 3] = -1
    repaired = repair(networks[0], layout, base, vectors, IMAGES, target)
    assert repaired.isfinite().all()
    assert torch.allclose(layout.unflatten(repaired)["linear2.bias"][:, 3], torch.tensor(-1.0))


def test_repair_for_another_network_is_refused():
    networks, layout, vectors = some(MLP3)
    with pytest.raises(InputError, match="conv1"):
        repair(networks[0], layout, networks[0].state_dict(), vectors, IMAGES, {"conv1": (torch.zeros(1),) * 2})


def test_repaired_averages_predict():
    """A linear layer with the statistics of a trained one: the average of two opposite networks is revived."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    layout = ParameterLayout.select(network, "*")
    a = torch.randn(layout.size)
    vectors = torch.stack([a, a * 0.2])
    base = network.state_dict()
    target = mean_statistics(activation_statistics(network, layout, base, vectors[:1], IMAGES))
    revived = repair(network, layout, base, vectors[1:], IMAGES, target)
    expected = functional_call(network, layout.unflatten(a), (IMAGES,))
    assert torch.allclose(functional_call(network, layout.unflatten(revived[0]), (IMAGES,)), expected, atol=1e-4)
