"""Classifier-free guidance: a prediction pushed away from the unconditional one.

    ε̃ = ε_∅ + s (ε_c − ε_∅)            Ho & Salimans 2022; their w is s − 1

Works on whatever the network predicts (ε, v, x₀, flow), because all are affine in each other.
"""

import math
from collections.abc import Callable, Mapping

import torch

from latentia.core.arguments import check_number
from latentia.errors import InputError

Model = Callable[..., torch.Tensor]
"""`model(z, t, **conditions)` → prediction of z's shape (or with a learned variance behind it)."""
Conditions = Mapping[str, torch.Tensor]
"""What the network is told, by argument name; batch first."""


def guide(uncond: torch.Tensor, cond: torch.Tensor, scale: float) -> torch.Tensor:
    """ε_∅ + s (ε_c − ε_∅) for predictions of equal shape."""
    return torch.lerp(uncond, cond, scale)


def rescale_to(guided: torch.Tensor, cond: torch.Tensor, rescale: float) -> torch.Tensor:
    """Give the guided prediction the conditional one's spread: φ·ε̃·std(ε_c)/std(ε̃) + (1 − φ)·ε̃.

    Lin et al. 2023 (2305.08891), §3.4; φ = `rescale` in [0, 1], std per sample over all other axes.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (1 - rescale + rescale * ratio)


def predict_guided(
    model: Model,
    z: torch.Tensor,
    t: torch.Tensor,
    cond: Conditions,
    uncond: Conditions,
    scale: float,
    rescale: float = 0.0,
) -> torch.Tensor:
    """One guided prediction from one forward pass over the batch [uncond, cond].

    A scale of at most 1 runs the conditional half alone. Channels beyond those of `z` (a learned variance) are
    not guided.
    """
    if scale <= 1:
        return model(z, t, **cond)
    both = {name: torch.cat([uncond[name], cond[name]]) for name in cond}
    return combine(model(torch.cat([z, z]), t, **both), scale, rescale, channels=z.shape[1])


def combine(both: torch.Tensor, scale: float, rescale: float = 0.0, channels: int | None = None) -> torch.Tensor:
    """The guided prediction from the halves [uncond, cond] of one batch; only the first `channels` are guided."""
    without, given = both.chunk(2)
    if channels is None or channels == both.shape[1]:
        guided = guide(without, given, scale)
        return rescale_to(guided, given, rescale) if rescale else guided
    variance = given[:, channels:]
    without, given = without[:, :channels], given[:, :channels]
    guided = guide(without, given, scale)
    if rescale:
        guided = rescale_to(guided, given, rescale)
    return torch.cat([guided, variance], dim=1)


def is_active(t: float, num_train_timesteps: int, interval: tuple[float, float]) -> bool:
    """Whether guidance acts at model time t: start ≤ 1 − t/T ≤ stop.

    Kynkäänniemi et al. 2024: 0 is pure noise, 1 is data. Tied to t and not to the step count, so that every
    evaluation of a second-order step, and every number of steps, sees the same guided network.
    """
    position = min(max(1 - t / num_train_timesteps, 0.0), 1.0)
    return interval[0] <= position <= interval[1]


def check_scale(scale: object) -> float:
    """A guidance scale: a finite number ≥ 0. Raises `InputError`."""
    return check_number("guidance_scale", scale, 0.0, math.inf, "1 (no guidance), or 1.5 to 8")


def check_rescale(rescale: object) -> float:
    """A guidance rescale φ in [0, 1]. Raises `InputError`."""
    return check_number("guidance_rescale", rescale, 0.0, 1.0, "0 (off), or about 0.7")


def check_interval(interval: object, name: str = "guidance_interval") -> tuple[float, float]:
    """(start, stop) with 0 ≤ start ≤ stop ≤ 1. Raises `InputError`."""
    if not isinstance(interval, tuple | list) or len(interval) != 2:
        raise InputError(f"{name} must be a pair (start, stop) between 0 and 1, got {interval!r}")
    start, stop = (check_number(name, end, 0.0, 1.0, "(0, 1), the whole way") for end in interval)
    if start > stop:
        raise InputError(f"{name} {interval!r} starts after it stops: 0 is noise, 1 is data; swap the two")
    return start, stop
