"""Sigma schedulers: those that see the sample as x₀ + κ ε with κ = σ/α (Karras et al., 2022).

The variance-preserving sample is x = (x₀ + κ ε) / √(κ² + 1), which is what the network was trained on:
`scale_model_input` makes it. A run starts from noise of standard deviation `init_noise_sigma`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentia.errors import InputError, check_choice
from latentia.schedulers.clock import listed_positions
from latentia.schedulers.diffusion import DiffusionScheduler
from latentia.schedulers.prediction import x0_coefficients
from latentia.schedulers.spacing import (
    Array,
    check_num_steps,
    chosen_respacing,
    given_timesteps,
    respaced_sigmas,
    sigmas_to_timesteps,
)

FINAL_SIGMAS = ("zero", "sigma_min")


def noise_ratio(level: Array) -> Array:
    """κ = √((1 − ᾱ)/ᾱ)."""
    with np.errstate(divide="ignore"):
        return np.sqrt((1 - level) / level)


class SigmaScheduler(DiffusionScheduler):
    """Base of the schedulers that step in κ.

    Attributes:
        sigmas: κ of each entry of `timesteps` and of where the last step ends, float32 on the CPU.
    """

    sigmas: torch.Tensor
    _kappa: Array
    _rows: list[tuple[float, ...]]
    _input_scales: list[float]
    _input_scales32: tuple[torch.Tensor, ...]
    _off_table: bool = False

    def _set_up(self, *, zero_snr: bool = False, finite_snr: bool = True) -> None:
        super()._set_up(zero_snr=zero_snr, finite_snr=finite_snr)
        config = self.config
        self._respacing = chosen_respacing(
            karras=config.get("use_karras_sigmas"),
            exponential=config.get("use_exponential_sigmas"),
            beta=config.get("use_beta_sigmas"),
        )
        check_choice("final_sigmas_type", config.get("final_sigmas_type", "zero"), FINAL_SIGMAS)
        self._table_kappa = noise_ratio(self._level)
        self._kappa = np.append(self._table_kappa[::-1], 0.0)
        self.sigmas = torch.from_numpy(self._kappa).float()
        self.timesteps = self.timesteps.float()

    @property
    def init_noise_sigma(self) -> float:
        """κ_max, or √(κ_max² + 1) for leading spacing."""
        highest = float(self._kappa.max())
        return highest if self.config.timestep_spacing != "leading" else (highest**2 + 1) ** 0.5

    def _check_count(self, num_inference_steps: int | None, timesteps: Sequence[float] | None) -> int | None:
        """The number of steps, or None when timesteps are given; `InputError` for both, neither or a bad one."""
        if (num_inference_steps is None) == (timesteps is None):
            raise InputError("pass exactly one of num_inference_steps and timesteps")
        if timesteps is not None and self._respacing:
            raise InputError(f"timesteps cannot be given with use_{self._respacing}_sigmas=True: it chooses them")
        return None if timesteps is not None else check_num_steps(num_inference_steps, len(self))

    def _choose(self, num: int | None, timesteps: Sequence[float] | None) -> tuple[Array, Array]:
        """Timesteps and their κ for a number of steps or a given list."""
        times = self._spaced(num) if num is not None else given_timesteps(timesteps, len(self))
        return times, np.interp(times, np.arange(len(self)), self._table_kappa)

    def _respace(self, kappa: Array, num: int, low: float | None = None, high: float | None = None) -> Array:
        """κ respaced between its own ends, or the given ones."""
        low = float(kappa[-1]) if low is None else low
        high = float(kappa[0]) if high is None else high
        return respaced_sigmas(str(self._respacing), low, high, num)

    def _timesteps_of(self, kappa: Array) -> Array:
        return sigmas_to_timesteps(kappa, self._table_kappa)

    def _run_state(self, kappa: Array, rows: list[tuple[float, ...]], off_table: bool) -> dict[str, Any]:
        """Attributes of a run: κ of each timestep and of the end, and the steps' numbers.

        `off_table` says that some timestep's κ is not that of the training table.
        """
        return {
            "_kappa": kappa,
            "sigmas": torch.from_numpy(kappa).float(),
            "_input_scales": (1 / np.sqrt(kappa**2 + 1)).tolist(),
            "_input_scales32": torch.from_numpy(1 / np.sqrt(kappa**2 + 1)).float().unbind(),
            "_rows": rows,
            "_off_table": off_table,
        }

    def _x0_coefficients(self, kappa: Array) -> tuple[Array, Array]:
        """(p, q) such that x̂₀ = p·x̃ + q·y for the sample x̃ = x₀ + κ ε."""
        alpha = 1 / np.sqrt(kappa**2 + 1)
        p, q = x0_coefficients(self.prediction_type, alpha, kappa * alpha)
        return p * alpha, q

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """The sample as the network expects it: x̃ / √(κ² + 1) with κ of `timestep`."""
        index = self.index_for_timestep(timestep)
        if sample.dtype is torch.float32:  # a ready-made scalar tensor saves the wrapping of a number
            return sample * self._input_scales32[index]
        return sample * self._input_scales[index]

    # -- forward process: the samples of these schedulers are x₀ + κ ε --------------------------------------------

    def alpha_sigma(
        self, timesteps: torch.Tensor | Sequence[float] | float, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """α = 1/√(κ² + 1) and σ = κ α at timesteps 0 … T − 1, fractional ones interpolated in κ.

        A timestep of the present schedule has that schedule's κ; any other has that of the training table.
        """
        kappa = self._kappa_at(torch.as_tensor(timesteps))
        alpha = (kappa**2 + 1).rsqrt()
        return alpha.to(dtype), (kappa * alpha).to(dtype)

    def _kappa_at(self, times: torch.Tensor) -> torch.Tensor:
        if times.device.type == "cpu":
            self._check_range(times)
        table = self._kappa_table(times.device)
        low = times.long().clamp(max=len(table) - 2) if len(table) > 1 else times.long()
        share = times.to(table.dtype) - low
        kappa = torch.lerp(table[low], table[(low + 1).clamp(max=len(table) - 1)], share)
        if not self._off_table:
            return kappa
        current = self._step_index if self._step_index is not None else self._begin_index
        listed = self.timesteps.to(times.device)
        position, found = listed_positions(times.to(listed.dtype), listed, current)
        return torch.where(found, self.sigmas.to(times.device)[position].to(kappa.dtype), kappa)

    def _kappa_table(self, device: torch.device) -> torch.Tensor:
        """Training κ on a device: float64, float32 where the device has no float64."""
        key = (device, torch.float32)
        if key not in self._tables:
            table = torch.from_numpy(self._table_kappa)
            table = table.float() if device.type == "mps" else table
            self._tables[key] = table.to(device), table.to(device)
        return self._tables[key][0]

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | Sequence[float] | float
    ) -> torch.Tensor:
        """x₀ + κ ε at `timesteps` ((B,) or scalar): divide by √(κ² + 1) before a network sees it."""
        alpha, sigma = self._forward(original_samples, noise, timesteps)
        return torch.addcmul(original_samples, noise, sigma / alpha).to(original_samples.dtype)

    def predict_x0(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | Sequence[float] | float,
        sample: torch.Tensor,
    ) -> torch.Tensor:
        """x̂₀ (not clipped) from a prediction at `timestep` and the sample x₀ + κ ε that `step` takes."""
        alpha, sigma = self._forward(sample, model_output, timestep)
        p, q = x0_coefficients(self.prediction_type, alpha, sigma)
        return (sample * (p * alpha) + model_output * q).to(sample.dtype)
