import math

import numpy as np
import pytest
import torch

from latentia.errors import InputError
from latentia.metrics.psnr import psnr, psnr_pooled
from latentia.metrics.ssim import ssim


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 24, 31, generator=g) * 2 - 1
    return x, (x + 0.3 * torch.randn(x.shape, generator=g)).clamp(-1, 1)


def test_psnr_of_a_known_error():
    x = torch.zeros(2, 1, 4, 4)
    y = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.02)])
    assert psnr(x, y).tolist() == pytest.approx([20.0, 40.0], abs=1e-5)
    assert psnr_pooled(x, y) == pytest.approx(10 * math.log10(4 / ((0.04 + 0.0004) / 2)), abs=1e-5)
    assert psnr(x, x).tolist() == [math.inf, math.inf]
    assert psnr(x, y, data_range=1.0)[0].item() == pytest.approx(20 - 20 * math.log10(2), abs=1e-5)


def test_psnr_equals_scikit_image_and_torchmetrics(pair):
    from skimage.metrics import peak_signal_noise_ratio

    x, y = pair
    peers = [peak_signal_noise_ratio(a.double().numpy(), b.double().numpy(), data_range=2) for a, b in zip(x, y)]
    assert psnr(x, y).tolist() == pytest.approx(peers, abs=1e-9)
    peer = pytest.importorskip("torchmetrics.functional.image").peak_signal_noise_ratio
    assert psnr_pooled(x, y) == pytest.approx(float(peer(y, x, data_range=2.0)), abs=1e-4)


def test_ssim_equals_scikit_image(pair):
    from skimage.metrics import structural_similarity

    x, y = pair
    peers = [
        structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            channel_axis=0,
            data_range=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in zip(x, y)
    ]
    assert ssim(x, y).tolist() == pytest.approx(peers, abs=1e-9)


def test_ssim_equals_the_interior_of_torchmetrics(pair):
    """Torchmetrics also averages over positions where the window hangs over the mirrored border; we do not."""
    peer = pytest.importorskip("torchmetrics.functional.image").structural_similarity_index_measure
    x, y = pair
    _, full = peer(y.double(), x.double(), data_range=2.0, reduction="none", return_full_image=True)
    interior = full[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert ssim(x, y).tolist() == pytest.approx(interior.tolist(), abs=1e-9)


def test_ssim_ends(pair):
    x, _ = pair
    assert ssim(x, x).tolist() == pytest.approx([1.0] * 3, abs=1e-12)
    flat = torch.zeros(1, 1, 11, 11)
    assert ssim(flat - 0.5, flat + 0.5).item() == pytest.approx((-0.5 + 4e-4) / (0.5 + 4e-4), abs=1e-6)


def test_a_batch_is_its_images(pair):
    x, y = pair
    assert np.allclose(ssim(x, y), [ssim(a[None], b[None]).item() for a, b in zip(x, y)], atol=1e-12)


def test_bad_input():
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(InputError, match="at least 11×11 pixels"):
        ssim(x, x)
    with pytest.raises(InputError, match="two tensors"):
        psnr(x, torch.zeros(1, 1, 8, 9))
    with pytest.raises(InputError, match="two tensors"):
        psnr(x[0], x[0])
    with pytest.raises(InputError, match="data_range must be positive"):
        psnr(x, x, data_range=0)
