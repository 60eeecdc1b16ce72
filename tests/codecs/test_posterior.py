import pytest
import torch

from latentia.codecs.posterior import DiagonalGaussianDistribution
from latentia.errors import InputError


def test_logvar_is_clamped():
    posterior = DiagonalGaussianDistribution(torch.tensor([0.0, 1.0, -99.0, 99.0]).view(1, 4, 1, 1))
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]
    torch.testing.assert_close(posterior.std.square(), posterior.var)


def test_samples_have_the_posteriors_moments():
    parameters = torch.tensor([1.0, -2.0, 0.5, -1.0]).view(1, 4, 1, 1).expand(40_000, 4, 1, 1)
    z = DiagonalGaussianDistribution(parameters).sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(z.mean(0).flatten(), torch.tensor([1.0, -2.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(z.var(0).flatten(), torch.tensor([0.5, -1.0]).exp(), atol=0.03, rtol=0)


def test_deterministic_has_no_spread():
    posterior = DiagonalGaussianDistribution(torch.randn(2, 4, 3, 3), deterministic=True)
    assert torch.equal(posterior.sample(), posterior.mode())
    assert posterior.kl().tolist() == posterior.nll(posterior.mean).tolist() == [0.0, 0.0]
    assert posterior.var.abs().max() == 0


def test_half_precision_does_not_overflow():
    parameters = torch.full((1, 2, 1, 1), 20.0, dtype=torch.float16)
    posterior = DiagonalGaussianDistribution(parameters)
    assert posterior.kl().dtype == torch.float32
    assert torch.isfinite(posterior.kl()).all()
    assert posterior.sample(torch.Generator().manual_seed(0)).dtype == torch.float16


@pytest.mark.parametrize("shape", [(4,), (1, 3, 2, 2)])
def test_odd_channels(shape):
    with pytest.raises(InputError, match="mean and logvar"):
        DiagonalGaussianDistribution(torch.zeros(shape))
