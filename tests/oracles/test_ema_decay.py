"""The decay sequences of lineage T25 and peers §2.6, and the average they give in closed form."""

import pytest
import torch

from latentia.training.ema import EMAModel

WARM = {"use_ema_warmup": True, "inv_gamma": 1.0, "power": 2 / 3}


@pytest.mark.parametrize(
    ("step", "expected"), [(1, 0), (2, 2 / 11), (3, 3 / 12), (10, 10 / 19), (100, 0.917431), (1000, 0.991080)]
)
def test_default_sequence_is_ldms_one_step_late(step, expected):
    assert EMAModel([]).get_decay(step) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(1, 0), (2, 0.370039), (3, 0.519250), (10, 0.784557), (101, 0.953881), (1001, 0.990007), (31_624, 0.999)],
)
def test_warmup_sequence(step, expected):
    assert EMAModel([], **WARM).get_decay(step) == pytest.approx(expected, abs=1e-5)


def test_bounds_and_delay():
    ema = EMAModel([], decay=0.9, min_decay=0.5, update_after_step=10)
    assert [ema.get_decay(s) for s in (1, 10, 11)] == [0, 0, 0]
    assert ema.get_decay(12) == 0.5  # 2/11 raised to min_decay
    assert ema.get_decay(10_000) == 0.9


def test_average_is_the_weighted_sum_of_the_past():
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    ema = EMAModel([weight], decay=0.7)
    past = torch.arange(1.0, 13.0, dtype=torch.float64)
    for value in past:
        weight.data.fill_(value)
        ema.step([weight])
    decays = [ema.get_decay(s) for s in range(1, 13)]
    expected = 0.0
    for value, decay in zip(past.tolist(), decays):
        expected = decay * expected + (1 - decay) * value
    assert ema.shadow_params[0].item() == pytest.approx(expected, rel=1e-14)
