import pytest
import torch
from torch import nn

from latentia.core.protocols import FeatureNetwork
from latentia.data.dataset import TensorDataset
from latentia.errors import InputError, NonFiniteError
from latentia.metrics.classifier import ConvClassifier
from latentia.metrics.features import ModuleFeatures, PixelFeatures, device_of, extract


def test_pixels_are_flattened_or_resized_first():
    x = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(PixelFeatures().features(x), x.flatten(1))
    small = PixelFeatures(4)
    assert small.name == "pixels4"
    assert small.features(x).shape == (3, 32)
    assert torch.equal(PixelFeatures(8).features(x), x.flatten(1))
    with pytest.raises(InputError, match="at least 1"):
        PixelFeatures(0)


def test_a_module_becomes_a_ruler():
    conv = nn.Conv2d(1, 4, 3).requires_grad_(True)
    ruler = ModuleFeatures("conv", conv, prepare=lambda x: x * 2)
    assert isinstance(ruler, FeatureNetwork)
    x = torch.ones(2, 1, 5, 5)
    found = ruler.features(x)
    assert torch.allclose(found, conv(2 * x).mean(dim=(2, 3)))
    assert not found.requires_grad
    with pytest.raises(InputError, match=r"must return \(B, D\)"):
        ModuleFeatures("bad", nn.Flatten(0)).features(x)


def test_extract_batches_tensors_and_datasets_alike():
    x = torch.randn(10, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = extract(PixelFeatures(), x)
    assert torch.equal(extract(PixelFeatures(), x, batch_size=3), whole)
    assert torch.equal(extract(PixelFeatures(), TensorDataset({"x": x}), batch_size=4), whole)


def test_extract_measures_in_evaluation_mode_and_restores():
    network = ConvClassifier(channels=(4, 4), pool=2, feature_dim=8).train()
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mean = network.trunk[1].running_mean.clone()
    first = extract(network, x)
    assert network.training
    assert torch.equal(network.trunk[1].running_mean, mean)
    assert torch.allclose(extract(network, x, batch_size=1), first, atol=1e-5)


def test_bad_features_are_refused():
    with pytest.raises(InputError, match="no images to measure with 'pixels'"):
        extract(PixelFeatures(), torch.empty(0, 1, 2, 2))
    x = torch.zeros(4, 1, 2, 2)
    x[2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"for 1 of 4 images, first \[2\]"):
        extract(PixelFeatures(), x)


def test_the_network_says_where_it_runs():
    assert device_of(PixelFeatures()).type == "cpu"
    assert device_of(nn.Conv2d(1, 1, 1, device="meta")).type == "meta"
    assert device_of(ModuleFeatures("m", nn.Conv2d(1, 1, 1, device="meta"))).type == "meta"


def test_frozen_parts_stay_frozen():
    network = ConvClassifier().train()
    network.trunk.eval()
    extract(network, torch.zeros(2, 1, 8, 8))
    assert network.training
    assert network.head.training
    assert not any(part.training for part in network.trunk.modules())


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_bad_batch_sizes(size):
    with pytest.raises(InputError, match=f"batch_size must be an integer of at least 1, got {size}"):
        extract(PixelFeatures(), torch.zeros(2, 1, 8, 8), size)
