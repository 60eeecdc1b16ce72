import math

import numpy as np
import pytest
import torch

from latentia.core.arguments import check_count, check_counts, check_number
from latentia.errors import ConfigError, InputError


@pytest.mark.parametrize("whole", [3, np.int64(3), torch.tensor(3)], ids=str)
def test_whole_numbers_of_any_library_become_pythons(whole):
    assert type(check_count("n", whole)) is int
    assert check_count("n", whole) == 3


@pytest.mark.parametrize("bad", [0, -1, 2.5, 3.0, True, "3", None, [3], math.nan], ids=str)
def test_what_is_no_count(bad):
    with pytest.raises(InputError, match="steps must be an integer of at least 1, got "):
        check_count("steps", bad)
    assert check_count("steps", 0, least=0) == 0


def test_sizes_of_a_network():
    config = {"width": (8, 16), "layers": 2, "head": None}
    check_counts(config, ("width", "layers"), ("head",))
    for name, bad in (("width", (8, 0)), ("width", (8.0,)), ("layers", None), ("head", 0)):
        with pytest.raises(ConfigError, match=f"{name} must be an integer of at least 1"):
            check_counts({**config, name: bad}, ("width", "layers"), ("head",))


@pytest.mark.parametrize(
    ("bounds", "good", "bad", "words"),
    [
        ({}, (-3, 2.5), (math.inf, math.nan, "1", True, None), "that is finite"),
        ({"low": 0}, (0, 7), (-1e-9, math.inf), "finite and at least 0"),
        ({"low": 0, "open_low": True}, (1e-9,), (0, -1), "finite and above 0"),
        ({"low": 0, "high": 1}, (0, 0.5, 1), (-0.1, 1.1), "between 0 and 1"),
        ({"low": 0, "high": 1, "open_low": True}, (0.5, 1), (0, 2), "above 0 and at most 1"),
    ],
)
def test_numbers_in_a_range(bounds, good, bad, words):
    for number in good:
        assert check_number("scale", number, **bounds) == float(number)
    for number in bad:
        with pytest.raises(InputError, match=f"scale must be a number {words}, got {number!r}$"):
            check_number("scale", number, **bounds)
    with pytest.raises(InputError, match="got 'x'; try 1"):
        check_number("scale", "x", advice="1", **bounds)
