"""KL divergences of Gaussians in closed form (T11)."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from latentia.codecs.posterior import DiagonalGaussianDistribution


def gaussian(mean: float, std: float) -> DiagonalGaussianDistribution:
    values = torch.tensor([mean, 2 * math.log(std)], dtype=torch.double)
    return DiagonalGaussianDistribution(values.view(1, 2, 1, 1))


@pytest.mark.parametrize(("mean", "std", "nats"), [(0, 1, 0.0), (1, 1, 0.5), (0, 2, 0.806853), (-3, 0.5, 4.818147)])
def test_against_the_standard_normal(mean, std, nats):
    assert gaussian(mean, std).kl().item() == pytest.approx(nats, abs=1e-6)


def test_between_two_gaussians():
    p, q = gaussian(1.0, 0.5), gaussian(-0.5, 2.0)
    assert p.kl(p).item() == pytest.approx(0.0, abs=1e-12)
    forward = kl_divergence(Normal(1.0, 0.5), Normal(-0.5, 2.0)).item()
    backward = kl_divergence(Normal(-0.5, 2.0), Normal(1.0, 0.5)).item()
    assert p.kl(q).item() == pytest.approx(forward, rel=1e-6)
    assert q.kl(p).item() == pytest.approx(backward, rel=1e-6)
    assert forward != pytest.approx(backward)


def test_sum_over_elements_one_value_a_sample():
    parameters = torch.randn(3, 8, 2, 2, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    posterior = DiagonalGaussianDistribution(parameters)
    one_by_one = kl_divergence(Normal(posterior.mean, posterior.std), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(posterior.kl(), one_by_one)
    density = -Normal(posterior.mean, posterior.std).log_prob(torch.ones_like(posterior.mean))
    torch.testing.assert_close(posterior.nll(torch.ones_like(posterior.mean)), density.sum((1, 2, 3)))
    torch.testing.assert_close(posterior.nll(torch.ones_like(posterior.mean), dims=(1,)), density.sum(1))


def test_monte_carlo_agrees():
    p = DiagonalGaussianDistribution(torch.tensor([1.0, math.log(0.25)]).view(1, 2, 1, 1).expand(200_000, 2, 1, 1))
    z = p.sample(torch.Generator().manual_seed(0))
    standard = DiagonalGaussianDistribution(torch.zeros(200_000, 2, 1, 1))
    estimate = (standard.nll(z) - p.nll(z)).mean().item()
    assert estimate == pytest.approx(p.kl()[0].item(), abs=0.01)


def test_gradient_is_mean_and_half_of_variance_minus_one():
    parameters = torch.tensor([0.7, 0.4]).view(1, 2, 1, 1).requires_grad_()
    DiagonalGaussianDistribution(parameters).kl().sum().backward()
    torch.testing.assert_close(parameters.grad.flatten(), torch.tensor([0.7, 0.5 * (math.exp(0.4) - 1)]))
