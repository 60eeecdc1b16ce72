"""Heun's method in κ: an Euler step, a second look at where it landed, and the average of both slopes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError
from latentia.schedulers.prediction import affine, operands
from latentia.schedulers.scheduler import LazyX0, StepOutput
from latentia.schedulers.sigma import SigmaScheduler
from latentia.schedulers.spacing import Array


class HeunDiscreteScheduler(SigmaScheduler):
    """Heun's second-order method on the probability-flow ODE (Karras et al., 2022, algorithm 1).

        d = (x̃ − x̂₀)/κ,    x̃₁ = x̃ + (κ' − κ) d,    d₁ = (x̃₁ − x̂₀(x̃₁))/κ',    x̃' = x̃ + (κ' − κ) (d + d₁)/2

    `timesteps` holds 2n − 1 entries for n steps: every level but the first and the last is visited twice, and the
    last step, to κ = 0, is Euler's.

    Args:
        clip_sample, clip_sample_range: clip x̂₀ to ± range.
        The other arguments are those of `EulerDiscreteScheduler`; note the different default betas.
    """

    order = 2

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        clip_sample: bool | None = False,
        clip_sample_range: float = 1.0,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        compat: bool = False,
    ) -> None:
        self._set_up()
        self._first: tuple[torch.Tensor, torch.Tensor] | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        num_train_timesteps: int | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose `num_inference_steps` steps (1 … T), 2n − 1 timesteps, or give the descending list of n itself.

        `num_train_timesteps` is accepted for Diffusers' sake and must be the config's.
        """
        if num_train_timesteps not in (None, len(self)):
            raise InputError(f"num_train_timesteps is {len(self)} in the config, got {num_train_timesteps}")
        num = self._check_count(num_inference_steps, timesteps)
        self._start_run(num, lambda: self._plan(num, timesteps), device)
        self.num_inference_steps = (len(self.timesteps) + 1) // 2
        self._first = None

    def _plan(self, num: int | None, timesteps: Sequence[float] | None) -> tuple[Array, torch.dtype, dict[str, Any]]:
        times, kappa = self._choose(num, timesteps)
        if self._respacing:
            kappa = self._respace(kappa, len(times))
            times = self._timesteps_of(kappa)
        widths = np.repeat(np.diff(np.append(kappa, 0.0)), 2)[:-1]
        visits = np.repeat(np.arange(len(times)), 2)[1:]  # 0, 1, 1, 2, 2, …
        rows = self._make_rows(kappa[visits], widths)
        state = self._run_state(np.append(kappa[visits], 0.0), rows, off_table=bool(self._respacing))
        return times[visits], torch.float32, state

    def _make_rows(self, kappa: Array, widths: Array) -> list[tuple[float, ...]]:
        """Rows (width, ex, ey, p, q, κ) with slope d = ex·x̃ + ey·y; a width is κ' − κ of the entry's step."""
        p, q = self._x0_coefficients(kappa)
        ex, ey = (1 - p) / kappa, -q / kappa
        if self.prediction_type == "epsilon":
            ex, ey = np.zeros_like(kappa), np.ones_like(kappa)
        return list(zip(*(column.tolist() for column in (widths, ex, ey, p, q, kappa))))

    @property
    def state_in_first_order(self) -> bool:
        """True when the next evaluation begins a step."""
        return self._first is None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
        *,
        generator: Generators = None,
    ) -> StepOutput | tuple[torch.Tensor, ...]:
        """One of a step's two evaluations; see `SchedulerMixin.step`. The scheduler draws no noise."""
        index = self.index_for_timestep(timestep)
        width, ex, ey, p, q, kappa = self._rows[index]
        y, x = operands(model_output, sample)
        x0: LazyX0 = (p, x, q, y)
        if self._limits:
            x0 = self._limit(affine(p, x, q, y))
            y, ex, ey = x0, 1 / kappa, -1 / kappa
        if index % 2 == 0:  # the Euler step
            previous = affine(1 + width * ex, x, width * ey, y)
            first = x, (y if ex == 0.0 and ey == 1.0 else affine(ex, x, ey, y))
            self._first = first if index < len(self._rows) - 1 else None
        else:
            if self._first is None or self._step_index != index:
                raise InputError("this timestep is the second half of a Heun step: start a run at an even position")
            start, slope = self._first
            previous = torch.add(start, slope, alpha=width / 2)
            if ex:
                previous.add_(x, alpha=width / 2 * ex)
            previous.add_(y, alpha=width / 2 * ey)
            self._first = None
        output = self._finish(index, previous, x0, sample)
        return output if return_dict else output.to_tuple()
