"""DDIM: the deterministic step of a diffusion, and everything up to its fully random one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import hardtanh_

from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError
from latentia.schedulers.diffusion import DiffusionScheduler
from latentia.schedulers.prediction import affine, direction, eps_coefficients, operands, x0_coefficients
from latentia.schedulers.scheduler import LazyX0, StepOutput
from latentia.schedulers.spacing import Array, check_num_steps


def ddim_coefficients(level: Array, level_next: Array, eta: float) -> tuple[Array, Array, Array]:
    """(signal, direction, noise) of x_next = signal·x̂₀ + direction·ε̂ + noise·z (Song et al., 2021, eq. 12, 16).

    noise = η √((1 − ᾱ')/(1 − ᾱ) · (1 − ᾱ/ᾱ')) and direction = √(1 − ᾱ' − noise²) for ᾱ = `level`,
    ᾱ' = `level_next`. η = 0 is DDIM, η = 1 is DDPM. Raises `InputError` for η so large that direction² < 0.
    """
    noise = eta * np.sqrt((1 - level_next) / (1 - level) * (1 - level / level_next))
    square = 1 - level_next - noise**2
    if eta < 0 or (square < -1e-9).any():
        raise InputError(f"eta must lie in [0, 1], got {eta}")
    return np.sqrt(level_next), np.sqrt(np.maximum(square, 0)), noise


class DDIMScheduler(DiffusionScheduler):
    """Denoising Diffusion Implicit Models (Song et al., 2021, arXiv 2010.02502).

        x' = √ᾱ' x̂₀ + √(1 − ᾱ' − s²) ε̂ + s z,    s = η √((1 − ᾱ')/(1 − ᾱ) · (1 − ᾱ/ᾱ'))

    ᾱ' belongs to the next entry of `timesteps`; after the last it is 1 (`set_alpha_to_one`) or ᾱ₀.

    Args:
        num_train_timesteps: T, the length of the β schedule.
        beta_start, beta_end, beta_schedule, trained_betas: see `betas.make_betas`.
        clip_sample, clip_sample_range: clip x̂₀ to ± range. Right for pixels in [−1, 1], wrong for latents.
        set_alpha_to_one: end at ᾱ' = 1 instead of ᾱ₀.
        steps_offset, timestep_spacing: see `spacing.spaced_timesteps`.
        prediction_type: `epsilon`, `sample` or `v_prediction`.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding in place of clipping.
        rescale_betas_zero_snr: make ᾱ_T = 0.
        compat: step to t − ⌊T/n⌋ and space timesteps as Diffusers 0.42.1 does.
    """

    step_options = frozenset({"eta", "use_clipped_model_output", "variance_noise"})
    _rows: dict[float, list[tuple[float, ...]]]
    _times: Array
    _next_level: Array

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        compat: bool = False,
    ) -> None:
        self._set_up(zero_snr=rescale_betas_zero_snr)
        self._last_level = 1.0 if set_alpha_to_one else float(self._level[0])
        self.final_alpha_cumprod = torch.tensor(self._last_level, dtype=torch.float32)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose `num_inference_steps` timesteps (1 … T) on `device`; raises `InputError` for any other number."""
        num = check_num_steps(num_inference_steps, self.config.num_train_timesteps)
        self._start_run(num, lambda: self._plan(num), device)
        self.num_inference_steps = num

    def _plan(self, num: int) -> tuple[Array, torch.dtype, dict[str, Any]]:
        times = self._spaced(num).round()
        self._refuse_undefined_start(times)
        if self.config.compat:
            after = times - self.config.num_train_timesteps // num
        else:
            after = np.append(times[1:], -1)
        next_level = np.where(after < 0, self._last_level, self._level[np.maximum(after, 0).astype(np.int64)])
        return times, torch.int64, {"_times": times, "_next_level": next_level, "_rows": {}}

    def _make_rows(self, eta: float) -> list[tuple[float, ...]]:
        """Per-step numbers for one η: x̂₀, noise, the plain step, the clipped one, and that with ε̂ recomputed."""
        level = self._levels_at(self._times)
        with np.errstate(divide="ignore", invalid="ignore"):  # compat may ask for ε where there is no signal
            signal, heading, noise = ddim_coefficients(level, self._next_level, eta)
            alpha, sigma = np.sqrt(level), np.sqrt(1 - level)
            p, q = x0_coefficients(self.prediction_type, alpha, sigma)
            ex, ey = eps_coefficients(self.prediction_type, alpha, sigma)
            plain = signal * p + heading * ex, signal * q + heading * ey
            scale, ratio = direction(p, q)
            clipped = ratio, self._clip / np.abs(scale), scale, signal * scale, heading * ex, heading * ey
            again = (signal - heading * alpha / sigma) * scale, heading / sigma
        return list(zip(*(column.tolist() for column in (p, q, noise, *plain, *clipped, *again))))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:
        """The sample at the next timestep; see `SchedulerMixin.step`.

        Args:
            eta: 0 deterministic … 1 as random as DDPM.
            use_clipped_model_output: recompute ε̂ from the clipped x̂₀, so that the two agree.
            variance_noise: z itself, instead of a generator.
        """
        index = self.index_for_timestep(timestep)
        rows = self._rows.get(eta)
        if rows is None:
            rows = self._rows[eta] = self._make_rows(eta)
        p, q, noise, a, b, ratio, bound, scale, signal, ex, ey, again, rest = rows[index]
        y, x = operands(model_output, sample)
        x0: LazyX0
        if not self._limits:
            x0 = (p, x, q, y)
            previous = affine(a, x, b, y)
        else:
            if self._thresholds:
                clean = self._limit(affine(p, x, q, y)) / scale
            else:  # clipping scale·u at the range is clipping u at range/scale
                clean = hardtanh_(torch.add(y, x, alpha=ratio), -bound, bound)
            x0 = (scale, clean, 0.0, clean)
            if use_clipped_model_output:
                previous = affine(again, clean, rest, x)
            else:
                previous = affine(signal, clean, ey, y)
                if ex:
                    previous.add_(x, alpha=ex)
        if noise:
            previous.add_(self._noise(x, generator, variance_noise), alpha=noise)
        output = self._finish(index, previous, x0, sample)
        return output if return_dict else output.to_tuple()
