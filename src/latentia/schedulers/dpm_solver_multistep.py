"""DPM-Solver and DPM-Solver++: few-step solvers of the diffusion ODE and SDE that reuse past predictions."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentia.core.arguments import check_number
from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError, check_choice
from latentia.schedulers.clock import listed_positions
from latentia.schedulers.ddpm import VARIANCES
from latentia.schedulers.diffusion import DiffusionScheduler
from latentia.schedulers.dpm_solver import (
    ALGORITHMS,
    SOLVERS,
    THIRD_ORDERS,
    Path,
    earlier,
    make_path,
    multistep_weights,
)
from latentia.schedulers.prediction import affine, direction, eps_coefficients, operands, x0_coefficients
from latentia.schedulers.scheduler import LazyX0, StepOutput
from latentia.schedulers.sigma import FINAL_SIGMAS, noise_ratio
from latentia.schedulers.spacing import (
    Array,
    check_num_steps,
    chosen_respacing,
    given_timesteps,
    multistep_timesteps,
    respaced_sigmas,
    sigmas_to_timesteps,
)

RELATIVES = {"deis": "dpmsolver++", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}
"""Names in the configs of other multistep solvers, and what stands in for them here."""

SHORT_RUN = 15
"""Below this many steps `lower_order_final` lowers the order of the last steps."""


class DPMSolverMultistepScheduler(DiffusionScheduler):
    """DPM-Solver(++) multistep (Lu et al., 2022, arXiv 2206.00927 and 2211.01095).

    Each step is x' = c_x x + w₀ m₀ + w₁ m₁ + w₂ m₂ (+ c_z z) of the last predictions m; `dpm_solver` has the weights.
    Order 1 of `dpmsolver++` is DDIM; order 1 of `sde-dpmsolver++` is DDIM with η = 1.

    Args:
        solver_order: 1, 2 or 3 predictions; 2 for guided sampling, 3 for unconditional.
        prediction_type: `epsilon`, `sample`, `v_prediction`, or with `use_flow_sigmas` `flow_prediction`.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of x̂₀ (pixels only).
        algorithm_type: `dpmsolver`, `dpmsolver++`, `sde-dpmsolver` or `sde-dpmsolver++`.
        solver_type: second-order form, `midpoint` or `heun`.
        lower_order_final: lower the order of the last steps of runs shorter than 15.
        euler_at_final: always end with a first-order step.
        use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas, use_lu_lambdas: respace κ; at most one.
        use_flow_sigmas, flow_shift: the straight path α = 1 − σ with σ ← sσ/(1 + (s − 1)σ).
        final_sigmas_type: end at `zero` (`++` forms only) or at `sigma_min`.
        lambda_min_clipped: leave out timesteps with λ below this (−5.1 for cosine schedules).
        variance_type: `learned` or `learned_range` when the network has extra variance channels; they are ignored.
            The `fixed_*` names of DDPM configs mean nothing here.
        use_dynamic_shifting, time_shift_type: flow_shift = exp(mu), `mu` given to `set_timesteps`.
        third_order: order 3 as `published`, which converges with order 2, or `corrected`, which reaches 3.
        compat: Diffusers 0.42.1's timestep lists and its constant in third-order `sde-dpmsolver++`.
        The other arguments are those of `DDIMScheduler`.
    """

    predictions = ("epsilon", "sample", "v_prediction", "flow_prediction")
    extensions = frozenset({"compat", "third_order"})
    step_options = frozenset({"variance_noise"})
    _path: Path
    _weights: list[list[tuple[float, ...]]]
    _rows: list[tuple[float, ...]]
    _orders: list[int]
    _history: tuple[torch.Tensor, ...]

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        solver_order: int = 2,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        algorithm_type: str = "dpmsolver++",
        solver_type: str = "midpoint",
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        use_karras_sigmas: bool | None = False,
        use_exponential_sigmas: bool | None = False,
        use_beta_sigmas: bool | None = False,
        use_lu_lambdas: bool | None = False,
        use_flow_sigmas: bool | None = False,
        flow_shift: float | None = 1.0,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -math.inf,
        variance_type: str | None = None,
        timestep_spacing: str = "linspace",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        compat: bool = False,
        third_order: str = "published",
    ) -> None:
        self._set_up(zero_snr=rescale_betas_zero_snr, finite_snr=True)
        self._algorithm = RELATIVES.get(algorithm_type, algorithm_type)
        self._solver = RELATIVES.get(solver_type, solver_type)
        self._check_choices()
        self._data = self._algorithm.endswith("++")
        self._respacing = chosen_respacing(
            karras=use_karras_sigmas, exponential=use_exponential_sigmas, beta=use_beta_sigmas, lu=use_lu_lambdas
        )
        self._table_kappa = noise_ratio(self._level)
        self.sigmas = torch.from_numpy(self._table_kappa).float()
        self.timesteps = self.timesteps.float()
        self._off_table = False
        self._trims = variance_type in ("learned", "learned_range")
        self._reach = max(solver_order - 2, 0)
        self._shift = check_number("flow_shift", 1.0 if flow_shift is None else flow_shift, low=0, open_low=True)

    def _check_choices(self) -> None:
        config = self.config
        check_choice("algorithm_type", self._algorithm, ALGORITHMS)
        check_choice("solver_type", self._solver, SOLVERS)
        check_choice("final_sigmas_type", config.final_sigmas_type, FINAL_SIGMAS)
        check_choice("third_order", config.third_order, THIRD_ORDERS)
        check_choice("time_shift_type", config.time_shift_type, ("exponential",))
        if config.variance_type is not None:
            check_choice("variance_type", config.variance_type, VARIANCES)
        if config.solver_order not in (1, 2, 3):
            raise InputError(f"solver_order must be 1, 2 or 3, got {config.solver_order}")
        if config.final_sigmas_type == "zero" and not self._algorithm.endswith("++"):
            raise InputError(
                f"algorithm_type={self._algorithm!r} divides by the final sigma: use final_sigmas_type='sigma_min'"
            )
        if self.prediction_type == "flow_prediction" and not config.use_flow_sigmas:
            raise InputError("prediction_type='flow_prediction' needs use_flow_sigmas=True")

    # -- one run -----------------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        mu: float | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> None:
        """Choose `num_inference_steps` timesteps (1 … T), or give the descending list; `InputError` otherwise.

        `mu` sets flow_shift = exp(mu) for this run; it needs `use_dynamic_shifting`.
        """
        config = self.config
        if (num_inference_steps is None) == (timesteps is None):
            raise InputError("pass exactly one of num_inference_steps and timesteps")
        if mu is not None and not config.use_dynamic_shifting:
            raise InputError("mu needs use_dynamic_shifting=True")
        shift = math.exp(mu) if mu is not None else self._shift
        if timesteps is not None:
            chooser = "flow" if config.use_flow_sigmas else self._respacing
            if chooser:
                raise InputError(f"timesteps cannot be given with use_{chooser}_sigmas or lambdas: they are chosen")
            times = np.trunc(given_timesteps(timesteps, config.num_train_timesteps))
            own = times, self._table_kappa[times.astype(np.int64)]
            self._start_run(None, lambda: self._plan(*own), device)
        else:
            num = check_num_steps(num_inference_steps, len(self))
            self._start_run((num, shift), lambda: self._plan(*self._spaced_sigmas(num, shift)), device)
        self._history = ()

    def _spaced_sigmas(self, num: int, shift: float) -> tuple[Array, Array]:
        """Timesteps and noise levels of a run of `num` steps."""
        config, table = self.config, self._table_kappa
        total = config.num_train_timesteps
        if self._respacing:
            sigmas = respaced_sigmas(self._respacing, float(table[0]), float(table[-1]), num)
            times = sigmas_to_timesteps(sigmas, table)
            return (times.round() if self._respacing in ("karras", "lu") else times), sigmas
        if config.use_flow_sigmas:
            sigmas = 1.0 - np.linspace(1, 1 / total, num + 1)
            sigmas = (shift * sigmas / (1 + (shift - 1) * sigmas))[:0:-1].copy()
            return sigmas * total, sigmas
        usable = int((-np.log(table) >= config.lambda_min_clipped).sum())
        times = multistep_timesteps(
            config.timestep_spacing, num, total, usable, config.steps_offset, compat=config.compat
        )
        return times, np.interp(times, np.arange(total), table)

    def _plan(self, times: Array, levels: Array) -> tuple[Array, torch.dtype, dict[str, Any]]:
        """Per-step numbers: the solver's weights for every order, and how predictions are converted."""
        config = self.config
        last = float(self._table_kappa[0]) if config.final_sigmas_type == "sigma_min" else 0.0
        sigmas = np.append(levels, last)
        path = make_path(sigmas, bool(config.use_flow_sigmas))
        alpha, sigma = path.alpha[:-1], path.sigma[:-1]
        clean = x0_coefficients(self.prediction_type, alpha, sigma)
        noisy = eps_coefficients(self.prediction_type, alpha, sigma)
        scale, ratio = direction(*(clean if self._data else noisy))
        scale = np.ones_like(scale) if self._limits else scale
        columns = *clean, ratio, scale, 1 / sigma, -alpha / sigma
        state = {
            "sigmas": torch.from_numpy(sigmas).float(),
            "_path": path,
            "_weights": [self._weights_of(order, path, scale) for order in range(1, config.solver_order + 1)],
            "_rows": list(zip(*(column.tolist() for column in columns))),
            "_orders": self._highest_orders(len(levels)),
            "_off_table": self._respacing is not None,
        }
        return np.trunc(times), torch.int64, state

    def _weights_of(self, order: int, path: Path, scale: Array) -> list[tuple[float, ...]]:
        """The solver's weights for predictions that are kept divided by the `scale` of the step they were made in."""
        config = self.config
        weights = multistep_weights(self._algorithm, self._solver, order, path, config.third_order, config.compat)
        for age in range(order):
            weights[1 + age] = weights[1 + age] * earlier(scale, age)
        return list(zip(*(column.tolist() for column in weights)))

    def _highest_orders(self, num: int) -> list[int]:
        config = self.config
        short = config.lower_order_final and num < SHORT_RUN
        orders = [int(config.solver_order)] * num
        if short and num > 1:
            orders[-2] = min(orders[-2], 2)
        if short or config.euler_at_final or config.final_sigmas_type == "zero":
            orders[-1] = 1
        return orders

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor, ...]:
        """The sample at the next timestep; see `SchedulerMixin.step`.

        A step that does not follow the last one starts a new history. `variance_noise` is z itself (SDE forms).
        """
        index = self.index_for_timestep(timestep)
        history = self._history if index == self._step_index else ()
        if self._trims:
            model_output = model_output[:, : sample.shape[1]]
        y, x = operands(model_output, sample)
        p, q, ratio, scale, unscaled_x, unscaled_x0 = self._rows[index]
        x0: LazyX0
        if self._limits:
            newest = x0 = self._limit(affine(p, x, q, y))
            if not self._data:
                newest = affine(unscaled_x, x, unscaled_x0, x0)
        else:
            newest = torch.add(y, x, alpha=ratio) if ratio else y
            x0 = (scale, newest, 0.0, newest) if self._data else (p, x, q, y)
        order = min(len(history) + 1, self._orders[index])
        c_x, w0, w1, w2, c_z = self._weights[order - 1][index]
        previous = affine(c_x, x, w0, newest)
        if order > 1:
            previous.add_(history[0], alpha=w1)
            if order > 2:
                previous.add_(history[1], alpha=w2)
        if c_z:
            previous.add_(self._noise(x, generator, variance_noise), alpha=c_z)
        self._history = (newest, *history[: self._reach])
        output = self._finish(index, previous, x0, sample)
        return output if return_dict else (output.prev_sample,)

    # -- forward process ---------------------------------------------------------------------------------------

    def alpha_sigma(
        self, timesteps: torch.Tensor | Sequence[float] | float, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """α and σ at training timesteps 0 … T − 1; with `use_flow_sigmas` σ = t/T and α = 1 − σ.

        A timestep of the present schedule has that schedule's noise level; any other has that of the training table.
        """
        times = torch.as_tensor(timesteps)
        if self.config.use_flow_sigmas:
            sigma = times.to(dtype) / len(self)
            return self._scheduled(times, 1 - sigma, sigma) if self._clock else (1 - sigma, sigma)
        alpha, sigma = super().alpha_sigma(times, dtype)
        return self._scheduled(times, alpha, sigma) if self._off_table and self._clock else (alpha, sigma)

    def _scheduled(
        self, times: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        current = self._step_index if self._step_index is not None else self._begin_index
        position, found = listed_positions(times, self.timesteps.to(times.device), current)
        listed = [torch.from_numpy(side).to(times.device, alpha.dtype) for side in self._path[:2]]
        return torch.where(found, listed[0][position], alpha), torch.where(found, listed[1][position], sigma)
