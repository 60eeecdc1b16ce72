from dataclasses import dataclass

import pytest

from latentia.core.outputs import Output


@dataclass(slots=True)
class Out(Output):
    sample: int
    extra: int | None = None
    last: int | None = None


def test_every_view_gives_the_same_values():
    out = Out(1, last=3)
    assert (out.sample, out["sample"], out[0]) == (1, 1, 1)
    assert out.to_tuple() == (1, 3)
    assert out[1] == out[-1] == 3
    assert out[:2] == (1, 3)
    first, last = out
    assert (first, last, len(out)) == (1, 3, 2)
    assert out["extra"] is None
    assert Out(1, 2).to_tuple() == (1, 2)


def test_unknown_names_and_positions_are_errors():
    with pytest.raises(KeyError, match="Out has no 'to_tuple'; it has: sample, extra, last"):
        Out(1)["to_tuple"]
    with pytest.raises(IndexError):
        Out(1)[1]
    with pytest.raises(AttributeError):
        Out(1).smaple = 3
