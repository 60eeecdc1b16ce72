import pytest
import torch
from torch import nn

from latentia.errors import InputError
from latentia.metrics.lpips import is_lpips, lpips, perceptual_distance


class Distance(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name
        self.sizes = []

    def forward(self, x, x_hat):
        self.sizes.append(len(x))
        return (x - x_hat).square().flatten(1).mean(1)


def test_the_number_bears_its_networks_name():
    x, y = torch.zeros(5, 1, 2, 2), torch.arange(5.0).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    network = Distance("lpips-alex")
    found = lpips(network, x, y, batch_size=2)
    assert (found.name, found.value, found.n_generated) == ("lpips-alex", 6.0, 5)
    assert network.sizes == [2, 2, 1]
    assert perceptual_distance(Distance("photo_features"), x, y).name == "photo_features_distance"
    assert is_lpips(network)


def test_only_lpips_is_called_lpips():
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(InputError, match="'photo_features' is not LPIPS"):
        lpips(Distance("photo_features"), x, x)


def test_pairs():
    x = torch.zeros(2, 1, 2, 2)
    for a, b in ((x, x[:1]), (x[:0], x[:0])):
        with pytest.raises(InputError, match="pairs of pictures"):
            lpips(Distance("lpips-vgg"), a, b)
    with pytest.raises(InputError, match="batch_size"):
        lpips(Distance("lpips-vgg"), x, x, batch_size=0)
