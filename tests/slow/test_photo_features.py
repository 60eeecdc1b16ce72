"""The embedded ruler measures what it should: on a photograph it never saw, more damage is a greater distance."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from latentia.data.photos import photos
from latentia.metrics.features import extract
from latentia.metrics.frechet import frechet, real_floor
from latentia.recipes.photo_features import ruler


@pytest.mark.slow
def test_the_ruler_orders_blur_and_noise():
    network = ruler()
    x = photos("test", 32, stride=16, scales=(1.0, 0.5)).materialise().tensors["x"]
    floor = real_floor("frechet_photo_features", extract(network, x), 300).value
    soft = F.avg_pool2d(F.pad(x, (1,) * 4, mode="reflect"), 3, 1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    blurred = [frechet(network, x, torch.lerp(x, soft, share)).value for share in (0.3, 0.6, 1.0)]
    noisy = [frechet(network, x, (x + share * noise).clamp(-1, 1)).value for share in (0.02, 0.05, 0.1, 0.2)]
    assert all(a < b for a, b in itertools.pairwise([floor, *blurred]))  # measured: 0.07, 0.86, 3.0, 5.5
    assert all(a < b for a, b in itertools.pairwise([floor, *noisy]))  # measured: 0.07, 0.12, 4.0, 31, 80
    assert blurred[-1] > 20 * floor
