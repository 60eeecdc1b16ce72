"""PNDM: linear multistep on the manifold of noise levels, with or without its Runge-Kutta start."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentia.core.config import register_to_config
from latentia.core.rng import Generators
from latentia.errors import InputError
from latentia.schedulers.diffusion import DiffusionScheduler
from latentia.schedulers.prediction import affine, eps_coefficients, operands, x0_coefficients
from latentia.schedulers.scheduler import StepOutput
from latentia.schedulers.spacing import Array, check_num_steps

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the newest, second-newest, … prediction, by how many there are."""

RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


def transfer(level: Array, level_next: Array) -> tuple[Array, Array]:
    """(a, b) of φ(x, ε, ᾱ → ᾱ') = a x + b ε (Liu et al., 2022, eq. 11): the DDIM step, free of cancellation."""
    a = np.sqrt(level_next / level)
    denominator = level * np.sqrt(1 - level_next) + np.sqrt(level * (1 - level) * level_next)
    return a, -(level_next - level) / denominator


class PNDMScheduler(DiffusionScheduler):
    """Pseudo Numerical Methods for Diffusion Models (Liu et al., 2022, arXiv 2202.09778).

    A step moves x with φ and a weighted mean of the last four predictions, (55 e₀ − 59 e₁ + 37 e₂ − 9 e₃)/24. The
    first ones are made by Runge-Kutta (`skip_prk_steps=False`) or by lower orders (`True`, as in Stable Diffusion).

    `timesteps` is longer than n, one entry for every network evaluation:
    - `skip_prk_steps`: t₀, t₁, t₁, t₂, …: n + 1 (1 for n = 1), the first step being repeated from t₀ with the mean
      of both its slopes;
    - otherwise the first k = min(3, n − 1) steps take four evaluations, at t, twice halfway, and at the next t:
      n + 3k, n + 9 from n = 4 on.

    Args:
        skip_prk_steps: leave the Runge-Kutta start out.
        set_alpha_to_one: end at ᾱ = 1 instead of ᾱ₀.
        prediction_type: `epsilon` or `v_prediction`.
        average_epsilon: turn each v into ε before averaging, which keeps the second order. By default the v are
            averaged and the mean turned into ε, as Diffusers does: first order. Without effect on `epsilon`.
        compat: Diffusers 0.42.1's timestep lists and steps to t − ⌊T/n⌋.
        The other arguments are those of `DDIMScheduler`.
    """

    predictions = ("epsilon", "v_prediction")
    extensions = frozenset({"compat", "average_epsilon"})
    _rows: list[tuple[float, ...]]
    _turn_rows: Sequence[list[tuple[float, ...]]]
    _prk: int = 0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        skip_prk_steps: bool = False,
        set_alpha_to_one: bool = False,
        prediction_type: str = "epsilon",
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        compat: bool = False,
        average_epsilon: bool = False,
    ) -> None:
        self._set_up()
        self._converts = average_epsilon and prediction_type == "v_prediction"
        self._repeats = bool(skip_prk_steps)
        self._last_level = 1.0 if set_alpha_to_one else float(self._level[0])
        self.final_alpha_cumprod = torch.tensor(self._last_level, dtype=torch.float32)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose a run of `num_inference_steps` (1 … T) on `device`; raises `InputError` for any other number."""
        num = check_num_steps(num_inference_steps, self.config.num_train_timesteps)
        self._start_run(num, lambda: self._plan(num), device)
        self.num_inference_steps = num
        self._forget()

    def _plan(self, num: int) -> tuple[Array, torch.dtype, dict[str, Any]]:
        times = self._spaced(num).round()
        stride = self.config.num_train_timesteps // num
        steps = 0 if self.config.skip_prk_steps else min(3, len(times) - 1)
        if self.config.skip_prk_steps:
            plan = self._repeated_plan(times)
        else:
            plan = self._runge_kutta_plan(times, steps, stride)
        visits, origins, targets = (np.array(side, dtype=np.float64) for side in zip(*plan))
        if self.config.compat:
            targets = self._compat_targets(visits, origins, targets, 4 * steps, stride)
        state = {"_prk": 4 * steps, "_rows": self._make_rows(visits, origins, targets), "_turn_rows": ()}
        if self.config.compat and self.config.skip_prk_steps:
            above = np.minimum(visits + stride, len(self) - 1)
            plain = self._make_rows(visits, visits, visits - stride)
            state["_turn_rows"] = (plain, self._make_rows(visits, above, visits))
        return visits, torch.int64, state

    def _repeated_plan(self, times: Array) -> list[tuple[float, float, float]]:
        """(visit, from, to) of each evaluation when the first step is done twice."""
        following = [*times[1:], -1.0]
        plan = [(t, t, after) for t, after in zip(times, following)]
        return plan if len(plan) == 1 else [plan[0], (times[1], times[0], times[1]), *plan[1:]]

    def _runge_kutta_plan(self, times: Array, steps: int, stride: int) -> list[tuple[float, float, float]]:
        """(visit, from, to) of each evaluation with `steps` Runge-Kutta steps of four in front."""
        plan = []
        for k in range(steps):
            t, after = times[k], times[k + 1]
            middle = after + stride // 2 if self.config.compat else (t + after) // 2
            plan += [(t, t, middle), (middle, t, middle), (middle, t, after), (after, t, after)]
        return plan + [(t, t, after) for t, after in zip(times[steps:], [*times[steps + 1 :], -1.0])]

    def _compat_targets(self, visits: Array, origins: Array, targets: Array, prk: int, stride: int) -> Array:
        """Where Diffusers 0.42.1 steps to: the stride below, whatever the list says."""
        position = np.arange(len(visits))
        half = np.where(position % 2 == 0, stride // 2, 0)
        below = np.where(position < prk, visits - half, visits - stride)
        if self.config.skip_prk_steps and len(visits) > 1:
            below[1] = visits[1]
            origins[1] = visits[1] + stride
        return below

    def set_begin_index(self, begin_index: int = 0) -> None:
        """See `SchedulerMixin.set_begin_index`; raises `InputError` inside a Runge-Kutta step."""
        if begin_index % 4 and begin_index < self._prk:
            raise InputError(
                f"a run cannot begin at position {begin_index}, inside a Runge-Kutta step (each takes four): "
                "use skip_prk_steps=True, or begin at a multiple of 4"
            )
        super().set_begin_index(begin_index)

    def _forget(self) -> None:
        self._turn = 0
        self._history: tuple[torch.Tensor, ...] = ()
        self._start: torch.Tensor | None = None
        self._mean: torch.Tensor | None = None

    def _make_rows(self, visits: Array, origins: Array, targets: Array) -> list[tuple[float, ...]]:
        """Rows (A, B, p, q, ex, ey): the step is A·x + B·(mean prediction), x̂₀ = p·x + q·y and ε̂ = ex·x + ey·y."""
        level, seen = self._levels_at(origins), self._levels_at(visits)
        after = np.where(targets < 0, self._last_level, self._level[np.maximum(targets, 0).astype(np.int64)])
        a, b = transfer(level, after)
        if self.prediction_type == "v_prediction" and not self._converts:
            a, b = a + b * np.sqrt(1 - level), b * np.sqrt(level)
        clean = x0_coefficients(self.prediction_type, np.sqrt(seen), np.sqrt(1 - seen))
        noisy = eps_coefficients(self.prediction_type, np.sqrt(seen), np.sqrt(1 - seen))
        return list(zip(*(column.tolist() for column in (a, b, *clean, *noisy))))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
        *,
        generator: Generators = None,
    ) -> StepOutput | tuple[torch.Tensor, ...]:
        """The sample for the next evaluation; see `SchedulerMixin.step`. The scheduler draws no noise.

        A step that does not follow the last one starts a new history.
        """
        index = self.index_for_timestep(timestep)
        if index != self._step_index:
            self._forget()
        turn = self._turn if self._turn_rows else index
        rows = self._turn_rows[turn == 1] if self._turn_rows else self._rows
        a, b, p, q, ex, ey = rows[index]
        self._turn += 1
        y, x = operands(model_output, sample)
        x0 = p, x, q, y
        if self._converts:
            y = affine(ex, x, ey, y)
        if index < self._prk:
            start, terms = self._runge_kutta(index, x, y)
        else:
            start, terms = self._multistep(turn, x, y)
        if terms:
            previous = torch.mul(start, a)
            for weight, term in terms:
                previous.add_(term, alpha=b * weight)
        else:
            previous = start.clone()
        output = self._finish(index, previous, x0, sample)
        return output if return_dict else (output.prev_sample,)

    def _runge_kutta(
        self, index: int, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, list[tuple[float, torch.Tensor]]]:
        """Where the step starts from and which predictions it averages, in a Runge-Kutta group of four."""
        stage = index % 4
        if stage == 0:
            self._start, self._mean = x, y * RUNGE_KUTTA[0]
            self._history = (y, *self._history[:3])
        if self._start is None or self._mean is None:
            raise InputError("this timestep lies inside a Runge-Kutta step: start a run at position 0, 4, 8 or later")
        if stage in (1, 2):
            self._mean = torch.add(self._mean, y, alpha=RUNGE_KUTTA[stage])
        if stage < 3:
            return self._start, [(1.0, y)]
        start, mean = self._start, self._mean
        self._start = self._mean = None
        return start, [(1.0, mean), (RUNGE_KUTTA[3], y)]

    def _multistep(
        self, turn: int, x: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, list[tuple[float, torch.Tensor]]]:
        """Where the step starts from and which predictions it averages, in a linear multistep.

        The second turn repeats the first. Turns are positions in the schedule; with `compat`, as in Diffusers, they
        are counted from where the run begins, so that one that begins in the middle lags a step behind.
        """
        if turn == 1 and self._repeats:
            start, self._start = self._start, None
            if start is None:  # a run that begins here: the next entry, at the same timestep, takes the step
                return x, []
            return start, [(0.5, y), (0.5, self._history[0])]
        self._start = x if turn == 0 and self._repeats else None
        self._history = (y, *self._history[:3])
        return x, list(zip(ADAMS_BASHFORTH[len(self._history) - 1], self._history))
