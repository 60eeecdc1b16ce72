"""Diffusion schedulers: those whose forward process is a β schedule, x_t = √ᾱ_t x₀ + √(1 − ᾱ_t) ε."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch.nn.functional import hardtanh_

from latentia.core.arguments import check_count, check_number
from latentia.errors import InputError, check_choice
from latentia.schedulers.betas import ALMOST_ZERO_SNR, make_betas, signal_level
from latentia.schedulers.prediction import dynamic_threshold
from latentia.schedulers.scheduler import DIFFUSION_FAMILY, SchedulerMixin
from latentia.schedulers.spacing import SPACINGS, Array, spaced_timesteps


class DiffusionScheduler(SchedulerMixin):
    """Base of the schedulers with betas; holds the float64 tables and the forward process.

    Attributes:
        betas, alphas, alphas_cumprod: β, 1 − β and ᾱ (T,), float32, for training code. The arithmetic of the
            steps uses float64 tables.
    """

    compatible_names = DIFFUSION_FAMILY
    extensions = frozenset({"compat"})
    predictions: ClassVar[tuple[str, ...]] = ("epsilon", "sample", "v_prediction")

    betas: torch.Tensor
    alphas: torch.Tensor
    alphas_cumprod: torch.Tensor
    _level: Array

    def _set_up(self, *, zero_snr: bool = False, finite_snr: bool = False) -> None:
        """Check the shared arguments and make the tables.

        `finite_snr` keeps the last ᾱ of a zero-terminal-SNR schedule at 2⁻²⁴, for solvers that divide by it.
        """
        config = self.config
        check_choice("timestep_spacing", config.timestep_spacing, SPACINGS)
        check_choice("prediction_type", config.prediction_type, self.predictions)
        check_count("steps_offset", config.steps_offset, least=0)
        self._check_limits()
        self.prediction_type = config.prediction_type
        betas = make_betas(
            config.beta_schedule,
            config.num_train_timesteps,
            config.beta_start,
            config.beta_end,
            config.trained_betas,
            zero_snr,
            torch.float32 if config.compat else torch.float64,
        )
        level = signal_level(betas)
        if zero_snr and finite_snr:
            level[-1] = ALMOST_ZERO_SNR
        self._clip = float(config.clip_sample_range) if config.get("clip_sample") else 0.0
        self._thresholds = bool(config.get("thresholding"))
        self._limits = self._thresholds or self._clip > 0
        self.betas, self.alphas, self.alphas_cumprod = betas.float(), (1 - betas).float(), level.float()
        self._level = level.double().numpy()
        self._plans = {}
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[torch.Tensor, torch.Tensor]] = {}
        total = config.num_train_timesteps
        self.timesteps = torch.arange(total - 1, -1, -1)

    def _check_limits(self) -> None:
        config = self.config
        if config.get("clip_sample"):
            check_number("clip_sample_range", config.clip_sample_range, low=0, open_low=True)
        if config.get("thresholding"):
            check_number("dynamic_thresholding_ratio", config.dynamic_thresholding_ratio, low=0, high=1)
            check_number("sample_max_value", config.sample_max_value, low=1)

    def _spaced(self, num: int) -> Array:
        config = self.config
        return spaced_timesteps(
            config.timestep_spacing, num, config.num_train_timesteps, config.steps_offset, compat=config.compat
        )

    def _levels_at(self, times: Array) -> Array:
        """ᾱ at whole timesteps; `InputError` for one beyond the table."""
        if times.max() >= len(self._level):
            raise InputError(
                f"timestep {int(times.max())} is outside the trained 0 … {len(self._level) - 1}: "
                "lower steps_offset or the number of steps, or leave compat off"
            )
        return self._level[times.astype(np.int64)]

    def _refuse_undefined_start(self, times: Array) -> None:
        """ε says nothing about x₀ where no signal is left: a zero-terminal-SNR run must not start there with ε."""
        if self.config.compat or self.prediction_type != "epsilon":
            return
        if bool((self._levels_at(times) == 0).any()):
            raise InputError(
                "with rescale_betas_zero_snr no signal is left at the last training timestep, where an epsilon "
                "prediction cannot determine x0: use prediction_type='v_prediction' or 'sample' (with a network "
                "trained for it), or timestep_spacing='leading'"
            )

    def alpha_sigma(
        self, timesteps: torch.Tensor | Sequence[float] | float, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """α = √ᾱ_t and σ = √(1 − ᾱ_t) at whole training timesteps 0 … T − 1, in the shape of `timesteps`."""
        times = torch.as_tensor(timesteps)
        if times.device.type == "cpu":
            self._check_range(times)
        alpha, sigma = self._table(times.device, dtype)
        times = times.long()
        return alpha[times], sigma[times]

    def _check_range(self, times: torch.Tensor) -> None:
        low, high = (float(bound) for bound in times.aminmax()) if times.numel() else (0.0, 0.0)
        if low < 0 or high > len(self._level) - 1:
            raise InputError(f"timesteps must lie in 0 … {len(self._level) - 1}, got {low:g} … {high:g}")

    def _table(self, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """(√ᾱ, √(1 − ᾱ)) on a device, computed in float64 and kept."""
        found = self._tables.get((device, dtype))
        if found is None:
            level = torch.from_numpy(self._level)
            found = level.sqrt().to(device, dtype), (1 - level).sqrt().to(device, dtype)
            self._tables[device, dtype] = found
        return found

    def _limit(self, x0: torch.Tensor) -> torch.Tensor:
        """A fresh x̂₀ limited as the config asks: dynamic thresholding first, else static clipping."""
        if self._thresholds:
            return dynamic_threshold(x0, self.config.dynamic_thresholding_ratio, self.config.sample_max_value)
        return hardtanh_(x0, -self._clip, self._clip)
