import pytest
import torch

from latentia.methods.flowmo.likelihood import bits_per_dimension, log_likelihood


@pytest.mark.parametrize("prediction", ["flow_prediction", "sample", "preconditioned"])
def test_a_codec_says_how_likely_a_picture_is(tiny, prediction):
    """Estimates agree with the exact divergence."""
    model = tiny(prediction_type=prediction).eval()
    x = torch.rand(2, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        code = model.flagged(model.values(model.to_latents(x)))

    def flow(x_t, t):
        return model.velocity(x_t, t, code)

    exact, noise = log_likelihood(flow, x, steps=3, probes=None, start=0.05)
    assert exact.shape == (2,)
    assert noise.shape == x.shape
    assert bool(torch.isfinite(exact).all())
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    estimated, same = log_likelihood(flow, x, steps=3, probes=60, generator=generators, start=0.05)
    torch.testing.assert_close(same, noise)
    assert float((estimated - exact).abs().max()) < 0.2 * float(exact.abs().max())
    assert bits_per_dimension(exact, 64).shape == (2,)
