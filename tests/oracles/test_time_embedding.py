"""Published values of the two conventions of time embeddings."""

import pytest
import torch

from latentia.nn.embeddings import sinusoidal_embedding

ONE = torch.ones(1)


def test_stable_diffusion_at_one():
    emb = sinusoidal_embedding(ONE, 320, flip_sin_to_cos=True, freq_shift=0)[0]
    torch.testing.assert_close(emb[:4], torch.tensor([0.540302, 0.586504, 0.628439, 0.666423]), atol=1e-6, rtol=0)
    torch.testing.assert_close(emb[160:164], torch.tensor([0.841471, 0.809946, 0.777858, 0.745574]), atol=1e-6, rtol=0)
    assert emb[-1].item() == pytest.approx(1.0593e-4, rel=1e-4)


def test_ddpm_at_one():
    emb = sinusoidal_embedding(ONE, 128, flip_sin_to_cos=False, freq_shift=1)[0]
    torch.testing.assert_close(emb[:3], torch.tensor([0.841471, 0.760439, 0.679056]), atol=1e-6, rtol=0)
    torch.testing.assert_close(emb[64:67], torch.tensor([0.540302, 0.64941, 0.734086]), atol=1e-6, rtol=0)


def test_time_zero_tells_the_conventions_apart():
    zero = torch.zeros(1)
    ddpm = sinusoidal_embedding(zero, 8, flip_sin_to_cos=False, freq_shift=1)[0]
    ldm = sinusoidal_embedding(zero, 8, flip_sin_to_cos=True, freq_shift=0)[0]
    assert ddpm.tolist() == [0.0] * 4 + [1.0] * 4
    assert ldm.tolist() == [1.0] * 4 + [0.0] * 4


@pytest.mark.parametrize(("dim", "flip", "shift"), [(320, True, 0), (128, False, 1)])
def test_norm_is_the_same_at_every_time(dim, flip, shift):
    emb = sinusoidal_embedding(torch.tensor([0.0, 1.0, 333.3, 999.0]), dim, flip, shift)
    torch.testing.assert_close(emb.square().sum(1), torch.full((4,), dim / 2), rtol=1e-5, atol=0)
