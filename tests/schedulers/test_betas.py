import math

import pytest
import torch

from latentia.errors import InputError, UnknownChoiceError
from latentia.schedulers.betas import BETA_SCHEDULES, make_betas, rescale_zero_terminal_snr, signal_level


def test_linear_and_scaled_linear():
    assert make_betas("linear", 3, 0.1, 0.3).tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert make_betas("scaled_linear", 3, 0.01, 0.09).tolist() == pytest.approx([0.01, 0.04, 0.09])


def test_cosine_follows_its_signal_curve():
    level = signal_level(make_betas("squaredcos_cap_v2", 1000, 0, 0))
    u = torch.arange(1, 999, dtype=torch.float64) / 1000

    def curve(u):
        return torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = curve(u) / curve(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(level[:998], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("num", [2, 10, 1000])
def test_every_schedule_is_usable(schedule, num):
    betas = make_betas(schedule, num, 1e-4, 0.02)
    assert betas.shape == (num,)
    assert betas.dtype == torch.float64
    assert ((betas > 0) & (betas < 1)).all()
    level = signal_level(betas)
    assert (level[1:] < level[:-1]).all()


def test_zero_terminal_snr_keeps_the_first_level():
    betas = make_betas("linear", 50, 1e-3, 0.1)
    rescaled = rescale_zero_terminal_snr(betas)
    assert float(signal_level(rescaled)[-1]) == 0
    assert float(rescaled[0]) == pytest.approx(float(betas[0]), rel=1e-12)


def test_trained_betas():
    assert make_betas("linear", 3, 0, 0, [0.1, 0.2, 0.3]).tolist() == pytest.approx([0.1, 0.2, 0.3])
    with pytest.raises(InputError, match="has 3 entries but num_train_timesteps is 1000: pass num_train_timesteps=3"):
        make_betas("linear", 1000, 0, 0, [0.1, 0.2, 0.3])


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.02), (-0.1, 0.02), (1e-4, 1.5), (float("nan"), 0.1)])
def test_betas_outside_their_range(start, end):
    with pytest.raises(InputError, match=r"every beta must lie in \(0, 1\]|beta_start must be a number that is finite"):
        make_betas("linear", 10, start, end)


def test_other_bad_input():
    with pytest.raises(UnknownChoiceError, match="did you mean 'scaled_linear'"):
        make_betas("scaledlinear", 10, 1e-4, 0.02)
    with pytest.raises(InputError, match="at least 1"):
        make_betas("linear", 0, 1e-4, 0.02)
    with pytest.raises(InputError, match="at least 2"):
        make_betas("linear", 1, 1e-4, 0.02, zero_snr=True)
