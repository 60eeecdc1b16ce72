"""Euler's method on the straight path of flow matching."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentia.core.arguments import check_count, check_number
from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError, check_choice
from latentia.schedulers.clock import listed_positions
from latentia.schedulers.prediction import operands
from latentia.schedulers.scheduler import LazyX0, SchedulerMixin, StepOutput
from latentia.schedulers.spacing import (
    Array,
    check_num_steps,
    chosen_respacing,
    given_sigmas,
    power_sigmas,
    respaced_sigmas,
)

TIME_SHIFTS = ("exponential", "linear")


def shift_sigmas(sigmas: Array, shift: float) -> Array:
    """σ ← sσ / (1 + (s − 1)σ): more steps at high noise for s > 1 (Esser et al., 2024, eq. 23)."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


class FlowMatchEulerDiscreteScheduler(SchedulerMixin):
    """Euler's method for flow matching and rectified flow (Lipman et al., 2023; Liu et al., 2023).

        x_σ = (1 − σ) x₀ + σ ε,    v = ε − x₀,    x' = x + (σ' − σ) v,    t = σ T

    Data is at σ = 0, noise at σ = 1; `timesteps` are floats in (0, T].

    Args:
        num_train_timesteps: T, the scale of the timesteps.
        shift: static shift s, see `shift_sigmas`.
        use_dynamic_shifting: shift by `mu`, given to `set_timesteps`, instead.
        base_shift, max_shift, base_image_seq_len, max_image_seq_len: from which pipelines compute `mu`.
        invert_sigmas: run from data to noise, σ ← 1 − σ.
        shift_terminal: stretch the schedule so that its last σ is this.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas: respace σ; at most one.
        time_shift_type: form of the dynamic shift, with m = exp(mu) (`exponential`) or mu (`linear`): m/(m + 1/σ − 1).
        stochastic_sampling: x' = (1 − σ') x̂₀ + σ' z with fresh noise.
        rho: FlowMo's power spacing, σ_i = ((n − i + 1)/n)^ρ (4 in the paper), before any shift.
    """

    extensions = frozenset({"rho"})
    step_options = frozenset({"s_churn", "s_tmin", "s_tmax", "s_noise", "per_token_timesteps"})
    prediction_type = "flow_prediction"
    _widths: list[float]
    _levels: list[float]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int | None = 256,
        max_image_seq_len: int | None = 4096,
        invert_sigmas: bool = False,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        rho: float | None = None,
    ) -> None:
        check_choice("time_shift_type", time_shift_type, TIME_SHIFTS)
        self._respacing = chosen_respacing(
            karras=use_karras_sigmas, exponential=use_exponential_sigmas, beta=use_beta_sigmas
        )
        if rho is not None and (self._respacing or rho <= 0):
            raise InputError(
                f"rho must be positive and without another sigma spacing, got {rho} {self._respacing or ''}"
            )
        check_count("num_train_timesteps", num_train_timesteps)
        check_number("shift", shift, low=0, open_low=True)
        sigmas = np.arange(num_train_timesteps, 0, -1) / num_train_timesteps
        sigmas = sigmas if use_dynamic_shifting else shift_sigmas(sigmas, shift)
        self.sigmas = torch.from_numpy(sigmas).float()
        self.timesteps = self.sigmas * num_train_timesteps
        self.sigma_min, self.sigma_max = float(sigmas[-1]), float(sigmas[0])
        self._shift = float(shift)
        self._off_line = False
        self._plans = {}
        self._stochastic = bool(stochastic_sampling)

    @property
    def shift(self) -> float:
        """The static shift in use."""
        return self._shift

    def set_shift(self, shift: float) -> None:
        """Use another static shift from the next `set_timesteps` on; `InputError` unless it is positive."""
        self._shift = check_number("shift", shift, low=0, open_low=True)

    def time_shift(self, mu: float, sigma: float, t: Any) -> Any:
        """m / (m + (1/t − 1)^sigma) with m = exp(mu) or mu, as `time_shift_type` says."""
        m = math.exp(mu) if self.config.time_shift_type == "exponential" else mu
        return m / (m + (1 / t - 1) ** sigma)

    def stretch_shift_to_terminal(self, t: Any) -> Any:
        """1 − (1 − t)·(1 − shift_terminal)/(1 − t_last): the last entry becomes `shift_terminal`."""
        rest = 1 - t
        return t if rest[-1] == 0 else 1 - rest * ((1 - self.config.shift_terminal) / rest[-1])

    # -- one run -----------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Choose `num_inference_steps` timesteps (1 … T), or give σ before shifting, or timesteps, or both.

        Timesteps given alone are passed on as they are while their σ = t/T are shifted. Raises `InputError` for
        other numbers, lists that do not descend or differ in length, and a missing `mu`.
        """
        if self.config.use_dynamic_shifting and mu is None:
            raise InputError("use_dynamic_shifting=True needs mu, the shift for this image size")
        num = self._count(num_inference_steps, sigmas, timesteps)
        key = (num, mu, self._shift) if sigmas is None and timesteps is None else None
        self._start_run(key, lambda: self._plan(num, sigmas, mu, timesteps), device)
        self.sigmas = self.sigmas.to(device)

    def _plan(
        self, num: int, sigmas: Sequence[float] | None, mu: float | None, timesteps: Sequence[float] | None
    ) -> tuple[Array, torch.dtype, dict[str, Any]]:
        config = self.config
        own = None if timesteps is None else given_sigmas(timesteps, config.num_train_timesteps)
        if sigmas is not None:
            levels = given_sigmas(sigmas, 1.0)
        elif own is not None:
            levels = own / config.num_train_timesteps
        else:
            levels = self._even_sigmas(num)
        levels = self._shifted(levels, mu)
        times = levels * config.num_train_timesteps if own is None else own
        end = 0.0
        if config.invert_sigmas:
            levels, end = 1 - levels, 1.0
            times = levels * config.num_train_timesteps
        levels = np.append(levels, end)
        return (
            times,
            torch.float32,
            {
                "sigmas": torch.from_numpy(levels).float(),
                "_widths": np.diff(levels).tolist(),
                "_levels": levels.tolist(),
                "_off_line": own is not None,
            },
        )

    def _count(self, num: int | None, sigmas: Sequence[float] | None, timesteps: Sequence[float] | None) -> int:
        counts = {len(given) for given in (sigmas, timesteps) if given is not None}
        if num is not None:
            counts.add(check_num_steps(num, self.config.num_train_timesteps))
        if len(counts) != 1:
            raise InputError(
                "pass num_inference_steps, sigmas or timesteps, all of one length where several are given; "
                f"got lengths {sorted(counts)}"
            )
        return counts.pop()

    def _even_sigmas(self, num: int) -> Array:
        if self.config.rho is not None:
            return power_sigmas(num, self.config.rho)
        total = self.config.num_train_timesteps
        return np.linspace(self.sigma_max * total, self.sigma_min * total, num) / total

    def _shifted(self, levels: Array, mu: float | None) -> Array:
        """σ after the static or dynamic shift, the stretch to the terminal value and the respacing."""
        if self.config.use_dynamic_shifting:
            with np.errstate(divide="ignore"):
                levels = self.time_shift(float(mu or 0.0), 1.0, levels)
        else:
            levels = shift_sigmas(levels, self._shift)
        if self.config.shift_terminal:
            levels = self.stretch_shift_to_terminal(levels)
        if self._respacing:
            levels = respaced_sigmas(self._respacing, float(levels[-1]), float(levels[0]), len(levels))
        return levels

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
        per_token_timesteps: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:
        """The sample at the next timestep; see `SchedulerMixin.step`.

        `s_churn`, `s_tmin`, `s_tmax` and `s_noise` are accepted for Diffusers' sake and do nothing.
        `per_token_timesteps` (B, tokens) gives every token of a (B, tokens, C) sample its own time; by the contract
        of Diffusers `model_output` is then −v.
        """
        index = self.index_for_timestep(timestep)
        y, x = operands(model_output, sample)
        level = self._levels[index]
        x0: LazyX0
        if per_token_timesteps is not None:
            previous, x0 = self._step_tokens(y, x, per_token_timesteps, generator)
        elif self._stochastic:
            after = self._levels[index + 1]
            x0 = torch.add(x, y, alpha=-level)
            previous = torch.mul(x0, 1 - after).add_(self._noise(x, generator), alpha=after)
        else:
            previous, x0 = torch.add(x, y, alpha=self._widths[index]), (1.0, x, -level, y)
        output = self._finish(index, previous, x0, sample)
        return output if return_dict else (output.prev_sample,)

    def _step_tokens(
        self, y: torch.Tensor, x: torch.Tensor, times: torch.Tensor, generator: Generators
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Every token from its own σ to the next lower one of the schedule."""
        level = (times / self.config.num_train_timesteps).to(x)
        levels = self.sigmas.to(x).reshape(-1, *[1] * times.ndim)
        after = torch.where(levels < level - 1e-6, levels, 0.0).amax(0).unsqueeze(-1)
        level = level.unsqueeze(-1)
        if self._stochastic:
            x0 = x - level * y
            return (1 - after) * x0 + after * self._noise(x, generator), x0
        return x + (level - after) * y, x + level * y

    # -- forward process ---------------------------------------------------------------------------------------

    def alpha_sigma(
        self, timesteps: torch.Tensor | Sequence[float] | float, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """α = 1 − σ and σ = t/T at timesteps 0 … T, fractional ones too, in the shape of `timesteps`.

        A timestep of the present schedule has that schedule's σ (they differ where both were given).
        """
        times = torch.as_tensor(timesteps)
        total = self.config.num_train_timesteps
        if times.device.type == "cpu" and times.numel():
            low, high = (float(bound) for bound in times.aminmax())
            if low < 0 or high > total:
                raise InputError(f"timesteps must lie in 0 … {total}, got {low:g} … {high:g}")
        sigma = times.to(dtype) / total
        if self._off_line:
            current = self._step_index if self._step_index is not None else self._begin_index
            listed = self.timesteps.to(times.device)
            position, found = listed_positions(times.to(listed.dtype), listed, current)
            sigma = torch.where(found, self.sigmas.to(times.device, dtype)[position], sigma)
        return 1 - sigma, sigma

    def scale_noise(
        self, sample: torch.Tensor, timestep: torch.Tensor | float, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(1 − σ) x₀ + σ ε: `add_noise` under its other name."""
        if noise is None:
            raise InputError("scale_noise needs the noise tensor")
        return self.add_noise(sample, noise, timestep)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | Sequence[float] | float
    ) -> torch.Tensor:
        """v = ε − x₀, the same at every timestep."""
        return noise - sample
