import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from latentia.losses.kl import kl_gaussians, kl_standard_normal


@pytest.mark.parametrize(("mean", "std", "expected"), [(0, 1, 0.0), (1, 1, 0.5), (0, 2, 0.806853)])
def test_closed_values(mean, std, expected):
    kl = kl_standard_normal(torch.tensor([[float(mean)]]), torch.tensor([[2 * math.log(std)]]))
    assert float(kl) == pytest.approx(expected, abs=1e-6)


def test_agrees_with_torch_distributions():
    generator = torch.Generator().manual_seed(0)
    m1, v1, m2, v2 = torch.randn(4, 3, 2, 5, 5, generator=generator, dtype=torch.float64)
    p, q = Normal(m1, (v1 / 2).exp()), Normal(m2, (v2 / 2).exp())
    assert torch.allclose(kl_gaussians(m1, v1, m2, v2), kl_divergence(p, q).flatten(1).sum(1), rtol=1e-12)
    zero = torch.zeros_like(m1)
    assert torch.allclose(kl_standard_normal(m1, v1), kl_gaussians(m1, v1, zero, zero), rtol=1e-12)
    assert kl_gaussians(m1, v1, m1, v1).abs().max() < 1e-12
    assert not torch.allclose(kl_gaussians(m1, v1, m2, v2), kl_gaussians(m2, v2, m1, v1))
