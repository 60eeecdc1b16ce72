"""Fréchet distance against closed forms, scipy and torchmetrics."""

import numpy as np
import pytest
import torch

from latentia.metrics.frechet import Gaussian, frechet_distance, frechet_of


def covariance(dim: int, seed: int, rank: int | None = None) -> torch.Tensor:
    a = torch.randn(dim, rank or 2 * dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a @ a.T / a.shape[1]


def test_diagonal_gaussians():
    m1, m2 = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    s1, s2 = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([3.0, 0.5, 4.0])
    closed = float(((m1 - m2) ** 2 + (s1 - s2) ** 2).sum())
    assert frechet_distance(m1, torch.diag(s1**2), m2, torch.diag(s2**2)) == pytest.approx(closed, abs=1e-12)


def test_one_dimension():
    one = torch.ones(1)
    assert frechet_distance(one, 4 * torch.eye(1), 3 * one, 25 * torch.eye(1)) == pytest.approx(4 + 9, abs=1e-12)


def test_scaled_covariance():
    c, zero = covariance(16, 0), torch.zeros(16)
    assert frechet_distance(zero, c, zero, 9 * c) == pytest.approx(4 * float(c.trace()), rel=1e-12)


def test_equal_gaussians_are_at_zero():
    c, mean = covariance(32, 1), torch.ones(32)
    assert frechet_distance(mean, c, mean, c) == pytest.approx(0, abs=1e-10)


def test_symmetric_and_invariant_under_rotation():
    c1, c2 = covariance(12, 2), covariance(12, 3)
    m1, m2 = torch.randn(2, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    q, _ = torch.linalg.qr(covariance(12, 5))
    d = frechet_distance(m1, c1, m2, c2)
    assert frechet_distance(m2, c2, m1, c1) == pytest.approx(d, rel=1e-10)
    assert frechet_distance(q @ m1, q @ c1 @ q.T, q @ m2, q @ c2 @ q.T) == pytest.approx(d, rel=1e-10)


@pytest.mark.parametrize("dim", [2, 17, 64])
def test_scipy_square_root(dim):
    linalg = pytest.importorskip("scipy.linalg")
    c1, c2 = covariance(dim, dim), covariance(dim, dim + 1)
    m1, m2 = torch.zeros(dim, dtype=torch.float64), torch.linspace(0, 1, dim, dtype=torch.float64)
    root = linalg.sqrtm((c1 @ c2).numpy()).real
    expected = float((m1 - m2).square().sum() + c1.trace() + c2.trace()) - 2 * np.trace(root)
    assert frechet_distance(m1, c1, m2, c2) == pytest.approx(expected, abs=1e-6)


def test_singular_covariances():
    """Two projections of rank 2 and 3 that share one axis: tr √(C₁C₂) counts that axis alone."""
    zero = torch.zeros(5)
    c1, c2 = torch.diag(torch.tensor([1.0, 1, 0, 0, 0])), torch.diag(torch.tensor([0.0, 4, 4, 4, 0]))
    assert frechet_distance(zero, c1, zero, c2) == pytest.approx(2 + 12 - 2 * 2, abs=1e-12)


def test_rank_deficient_sample_is_finite():
    few = Gaussian.fit(torch.randn(10, 40, generator=torch.Generator().manual_seed(6)))
    assert frechet_distance(few.mean, few.covariance, few.mean, few.covariance) == pytest.approx(0, abs=1e-5)


def test_eps_is_added_to_both_diagonals():
    zero, c1, c2 = torch.zeros(4), torch.zeros(4, 4), torch.eye(4)
    expected = 4 * (1.01**0.5 - 0.1) ** 2
    assert frechet_distance(zero, c1, zero, c2, eps=0.01) == pytest.approx(expected, rel=1e-12)


def test_moments_are_numpys():
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(7))
    fitted = Gaussian.fit(x)
    assert torch.allclose(fitted.covariance, torch.from_numpy(np.cov(x.double().numpy(), rowvar=False)), atol=1e-12)
    assert torch.allclose(fitted.mean, x.double().mean(0), atol=1e-12)


def test_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return x.flatten(1).float() / 255

    g = torch.Generator().manual_seed(8)
    real = torch.randint(0, 256, (80, 3, 2, 2), generator=g, dtype=torch.uint8)
    fake = torch.randint(0, 200, (60, 3, 2, 2), generator=g, dtype=torch.uint8)
    peer = fid.FrechetInceptionDistance(feature=Flat(), input_img_size=(3, 2, 2))
    peer.set_dtype(torch.float64)
    peer.update(real, real=True)
    peer.update(fake, real=False)
    ours = frechet_of("frechet_flat", real.flatten(1) / 255, fake.flatten(1) / 255, eps=0.0)
    assert ours.value == pytest.approx(float(peer.compute()), rel=1e-5)
