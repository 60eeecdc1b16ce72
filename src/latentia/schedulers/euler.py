"""Euler's method in κ, with Karras' optional churn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError, check_choice
from latentia.schedulers.prediction import affine, operands
from latentia.schedulers.scheduler import LazyX0, StepOutput
from latentia.schedulers.sigma import SigmaScheduler
from latentia.schedulers.spacing import Array, given_sigmas


class EulerDiscreteScheduler(SigmaScheduler):
    """Euler's method on the probability-flow ODE (Karras et al., 2022, arXiv 2206.00364, algorithm 2).

        x̃' = x̃ + (κ' − κ) (x̃ − x̂₀)/κ

    The same trajectory as DDIM with η = 0 after x̃ = x/α.

    Args:
        prediction_type: `epsilon`, `sample` (or its old name `original_sample`) or `v_prediction`.
        interpolation_type: κ between training timesteps: `linear`, or `log_linear`, which spaces n + 1 levels
            uniformly in log κ and stops at the lowest.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: respace κ; at most one.
        sigma_min, sigma_max: ends of the respaced κ; by default those of the chosen timesteps.
        timestep_type: `continuous` with v-prediction passes ¼ log κ as timestep.
        final_sigmas_type: end at κ = 0 (`zero`) or at the training table's lowest (`sigma_min`).
        rescale_betas_zero_snr: zero terminal SNR, with ᾱ_T held at 2⁻²⁴.
        compat: Diffusers 0.42.1's timestep lists.
        The other arguments are those of `DDIMScheduler`.
    """

    predictions = ("epsilon", "sample", "v_prediction", "original_sample")
    step_options = frozenset({"s_churn", "s_tmin", "s_tmax", "s_noise"})

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        prediction_type: str = "epsilon",
        interpolation_type: str = "linear",
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        timestep_spacing: str = "linspace",
        timestep_type: str = "discrete",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        final_sigmas_type: str = "zero",
        compat: bool = False,
    ) -> None:
        check_choice("interpolation_type", interpolation_type, ("linear", "log_linear"))
        check_choice("timestep_type", timestep_type, ("discrete", "continuous"))
        self._set_up(zero_snr=rescale_betas_zero_snr)
        if prediction_type == "original_sample":
            self.prediction_type = "sample"
        self._continuous = timestep_type == "continuous" and prediction_type == "v_prediction"
        if self._continuous:
            self.timesteps = 0.25 * self.sigmas[:-1].log()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> None:
        """Choose `num_inference_steps` timesteps (1 … T), or give `timesteps`, or `sigmas` (κ and the final one).

        Raises `InputError` unless exactly one of the three is given, descending and in range.
        """
        if sum(given is not None for given in (num_inference_steps, timesteps, sigmas)) != 1:
            raise InputError("pass exactly one of num_inference_steps, timesteps and sigmas")
        if timesteps is not None and self._continuous:
            raise InputError("timesteps cannot be given with timestep_type='continuous': give sigmas")
        num = None if sigmas is not None else self._check_count(num_inference_steps, timesteps)
        self._start_run(num, lambda: self._plan(num, timesteps, sigmas), device)

    def _plan(
        self, num: int | None, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None
    ) -> tuple[Array, torch.dtype, dict[str, Any]]:
        if sigmas is not None:
            kappa = given_sigmas(sigmas)
            if len(kappa) < 2:
                raise InputError("sigmas must hold at least two levels: where the first step starts and ends")
            times = self._timesteps_of(kappa[:-1])
        else:
            times, kappa = self._spaced_sigmas(num, timesteps)
        if self._continuous:
            times = 0.25 * np.log(kappa[: len(times)])
        off_table = sigmas is not None or bool(self._respacing) or self.config.interpolation_type == "log_linear"
        return times, torch.float32, self._run_state(kappa, self._make_rows(kappa), off_table)

    def _spaced_sigmas(self, num: int | None, timesteps: Sequence[float] | None) -> tuple[Array, Array]:
        """Timesteps, and κ of each and of the end."""
        config = self.config
        times, kappa = self._choose(num, timesteps)
        log_linear = config.interpolation_type == "log_linear"
        if log_linear:
            kappa = np.exp(np.linspace(np.log(self._table_kappa[-1]), np.log(self._table_kappa[0]), len(times) + 1))
        if self._respacing:
            kappa = self._respace(kappa, len(times), config.sigma_min, config.sigma_max)
            times = self._timesteps_of(kappa)
        elif log_linear:
            return times, kappa
        return times, np.append(kappa, 0.0 if config.final_sigmas_type == "zero" else self._table_kappa[0])

    def _make_rows(self, levels: Array) -> list[tuple[float, ...]]:
        """Per-step numbers: the step, and x̂₀."""
        kappa, after = levels[:-1], levels[1:]
        p, q = self._x0_coefficients(kappa)
        slope = (after - kappa) / kappa  # x̃' = x̃ + slope·(x̃ − x̂₀)
        columns = [1 + slope * (1 - p), -slope * q, p, q]
        if self.prediction_type == "epsilon":
            columns[:2] = [np.ones_like(kappa), after - kappa]
        return list(zip(*(column.tolist() for column in columns)))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:
        """The sample at the next timestep; see `SchedulerMixin.step`.

        Args:
            s_churn: raise κ by the factor 1 + min(s_churn/n, √2 − 1), with fresh noise, before the step.
            s_tmin, s_tmax: only for κ in this range.
            s_noise: standard deviation of that noise.
        """
        index = self.index_for_timestep(timestep)
        y, x = operands(model_output, sample)
        x0: LazyX0
        if s_churn > 0 and s_tmin <= self._kappa[index] <= s_tmax:
            previous, x0 = self._churned(y, x, index, s_churn, s_noise, generator)
        else:
            a, b, p, q = self._rows[index]
            previous, x0 = affine(a, x, b, y), (p, x, q, y)
        output = self._finish(index, previous, x0, sample)
        return output if return_dict else output.to_tuple()

    def _churned(
        self, y: torch.Tensor, x: torch.Tensor, index: int, s_churn: float, s_noise: float, generator: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kappa, after = float(self._kappa[index]), float(self._kappa[index + 1])
        raised = kappa * (1 + min(s_churn / (len(self._kappa) - 1), 2**0.5 - 1))
        x = torch.add(x, self._noise(x, generator), alpha=s_noise * (raised**2 - kappa**2) ** 0.5)
        _, _, p, q = self._rows[index]
        x0 = affine(1.0, x, -raised, y) if self.prediction_type == "epsilon" else affine(p, x, q, y)
        return torch.lerp(x, x0, (raised - after) / raised), x0

    def _kappa_at(self, times: torch.Tensor) -> torch.Tensor:
        return (4 * times.double()).exp() if self._continuous else super()._kappa_at(times)
