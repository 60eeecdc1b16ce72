"""Numbers that callers and config files give, checked before any work: whole ones, and real ones within bounds."""

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from operator import index
from typing import Any, SupportsIndex, cast

from latentia.errors import ConfigError, InputError

ErrorClass = type[InputError] | type[ConfigError]


def check_count(name: str, value: object, least: int = 1, error: ErrorClass = InputError) -> int:
    """`value` as a plain integer of at least `least`; raises `error` for 0, -1, 2.5, True, '3'."""
    try:
        count = None if isinstance(value, bool) else index(cast(SupportsIndex, value))
    except TypeError:
        count = None
    if count is None or count < least:
        raise error(f"{name} must be an integer of at least {least}, got {value!r}")
    return count


def check_counts(config: Mapping[str, Any], names: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Raise `ConfigError` unless the entries hold integers of at least 1, or sequences of them; `optional` may be None.

    For the sizes of a network, which come from a file as often as from a caller.
    """
    required = list(names)
    for name in (*required, *optional):
        value = config[name]
        if value is None and name not in required:
            continue
        for entry in value if isinstance(value, tuple) else (value,):
            check_count(name, entry, error=ConfigError)


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    advice: str = "",
    *,
    open_low: bool = False,
) -> float:
    """`value` as a float, finite and between `low` and `high` (`open_low`: above `low`); `InputError` otherwise."""
    number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
        raise InputError(
            f"{name} must be a number {_range(low, high, open_low)}, got {value!r}"
            + (f"; try {advice}" if advice else "")
        )
    return number


def _range(low: float, high: float, open_low: bool) -> str:
    least = f"{'above' if open_low else 'at least'} {low:g}"
    if not math.isfinite(high):
        return f"finite and {least}" if math.isfinite(low) else "that is finite"
    return f"{least} and at most {high:g}" if open_low else f"between {low:g} and {high:g}"
