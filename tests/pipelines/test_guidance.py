"""Guidance in closed form: lineage T8 (equal-covariance Gaussians) and T24 (rescale)."""

import numpy as np
import pytest
import torch

from latentia.errors import InputError
from latentia.pipelines.guidance import (
    check_interval,
    check_rescale,
    check_scale,
    guide,
    is_active,
    predict_guided,
    rescale_to,
)


def pair(shape=(3, 2, 5, 5)):
    g = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=g), 2 * torch.randn(shape, generator=g) + 1


def test_formula():
    uncond, cond = pair()
    assert torch.allclose(guide(uncond, cond, 3.5), uncond + 3.5 * (cond - uncond), atol=1e-5)
    assert torch.equal(guide(uncond, cond, 1), cond)


def test_full_rescale_gives_each_sample_the_conditional_spread():
    uncond, cond = pair()
    guided = guide(uncond, cond, 7.5)
    axes = (1, 2, 3)
    assert torch.allclose(rescale_to(guided, cond, 1.0).std(axes), cond.std(axes), rtol=1e-5)
    assert torch.allclose(rescale_to(guided, cond, 0.0), guided)
    half = rescale_to(guided, cond, 0.5)
    assert torch.allclose(half, (guided + rescale_to(guided, cond, 1.0)) / 2, atol=1e-5)


def test_rescale_matches_the_peer():
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    uncond, cond = pair()
    guided = guide(uncond, cond, 7.5)
    assert torch.allclose(rescale_to(guided, cond, 0.7), rescale_noise_cfg(guided, cond, 0.7), atol=1e-6)


class Spy:
    def __init__(self, extra=0):
        self.calls, self.extra = [], extra

    def __call__(self, z, t, *, y):
        self.calls.append((tuple(z.shape), y.tolist()))
        out = z * y.view(-1, 1, 1, 1)
        return torch.cat([out, out[:, : self.extra] + 100], dim=1) if self.extra else out


def test_one_forward_with_uncond_first():
    model, z = Spy(), torch.ones(2, 1, 1, 1)
    y, null = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 1.0])
    out = predict_guided(model, z, torch.tensor(5), {"y": y}, {"y": null}, 4.0)
    assert model.calls == [((4, 1, 1, 1), [1, 1, 2, 3])]
    assert out.flatten().tolist() == [1 + 4 * 1, 1 + 4 * 2]


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_no_guidance_runs_the_conditional_half_alone(scale):
    model = Spy()
    out = predict_guided(model, torch.ones(2, 1, 1, 1), 0, {"y": torch.tensor([2.0, 3.0])}, {}, scale)
    assert model.calls == [((2, 1, 1, 1), [2, 3])]
    assert out.flatten().tolist() == [2, 3]


def test_learned_variance_is_not_guided():
    model = Spy(extra=1)
    y, null = {"y": torch.tensor([2.0])}, {"y": torch.tensor([1.0])}
    out = predict_guided(model, torch.ones(1, 1, 1, 1), 0, y, null, 4.0, rescale=0.0)
    assert out.flatten().tolist() == [5, 102]


def test_guided_score_of_gaussians_is_the_score_of_the_shifted_gaussian():
    """T8: cond N(m, s²), uncond N(0, s²): ε guided at g is exactly the score of N(g·m, s²)."""
    m, s, g, x = 1.3, 0.6, 3.0, torch.linspace(-3, 3, 7, dtype=torch.float64)
    alpha = torch.tensor(0.7, dtype=torch.float64)
    sigma = (1 - alpha**2).sqrt()

    def eps(mean):
        return sigma * (x - alpha * mean) / (alpha**2 * s**2 + sigma**2)

    assert torch.allclose(guide(eps(0.0), eps(m), g), eps(g * m), atol=1e-12)


def test_interval_position_runs_from_noise_to_data():
    assert is_active(999, 1000, (0, 0.1))
    assert not is_active(500, 1000, (0, 0.1))
    assert is_active(500, 1000, (0.5, 0.5))
    assert is_active(0, 1000, (1, 1))
    assert all(is_active(t, 1000, (0, 1)) for t in (1000.0, 999, 3.5, 0))


@pytest.mark.parametrize("scale", [-1, float("inf"), float("nan"), "7", None, True, 1j])
def test_bad_scale(scale):
    with pytest.raises(InputError, match="guidance_scale must be a number"):
        check_scale(scale)


def test_numpy_numbers_are_numbers():
    assert check_scale(np.float32(2)) == 2.0
    assert check_rescale(np.float64(0.7)) == 0.7


@pytest.mark.parametrize("rescale", [-0.1, 1.1, None])
def test_bad_rescale(rescale):
    with pytest.raises(InputError, match="between 0 and 1"):
        check_rescale(rescale)


@pytest.mark.parametrize("interval", [0.5, (0.5,), (0.8, 0.2), (-1, 1), (0, 2), "01", None])
def test_bad_interval(interval):
    with pytest.raises(InputError, match="guidance_interval"):
        check_interval(interval)
