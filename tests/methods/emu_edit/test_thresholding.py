"""The rule of sequential edits: two closed forms, its options, and α from what a codec loses."""

import numpy as np
import pytest
import torch

from latentia.errors import InputError, UnknownChoiceError
from latentia.methods.emu_edit.thresholding import FILTERS, REDUCTIONS, Thresholding, lowpass_kernel
from tiny_editor import vae


def noise(seed, scale=1.0, size=24):
    return torch.rand(2, 3, size, size + 5, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_identity_below_alpha_and_new_at_zero(filter, reduction):
    before = noise(0) * 2 - 1
    after = before + noise(1, 0.02)  # d ≤ 0.01 a channel, 0.03 in the sum
    rule = Thresholding(0.0301, filter, 1.5, reduction)
    assert torch.equal(rule(before, after), before)
    assert torch.equal(Thresholding(0.0, filter, 1.5, reduction)(before, after), after)


def test_distance_by_hand():
    before, after = torch.zeros(1, 3, 1, 3), torch.zeros(1, 3, 1, 3)
    after[0, :, 0, 1] = torch.tensor([0.2, -0.4, 0.6])  # in [-1, 1]: 0.1, 0.2 and 0.3 of [0, 1]
    found = {name: Thresholding(filter="none", reduction=name).distance(before, after) for name in REDUCTIONS}
    for name, value in {"mean": 0.2, "sum": 0.6, "max": 0.3}.items():
        torch.testing.assert_close(found[name], torch.tensor([[[[0, value, 0]]]]))
    box = Thresholding(filter="box", sigma=(8 / 12) ** 0.5).distance(before, after)  # three weights
    torch.testing.assert_close(box, torch.full((1, 1, 1, 3), 0.2 / 3))


def test_a_choice_and_no_blend_pixel_by_pixel():
    before, after = noise(2) * 2 - 1, noise(3) * 2 - 1
    made = Thresholding(0.33, sigma=1.0)(before, after)
    kept, new = (made == before).all(1), (made == after).all(1)
    assert bool((kept ^ new).all())
    assert 0.2 < kept.float().mean() < 0.8


def test_lowpass_spares_a_lone_pixel_and_lets_an_object_through():
    before = torch.zeros(1, 3, 64, 64)
    after = before.clone()
    after[:, :, 5, 5] = 0.2
    after[:, :, 30:50, 30:50] = 0.2
    made = Thresholding(0.05, sigma=2.0)(before, after)
    assert made[0, 0, 5, 5] == 0
    assert made[0, 0, 32:48, 32:48].min() == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["gaussian", "box"])
@pytest.mark.parametrize("sigma", [0.3, 1.0, 4.0])
def test_kernels_sum_to_one_and_have_their_deviation(name, sigma):
    kernel = torch.tensor(lowpass_kernel(name, sigma))
    at = torch.arange(len(kernel)) - len(kernel) // 2
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
    assert float((kernel * at**2).sum()) ** 0.5 == pytest.approx(sigma, abs=0.3)


def test_default_deviation_goes_with_the_size():
    spot = torch.zeros(1, 3, 512, 512)
    spot[..., 256, 256] = 1
    d = Thresholding().distance(torch.zeros_like(spot), spot)
    assert float(d.max()) == pytest.approx(0.5 / (2 * torch.pi * 4), rel=0.01)  # a Gaussian's top, σ = 2


def test_arrays_are_the_tensors():
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, 256, (9, 7, 3), dtype=np.uint8) for _ in range(2))
    rule = Thresholding(0.3, sigma=1.0)
    made = rule.arrays(before, after)
    tensors = (torch.from_numpy(a).permute(2, 0, 1)[None].float() / 127.5 - 1 for a in (before, after))
    assert np.array_equal((made == before).all(-1), rule.keeps(*tensors)[0, 0].numpy() | (before == after).all(-1))
    assert made.dtype == np.uint8


@torch.no_grad()
def test_calibrated_against_a_codec():
    codec, x = vae(), noise(4, 2.0, 32)[..., :32] - 1
    rule = Thresholding(sigma=1.0)
    torch.manual_seed(0)
    again = codec.from_latents(codec.to_latents(x)).clamp(-1, 1)
    for quantile in (0.5, 0.99, 1.0):
        fitted = rule.calibrated(x, again=again, quantile=quantile)
        assert float(fitted.keeps(x, again).float().mean()) == pytest.approx(quantile, abs=2e-3)
        torch.manual_seed(0)
        assert rule.calibrated(x, codec, quantile=quantile) == fitted
    assert torch.equal(rule.calibrated(x, again=again, quantile=1.0)(x, again), x)
    assert rule.calibrated(x, again=x).alpha < 1e-12


def test_bad_values_are_refused():
    for wrong in ({"alpha": -1.0}, {"alpha": float("nan")}, {"sigma": -1.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Thresholding(**wrong)
    with pytest.raises(UnknownChoiceError, match="did you mean 'gaussian'"):
        Thresholding(filter="gausian")
    with pytest.raises(UnknownChoiceError, match="mean, sum"):
        Thresholding(reduction="l2")
    with pytest.raises(InputError, match="one shape"):
        Thresholding()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5))
    with pytest.raises(InputError, match="either codec= or again="):
        Thresholding().calibrated(torch.zeros(1, 3, 4, 4))
