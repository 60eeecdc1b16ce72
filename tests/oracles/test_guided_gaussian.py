"""Lineage T8 through the whole loop: guidance at scale g samples N(g·m, s²), and outside its interval N(m, s²)."""

from types import SimpleNamespace

import pytest
import torch

from latentia import DDIMScheduler
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.guidance import predict_guided
from latentia.pipelines.loop import sample_loop

MEAN, STD = 0.8, 0.5


def sample(scale, rescale=0.0, interval=(0.0, 1.0), steps=200):
    """Exact ε of N(y·MEAN, STD²) for y in {0: null, 1: class}, 4,096 values as 8 samples of (1, 16, 32)."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="epsilon")
    scheduler.set_timesteps(steps)
    call = PipelineCall(
        SimpleNamespace(components={}),
        scheduler,
        guidance_scale=scale,
        guidance_rescale=rescale,
        guidance_interval=interval,
    )

    def model(z, t, y):
        alpha, sigma = scheduler.alpha_sigma(t, torch.float64)
        return sigma * (z - alpha * MEAN * y.view(-1, 1, 1, 1)) / (alpha**2 * STD**2 + sigma**2)

    def denoise(call, z, t):
        one = torch.ones(len(z), dtype=z.dtype)
        scale = call.current_scale
        return predict_guided(model, z, t, {"y": one}, {"y": 0 * one}, scale, call.guidance_rescale)

    noise = torch.randn(8, 1, 16, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = (noise - noise.mean()) / noise.std()
    return sample_loop(call, denoise, noise)


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_guidance_moves_the_mean_and_keeps_the_spread(scale):
    x = sample(scale)
    assert x.mean().item() == pytest.approx(scale * MEAN, abs=0.02 * scale)
    assert x.std().item() == pytest.approx(STD, rel=0.02)


def test_guidance_in_an_interval_stops_at_its_ends():
    none, whole = sample(3.0, interval=(1.0, 1.0)).mean(), sample(3.0).mean()
    early, late = sample(3.0, interval=(0.0, 0.5)).mean(), sample(3.0, interval=(0.5, 1.0)).mean()
    assert none.item() == pytest.approx(MEAN, abs=0.02)
    # the ODE is linear in the mean, so what two halves add makes up what the whole adds
    assert none < early < whole
    assert none < late < whole
    assert (early + late - none).item() == pytest.approx(whole.item(), abs=0.02)


def test_rescale_leaves_alone_what_guidance_did_not_spread():
    """Here guidance shifts every element equally, so ε̃ and ε_c have one spread and the ratio is 1 (T24)."""
    assert torch.allclose(sample(4.0, rescale=1.0), sample(4.0), atol=1e-9)
