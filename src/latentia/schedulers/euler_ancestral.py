"""Euler's method with ancestral noise: step below the next level, then add noise up to it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.schedulers.prediction import affine, operands
from latentia.schedulers.scheduler import StepOutput
from latentia.schedulers.sigma import SigmaScheduler
from latentia.schedulers.spacing import Array


def ancestral_split(kappa: Array, after: Array) -> tuple[Array, Array]:
    """(κ_down, κ_up): a deterministic step to κ_down and noise of std κ_up arrive at κ' = √(κ_down² + κ_up²)."""
    up = np.sqrt(after**2 * (kappa**2 - after**2)) / kappa
    return np.sqrt(after**2 - up**2), up


class EulerAncestralDiscreteScheduler(SigmaScheduler):
    """Ancestral sampling with Euler steps, as k-diffusion defines it.

        x̃' = x̃ + (κ_down − κ) (x̃ − x̂₀)/κ + κ_up z,    κ_up² = κ'² (κ² − κ'²)/κ²,    κ_down² = κ'² − κ_up²

    Args: those of `EulerDiscreteScheduler`.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        compat: bool = False,
    ) -> None:
        self._set_up(zero_snr=rescale_betas_zero_snr)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose `num_inference_steps` timesteps (1 … T) on `device`; raises `InputError` for any other number."""
        num = self._check_count(num_inference_steps, None)
        self._start_run(num, lambda: self._plan(num), device)

    def _plan(self, num: int | None) -> tuple[Array, torch.dtype, dict[str, Any]]:
        """Per-step numbers: the step, its noise, and x̂₀."""
        times, kappa = self._choose(num, None)
        levels = np.append(kappa, 0.0)
        after = levels[1:]
        down, up = ancestral_split(kappa, after)
        p, q = self._x0_coefficients(kappa)
        slope = (down - kappa) / kappa
        columns = [1 + slope * (1 - p), -slope * q, up, p, q]
        if self.prediction_type == "epsilon":
            columns[:2] = [np.ones_like(kappa), down - kappa]
        rows = list(zip(*(column.tolist() for column in columns)))
        return times, torch.float32, self._run_state(levels, rows, off_table=False)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:
        """The sample at the next timestep; see `SchedulerMixin.step`."""
        index = self.index_for_timestep(timestep)
        a, b, up, p, q = self._rows[index]
        y, x = operands(model_output, sample)
        previous = affine(a, x, b, y)
        if up:
            previous.add_(self._noise(x, generator), alpha=up)
        output = self._finish(index, previous, (p, x, q, y), sample)
        return output if return_dict else output.to_tuple()
