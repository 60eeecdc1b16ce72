"""Which of the T training timesteps, or which noise levels κ = σ/α, an inference run of n steps visits.

All lists descend, from noise to data. Timesteps count from 0 (almost clean) to T − 1.
"""

import math
import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex, cast

import numpy as np
import numpy.typing as npt

from latentia.errors import InputError, MissingDependency, check_choice, unknown_choice

Array = npt.NDArray[Any]

SPACINGS = ("leading", "linspace", "trailing")


def check_num_steps(num: object, total: int) -> int:
    """`num` as an int; `InputError` unless it is a whole number from 1 to `total`."""
    try:
        steps = operator.index(cast(SupportsIndex, num))
    except TypeError:
        steps = 0
    if isinstance(num, bool) or not 1 <= steps <= total:
        raise InputError(f"num_inference_steps must be a whole number from 1 to {total}, got {num!r}")
    return steps


def spaced_timesteps(spacing: str, num: int, total: int, offset: int = 0, *, compat: bool = False) -> Array:
    """`num` descending timesteps in [0, `total` − 1] (Lin et al., 2023, table 2).

    - `leading`: k·⌊T/n⌋ + offset. The offset shrinks where it would leave the range.
    - `linspace`: n points from T − 1 to 0, not rounded; one step starts at T − 1.
    - `trailing`: round(T − k·T/n) − 1, starting at T − 1.

    With `compat` the lists of Diffusers 0.42.1: one linspace step starts at 0, the leading offset may overflow and
    some trailing lists have an (n+1)-th entry, −1.
    """
    check_choice("timestep_spacing", spacing, SPACINGS)
    if spacing == "linspace":
        if num == 1 and not compat:
            return np.array([total - 1.0])
        return np.linspace(0, total - 1, num)[::-1].copy()
    if spacing == "leading":
        stride = total // num
        room = total - 1 - (num - 1) * stride
        return np.arange(num, dtype=np.float64)[::-1] * stride + (offset if compat else min(offset, room))
    if compat:
        return np.round(np.arange(total, 0, -total / num)) - 1
    return np.round(total - np.arange(num) * (total / num)) - 1


def multistep_timesteps(
    spacing: str, num: int, total: int, last: int, offset: int = 0, *, compat: bool = False
) -> Array:
    """`num` descending timesteps below `last` ≤ `total` for a solver that ends beyond its last timestep.

    As `spaced_timesteps`, but linspace and leading space n + 1 points and leave the lowest out. `last` is T, or less
    where the noisiest timesteps are cut off (`lambda_min_clipped`); a trailing stride of T/n that would then run
    below 0 becomes `last`/n. Raises `InputError` when `num` > `last`.
    """
    check_choice("timestep_spacing", spacing, SPACINGS)
    if compat:
        return _multistep_timesteps_compat(spacing, num, total, last, offset)
    if num > last:
        raise InputError(
            f"num_inference_steps is {num} but lambda_min_clipped leaves only {last} timesteps: take fewer steps"
        )
    if spacing == "trailing":
        stride = total / num if last - (num - 1) * (total / num) >= 1 else last / num
        return np.round(last - np.arange(num) * stride) - 1
    if num == last:  # no room to leave one out
        return np.arange(num, dtype=np.float64)[::-1].copy()
    if spacing == "linspace":
        return np.linspace(0, last - 1, num + 1).round()[:0:-1].copy()
    stride = last // (num + 1)
    return np.arange(num, 0, -1) * float(stride) + min(offset, total - 1 - num * stride)


