import pytest
import torch

from latentia.errors import InputError
from latentia.methods.flowmo.sampler import Sampler, guided, sample_flow


def test_the_grid_of_the_release():
    """t_i = ((n − i + 1)/n)^4 for 25 steps, as the released code runs it."""
    sigmas = Sampler().scheduler().sigmas
    expected = torch.tensor(
        [1.0, 0.8493, 0.7164, 0.5997, 0.4979, 0.4096, 0.3336, 0.2687, 0.2138, 0.1678, 0.1296, 0.0983]
    )
    torch.testing.assert_close(sigmas[:12], expected, atol=6e-5, rtol=0)
    assert len(sigmas) == 26
    assert sigmas[-1] == 0
    assert int((sigmas[:-1] < 0.1).sum()) == 14


def test_six_of_twenty_five_steps_are_guided():
    sampler = Sampler()
    guided_at = [t for t in sampler.scheduler().sigmas[:-1].tolist() if sampler.is_guided(t)]
    assert len(guided_at) == 6
    assert guided_at[0] == pytest.approx(0.498, abs=1e-3)
    assert guided_at[-1] == pytest.approx(0.168, abs=1e-3)
    assert not Sampler(guidance_scale=1.0).is_guided(0.3)
    assert Sampler(guidance_interval=None).is_guided(0.99)


@pytest.mark.parametrize("rho", [1.0, 4.0])
def test_straight_paths_are_followed_exactly(rho):
    """v = z − x of a single picture: one straight line, whatever the steps."""
    x, z = torch.randn(2, 1, 4, 4)
    seen = []

    def velocity(x_t, t, code):
        seen.append((float(t[0]), len(x_t)))
        return (x_t - x) / t[:, None, None, None].clamp(min=1e-9)

    out = sample_flow(velocity, z[None], torch.ones(1, 2, 3), Sampler(7, rho, 1.5))
    torch.testing.assert_close(out, x[None], atol=1e-5, rtol=1e-5)
    assert len(seen) == 7
    assert all(n == 1 + (0.1453 <= t <= 0.5050) for t, n in seen)


def test_guidance_is_away_from_the_answer_without_code():
    def velocity(x_t, t, code):
        return code.mean((1, 2))[:, None, None, None].expand_as(x_t)

    x, code = torch.zeros(2, 1, 2, 2), torch.ones(2, 3, 4)
    out = guided(velocity, x, 0.3, code, Sampler(guidance_scale=1.5))
    torch.testing.assert_close(out, torch.full_like(x, 1.5))
    torch.testing.assert_close(guided(velocity, x, 0.9, code, Sampler(guidance_scale=1.5)), torch.ones_like(x))


@pytest.mark.parametrize(
    "given",
    [{"num_inference_steps": 0}, {"rho": 0}, {"guidance_scale": -1.0}, {"guidance_interval": (0.5, 0.2)},
     {"guidance_interval": (0.5,)}],
)  # fmt: skip
def test_bad_samplers(given):
    with pytest.raises(InputError):
        Sampler(**given)
