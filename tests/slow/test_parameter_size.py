"""A step on a million parameters fits into 2 GB by tokens."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def measure(monkeypatch):
    if not sys.platform.startswith("linux"):
        pytest.skip("peak memory is read from /proc")
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.parameter_size import measure

    return measure


def test_a_million_parameters_by_tokens_stay_under_2_gb(measure):
    found = measure("tokens", 1_000_000)
    assert found["peak"] < 2e9
    assert found["weights"] < 1_500_000


def test_tokens_grow_slower_than_parameters(measure):
    small, large = (measure("tokens", size)["peak"] for size in (100_000, 1_000_000))
    assert large < 10 * small