def _multistep_timesteps_compat(spacing: str, num: int, total: int, last: int, offset: int) -> Array:
    if spacing == "trailing":
        return np.arange(last, 0, -total / num).round() - 1
    if spacing == "linspace":
        return np.linspace(0, last - 1, num + 1).round()[:0:-1].copy()
    return np.arange(num, 0, -1) * float(last // (num + 1)) + offset


def karras_sigmas(low: float, high: float, num: int, rho: float = 7.0) -> Array:
    """κ_i = (κ_max^{1/ρ} + i/(n−1) (κ_min^{1/ρ} − κ_max^{1/ρ}))^ρ (Karras et al., 2022, eq. 5)."""
    ramp = np.linspace(0, 1, num)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


def exponential_sigmas(low: float, high: float, num: int) -> Array:
    """κ uniform in log κ, that is in λ = log(α/σ) (Lu et al., 2022)."""
    return np.exp(np.linspace(math.log(high), math.log(low), num))


def beta_sigmas(low: float, high: float, num: int, alpha: float = 0.6, beta: float = 0.6) -> Array:
    """κ at the quantiles of a Beta(α, β) distribution (Lee et al., 2024). Needs scipy, else `MissingDependency`."""
    try:
        from scipy.stats import beta as distribution
    except ImportError as error:
        raise MissingDependency("use_beta_sigmas needs scipy: pip install scipy") from error
    quantiles = distribution.ppf(1 - np.linspace(0, 1, num), alpha, beta)
    return np.asarray(low + quantiles * (high - low), dtype=np.float64)


def power_sigmas(num: int, rho: float) -> Array:
    """σ_i = ((n − i + 1)/n)^ρ for i = 1 … n: FlowMo's shifted sampler (Sargent et al., 2025); ρ = 1 is uniform."""
    return (np.arange(num, 0, -1) / num) ** rho


def respaced_sigmas(kind: str, low: float, high: float, num: int) -> Array:
    """κ from `high` down to `low` spaced as `karras`, `exponential`, `lu` or `beta`."""
    if kind == "karras":
        return karras_sigmas(low, high, num)
    if kind in ("exponential", "lu"):
        return exponential_sigmas(low, high, num)
    if kind == "beta":
        return beta_sigmas(low, high, num)
    raise unknown_choice("sigma spacing", kind, ("beta", "exponential", "karras", "lu"))


def chosen_respacing(**wanted: bool | None) -> str | None:
    """The one sigma spacing switched on among `karras`, `exponential`, `beta`, `lu`; None when none is.

    Raises `InputError` when several are.
    """
    on = [name for name, value in wanted.items() if value]
    if len(on) > 1:
        raise InputError(f"only one sigma spacing can be used at a time, got {', '.join(on)}")
    return on[0] if on else None


def sigmas_to_timesteps(sigmas: Array, table: Array) -> Array:
    """Fractional timesteps of noise levels: interpolation of log κ in the training table (ascending)."""
    return np.interp(np.log(np.maximum(sigmas, 1e-10)), np.log(table), np.arange(len(table)))


def given_timesteps(timesteps: Sequence[float] | Any, total: int) -> Array:
    """The caller's own list as an array; `InputError` unless it descends strictly within [0, `total` − 1]."""
    values = np.asarray(timesteps, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise InputError(f"timesteps must be a non-empty list of numbers, got shape {values.shape}")
    if not np.all(np.diff(values) < 0):
        raise InputError("timesteps must descend strictly, from noise to data")
    if not (values[0] <= total - 1 and values[-1] >= 0):
        raise InputError(f"timesteps must lie in 0 … {total - 1}, got {values[0]:g} … {values[-1]:g}")
    return values


def given_sigmas(sigmas: Sequence[float] | Any, high: float = math.inf) -> Array:
    """The caller's own noise levels; `InputError` unless they descend strictly within [0, `high`]."""
    values = np.asarray(sigmas, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise InputError(f"sigmas must be a non-empty list of numbers, got shape {values.shape}")
    if not np.all(np.diff(values) < 0):
        raise InputError("sigmas must descend strictly, from noise to data")
    if not (values[0] <= high and values[-1] >= 0 and np.isfinite(values[0])):
        raise InputError(f"sigmas must lie in 0 … {high:g}, got {values[0]:g} … {values[-1]:g}")
    return values
