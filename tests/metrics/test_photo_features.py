import pytest
import torch

from latentia.core.protocols import FeatureNetwork
from latentia.errors import ConfigError, InputError
from latentia.metrics.frechet import frechet_name
from latentia.metrics.photo_features import PhotoFeatures


def small(**more):
    torch.manual_seed(0)
    return PhotoFeatures(**{"channels": (4, 6, 8), "feature_dim": 5, **more}).eval()


def test_shapes_and_name():
    network = small()
    x = torch.rand(2, 3, 16, 12) * 2 - 1
    assert isinstance(network, FeatureNetwork)
    assert frechet_name(network) == "frechet_photo_features"
    assert frechet_name(small(name="digits")) == "frechet_digits"
    assert [tuple(m.shape) for m in network.feature_maps(x)] == [(2, 4, 16, 12), (2, 6, 8, 6), (2, 8, 8, 6)]
    assert network.features(x).shape == (2, 5)
    assert torch.equal(network(x), network.features(x))
    assert network.factor == 2
    assert PhotoFeatures().factor == 4
    assert PhotoFeatures().num_parameters() == 160_600


def test_a_picture_is_measured_alone_as_in_a_batch():
    network = small()
    x = torch.rand(3, 3, 16, 16)
    assert torch.allclose(network.features(x)[1:2], network.features(x[1:2]), atol=1e-6)


def test_folder(tmp_path):
    network = small(in_channels=1)
    network.save_pretrained(tmp_path)
    again = PhotoFeatures.from_pretrained(tmp_path)
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(again.features(x), network.features(x))


def test_bad_input():
    with pytest.raises(ConfigError, match="two convolutions"):
        PhotoFeatures(channels=(8,))
    with pytest.raises(ConfigError, match="feature_dim"):
        PhotoFeatures(feature_dim=0)
    with pytest.raises(InputError, match=r"x of \(B, 3, H, W\) with sides of at least 4, got \(1, 3, 2, 8\)"):
        small().features(torch.zeros(1, 3, 2, 8))
    with pytest.raises(InputError, match=r"got \(1, 1, 8, 8\)"):
        small().features(torch.zeros(1, 1, 8, 8))
