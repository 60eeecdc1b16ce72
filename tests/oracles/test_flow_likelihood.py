"""The flow's log-likelihood against a Gaussian's, for which everything is known.

x ~ N(m, s²) an element and x_t = (1 − t)·x + t·z give E[z − x | x_t] = (t − (1 − t)·s²)/var · (x_t − (1 − t)·m) − m
with var = (1 − t)²·s² + t².
"""

import math

import pytest
import torch

from latentia.errors import InputError
from latentia.methods.flowmo.likelihood import bits_per_dimension, log_likelihood

MEAN, STD = 0.3, 0.4


def flow(x, t):
    t = t.view(-1, *[1] * (x.ndim - 1))
    variance = (1 - t) ** 2 * STD**2 + t**2
    return (t - (1 - t) * STD**2) / variance * (x - (1 - t) * MEAN) - MEAN


def log_density(x):
    square = ((x - MEAN) / STD).square() + math.log(2 * math.pi * STD**2)
    return -0.5 * square.flatten(1).sum(1)


@pytest.mark.parametrize("probes", [None, 1])
def test_a_gaussian(probes):
    """Its Jacobian is a multiple of the identity, so even one random probe is exact."""
    torch.manual_seed(0)
    x = MEAN + STD * torch.randn(5, 1, 3, 3, dtype=torch.float64)
    found, noise = log_likelihood(flow, x, steps=100, probes=probes, start=0.0)
    torch.testing.assert_close(found, log_density(x), atol=2e-3, rtol=0)
    torch.testing.assert_close(noise, (x - MEAN) / STD, atol=1e-3, rtol=0)


def test_the_error_falls_with_the_square_of_the_steps():
    x = MEAN + STD * torch.randn(3, 4, dtype=torch.float64)
    errors = [
        float((log_likelihood(flow, x, n, None, start=0.0)[0] - log_density(x)).abs().max()) for n in (10, 20, 40)
    ]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.4)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.3)


def test_hutchinson_is_unbiased_where_the_jacobian_is_not_diagonal():
    """x = A·u of a correlated Gaussian: v is linear with a full matrix; 64 probes come near the exact divergence."""
    torch.manual_seed(0)
    a = torch.eye(4, dtype=torch.float64) + 0.3 * torch.randn(4, 4, dtype=torch.float64)
    covariance = a @ a.T

    def full(x, t):
        s = float(t[0])
        var = (1 - s) ** 2 * covariance + s**2 * torch.eye(4, dtype=torch.float64)
        return x @ torch.linalg.solve(var, s * torch.eye(4, dtype=torch.float64) - (1 - s) * covariance)

    x = torch.randn(6, 4, dtype=torch.float64) @ a.T
    expected = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), covariance).log_prob(x)
    exact, _ = log_likelihood(full, x, 100, None, start=0.0)
    torch.testing.assert_close(exact, expected, atol=2e-3, rtol=0)
    generators = [torch.Generator().manual_seed(i) for i in range(6)]
    near, _ = log_likelihood(full, x, 30, 64, generators, start=0.0)
    assert float((near - expected).abs().mean()) < 0.3


def test_bits_per_dimension_of_a_uniform_density():
    """Density ½ on [-1, 1] is 8-bit noise: log₂ 255 bits."""
    log_p = torch.tensor([10 * math.log(0.5)])
    assert float(bits_per_dimension(log_p, 10)) == pytest.approx(math.log2(255))


@pytest.mark.parametrize("given", [{"steps": 0}, {"probes": 0}, {"start": -0.1}, {"rho": 0}])
def test_bad_input(given):
    with pytest.raises(InputError):
        log_likelihood(flow, torch.zeros(1, 2), **given)
