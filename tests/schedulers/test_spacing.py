import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentia.errors import InputError, UnknownChoiceError
from latentia.schedulers.spacing import (
    SPACINGS,
    check_num_steps,
    chosen_respacing,
    exponential_sigmas,
    given_sigmas,
    given_timesteps,
    karras_sigmas,
    multistep_timesteps,
    power_sigmas,
    respaced_sigmas,
    sigmas_to_timesteps,
    spaced_timesteps,
)


@given(total=st.integers(1, 1200), share=st.floats(0, 1), spacing=st.sampled_from(SPACINGS), offset=st.integers(0, 5))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_timesteps_are_distinct_and_in_range(total, share, spacing, offset):
    num = max(1, round(share * total))
    for times in (
        spaced_timesteps(spacing, num, total, offset).round(),
        multistep_timesteps(spacing, num, total, total, offset),
    ):
        assert len(times) == num
        assert 0 <= times.min() <= times.max() <= total - 1
        assert (np.diff(times) < 0).all()


@given(last=st.integers(1, 1000), share=st.floats(0, 1), spacing=st.sampled_from(SPACINGS))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_clipped_schedules(last, share, spacing):
    num = max(1, round(share * last))
    times = multistep_timesteps(spacing, num, 1000, last)
    assert len(times) == num
    assert 0 <= times.min() <= times.max() <= last - 1
    assert (np.diff(times) < 0).all()


def test_too_many_steps_for_a_clipped_schedule():
    with pytest.raises(InputError, match="leaves only 700 timesteps"):
        multistep_timesteps("trailing", 701, 1000, 700)


def test_noise_levels():
    np.testing.assert_allclose(karras_sigmas(1.0, 128.0, 3, rho=7.0), [128, 1.5**7, 1])
    np.testing.assert_allclose(exponential_sigmas(1.0, 100.0, 3), [100, 10, 1])
    np.testing.assert_allclose(power_sigmas(4, 2.0), [1, 9 / 16, 4 / 16, 1 / 16])
    np.testing.assert_allclose(respaced_sigmas("beta", 0.0, 1.0, 3), [1, 0.5, 0], atol=1e-12)
    with pytest.raises(UnknownChoiceError, match="did you mean 'karras'"):
        respaced_sigmas("karas", 1, 2, 3)


def test_timesteps_of_noise_levels():
    table = np.exp(np.linspace(-3, 3, 7))
    np.testing.assert_allclose(sigmas_to_timesteps(table, table), np.arange(7), atol=1e-12)
    np.testing.assert_allclose(sigmas_to_timesteps(np.exp([0.5]), table), [3.5])
    np.testing.assert_allclose(sigmas_to_timesteps(np.array([0.0, 1e9]), table), [0, 6])


@pytest.mark.parametrize("bad", [0, -1, 11, 2.5, "3", None, True])
def test_step_counts(bad):
    with pytest.raises(InputError, match="whole number from 1 to 10"):
        check_num_steps(bad, 10)
    assert check_num_steps(np.int64(10), 10) == 10


@pytest.mark.parametrize(
    ("timesteps", "match"),
    [
        ([], "non-empty"),
        ([[3, 2]], "non-empty"),
        ([1, 2], "descend"),
        ([5, 5], "descend"),
        ([100, 1], "0 … 99"),
        ([5, -1], "0 … 99"),
    ],
)
def test_given_timesteps(timesteps, match):
    with pytest.raises(InputError, match=match):
        given_timesteps(timesteps, 100)


@pytest.mark.parametrize("sigmas", [[], [1.0, 2.0], [1.0, -0.1], [math.inf, 1.0], [3.0, 1.0], [float("nan"), 0.0]])
def test_given_sigmas(sigmas):
    with pytest.raises(InputError, match="sigmas must"):
        given_sigmas(sigmas, 2.0)


def test_one_respacing_at_a_time():
    assert chosen_respacing(karras=False, beta=None) is None
    assert chosen_respacing(karras=True, beta=None) == "karras"
    with pytest.raises(InputError, match="got karras, beta"):
        chosen_respacing(karras=True, beta=True)
