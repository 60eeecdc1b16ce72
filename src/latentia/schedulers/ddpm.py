"""DDPM: the ancestral sampler, one draw from q(x_{t'} | x_t, x̂₀) a step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError, check_choice
from latentia.schedulers.diffusion import DiffusionScheduler
from latentia.schedulers.prediction import affine, operands, x0_coefficients
from latentia.schedulers.scheduler import LazyX0, StepOutput
from latentia.schedulers.spacing import Array, check_num_steps, given_timesteps

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")


def posterior(level: Array, level_next: Array) -> tuple[Array, Array, Array, Array]:
    """(c₀, cₓ, β̃, β): q(x' | x, x₀) has mean c₀ x₀ + cₓ x and variance β̃ (Ho et al., 2020, eq. 7).

    β = 1 − ᾱ/ᾱ' is the variance of the forward step from ᾱ' = `level_next` to ᾱ = `level`.
    """
    beta = 1 - level / level_next
    small = (1 - level_next) / (1 - level) * beta
    c0 = np.sqrt(level_next) * beta / (1 - level)
    cx = np.sqrt(level / level_next) * (1 - level_next) / (1 - level)
    return c0, cx, small, beta


class DDPMScheduler(DiffusionScheduler):
    """Denoising Diffusion Probabilistic Models (Ho et al., 2020, arXiv 2006.11239).

        x' = c₀ x̂₀ + cₓ x + s z,    c₀ = √ᾱ' β/(1 − ᾱ),    cₓ = √(1 − β) (1 − ᾱ')/(1 − ᾱ),    β = 1 − ᾱ/ᾱ'

    ᾱ' belongs to the next entry of `timesteps`, 1 after the last. No noise is added at t = 0.
    It may be stepped without `set_timesteps`: then it runs through all T timesteps.

    Args:
        variance_type: s² is β̃ (`fixed_small`), β (`fixed_large`), or read from the second half of the network's
            channels: the variance itself (`learned`) or its place between log β̃ and log β (`learned_range`).
            The `_log` forms are the same numbers.
        compat: Diffusers 0.42.1's timestep lists.
        The other arguments are those of `DDIMScheduler`.
    """

    _rows: list[tuple[float, ...]]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        compat: bool = False,
    ) -> None:
        check_choice("variance_type", variance_type, VARIANCES)
        self._set_up(zero_snr=rescale_betas_zero_snr)
        self.variance_type = variance_type
        self._learned = variance_type in ("learned", "learned_range")

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose `num_inference_steps` timesteps (1 … T), or give the descending list; `InputError` otherwise."""
        total = self.config.num_train_timesteps
        if (num_inference_steps is None) == (timesteps is None):
            raise InputError("pass exactly one of num_inference_steps and timesteps")
        if timesteps is not None:
            own = given_timesteps(timesteps, total)
            self._start_run(None, lambda: self._plan(own), device)
        else:
            num = check_num_steps(num_inference_steps, total)
            self._start_run(num, lambda: self._plan(self._spaced(num).round()), device)

    def previous_timestep(self, timestep: int) -> int:
        """The timestep that a step from `timestep` arrives at; −1 is the data."""
        following = self.index_for_timestep(timestep) + 1
        return int(self.timesteps[following]) if following < len(self.timesteps) else -1

    def index_for_timestep(self, timestep: int | torch.Tensor) -> int:
        """Position of `timestep` in `timesteps`; without `set_timesteps` those are all T."""
        if self._clock is None:
            self.set_timesteps(timesteps=range(len(self) - 1, -1, -1))
        return super().index_for_timestep(timestep)

    def _plan(self, times: Array) -> tuple[Array, torch.dtype, dict[str, Any]]:
        """Per-step numbers: x̂₀, the plain step, the clipped one, the noise, and the bounds of a learned one."""
        self._refuse_undefined_start(times)
        level = self._levels_at(times)
        with np.errstate(divide="ignore", invalid="ignore"):  # compat may hold lists that make no sense
            c0, cx, small, large = posterior(level, np.append(level[1:], 1.0))
            log_large = np.log(large)
            p, q = x0_coefficients(self.prediction_type, np.sqrt(level), np.sqrt(1 - level))
        plain = c0 * p + cx, c0 * q
        small = np.maximum(small, 1e-20)
        std = np.sqrt(large if self.variance_type.startswith("fixed_large") else small)
        std[(times <= 0) | (std <= 1e-10)] = 0
        columns = (p, q, *plain, c0, cx, std, np.log(small), log_large, times)
        return times, torch.int64, {"_rows": list(zip(*(column.tolist() for column in columns)))}

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:
        """The sample at the next timestep; see `SchedulerMixin.step`.

        With a learned variance `model_output` has twice the channels of `sample`.
        """
        index = self.index_for_timestep(timestep)
        p, q, a, b, c0, cx, std, log_small, log_large, time = self._rows[index]
        variance = None
        if self._learned:
            model_output, variance = self._split(model_output, sample)
        y, x = operands(model_output, sample)
        x0: LazyX0
        if not self._limits:
            x0 = (p, x, q, y)
            previous = affine(a, x, b, y)
        else:
            x0 = self._limit(affine(p, x, q, y))
            previous = affine(c0, x0, cx, x)
        if variance is not None and time > 0:
            learned = self._learned_std(variance.to(x.dtype), log_small, log_large)
            previous.addcmul_(learned, self._noise(x, generator))
        elif std and variance is None:
            previous.add_(self._noise(x, generator), alpha=std)
        output = self._finish(index, previous, x0, sample)
        return output if return_dict else output.to_tuple()

    def _split(self, model_output: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        channels = sample.shape[1]
        if model_output.shape[1] != 2 * channels:
            raise InputError(
                f"variance_type={self.variance_type!r} needs a network with {2 * channels} output channels "
                f"(mean and variance), got {model_output.shape[1]}: use a fixed variance_type for this network"
            )
        mean, variance = model_output.split(channels, dim=1)
        return mean, variance

    def _learned_std(self, variance: torch.Tensor, log_small: float, log_large: float) -> torch.Tensor:
        if self.variance_type == "learned":
            return variance.sqrt()
        place = (variance + 1) / 2  # −1 … 1 → 0 … 1
        return torch.exp(0.5 * (log_small + place * (log_large - log_small)))
