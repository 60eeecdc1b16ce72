"""Noise schedules: how fast the signal fades. Everything here is a pure function of numbers.

A schedule is a vector β of length T with 0 < β ≤ 1. The signal that is left after t steps is
ᾱ_t = Π_{i≤t} (1 − β_i); a noisy sample is x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε (Ho et al., 2020).
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from latentia.core.arguments import check_count, check_number
from latentia.errors import InputError, check_choice

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "exp", "laplace", "sigmoid")

ALMOST_ZERO_SNR = 2.0**-24
"""ᾱ_T of a zero-terminal-SNR schedule where σ/α must stay finite: σ/α ≈ 4096."""


def make_betas(
    schedule: str,
    num: int,
    start: float,
    end: float,
    trained: Sequence[float] | None = None,
    zero_snr: bool = False,
    dtype: torch.dtype = torch.float64,
) -> torch.Tensor:
    """β (num,) of a named schedule, or `trained` as given; with `zero_snr` rescaled so that ᾱ_T = 0.

    `linear` runs from `start` to `end`, `scaled_linear` is linear in √β (Latent Diffusion calls that one "linear"),
    `sigmoid` runs from about `start` to about `end`; the others are closed forms of ᾱ(t) and ignore both.
    Raises `UnknownChoiceError` for another name and `InputError` for β outside (0, 1].
    """
    check_count("num_train_timesteps", num)
    if trained is not None:
        try:
            betas = torch.as_tensor(trained, dtype=dtype).flatten()
        except (TypeError, ValueError):
            raise InputError(f"trained_betas must be a list of numbers, got {trained!r}") from None
        if len(betas) != num:
            raise InputError(
                f"trained_betas has {len(betas)} entries but num_train_timesteps is {num}: "
                f"pass num_train_timesteps={len(betas)}"
            )
    else:
        check_choice("beta_schedule", schedule, BETA_SCHEDULES)
        start, end = check_number("beta_start", start), check_number("beta_end", end)
        betas = _named_betas(schedule, num, start, end, dtype)
    if not bool(((betas > 0) & (betas <= 1)).all()):
        raise InputError(
            f"every beta must lie in (0, 1], got {float(betas.min()):.4g} to {float(betas.max()):.4g}: "
            "check beta_start, beta_end and trained_betas"
        )
    return rescale_zero_terminal_snr(betas) if zero_snr else betas


def _named_betas(schedule: str, num: int, start: float, end: float, dtype: torch.dtype) -> torch.Tensor:
    if schedule == "linear":
        return torch.linspace(start, end, num, dtype=dtype)
    if schedule == "scaled_linear":
        return torch.linspace(math.sqrt(start), math.sqrt(end), num, dtype=dtype) ** 2
    if schedule == "sigmoid":
        return torch.sigmoid(torch.linspace(-6, 6, num, dtype=dtype)) * (end - start) + start
    return betas_from_alpha_bar(_ALPHA_BAR[schedule], num, dtype=dtype)


def betas_from_alpha_bar(
    alpha_bar: Callable[[float], float], num: int, max_beta: float = 0.999, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """β_i = min(1 − ᾱ((i+1)/T) / ᾱ(i/T), max_beta) for a signal curve ᾱ(u), u in [0, 1] (Nichol & Dhariwal, 2021)."""
    curve = [alpha_bar(i / num) for i in range(num + 1)]
    return torch.tensor([min(1 - b / a, max_beta) for a, b in pairwise(curve)], dtype=dtype)


def _cosine(u: float) -> float:
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def _exponential(u: float) -> float:
    return math.exp(-12.0 * u)


def _laplace(u: float) -> float:
    log_snr = -0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * abs(0.5 - u) + 1e-6)
    return math.sqrt(1 / (1 + math.exp(-log_snr)))


_ALPHA_BAR = {"squaredcos_cap_v2": _cosine, "exp": _exponential, "laplace": _laplace}


def signal_level(betas: torch.Tensor) -> torch.Tensor:
    """ᾱ_t = Π_{i≤t} (1 − β_i), shape (T,)."""
    return torch.cumprod(1 - betas, dim=0)


def rescale_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """β whose last ᾱ is exactly 0 and whose first is unchanged (Lin et al., 2023, algorithm 1).

    √ᾱ is shifted and stretched: s_t ← (s_t − s_T) · s_0 / (s_0 − s_T). Raises `InputError` for a single β.
    """
    if len(betas) < 2:
        raise InputError("rescale_betas_zero_snr needs at least 2 training timesteps")
    root = signal_level(betas).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    level = root**2
    return 1 - torch.cat([level[:1], level[1:] / level[:-1]])
