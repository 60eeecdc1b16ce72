"""SchedulerMixin: what every scheduler is, whatever its mathematics.

A scheduler says which timesteps to visit (`set_timesteps`), takes one step from noise towards data (`step`), and
makes noisy samples for training (`add_noise`). `set_timesteps` rebinds all that a run changes and never mutates it,
so a shallow copy (`fresh`) is a scheduler of its own: runs that share a pipeline do not disturb each other.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latentia.core.outputs import Output
from latentia.core.rng import Generators, randn
from latentia.errors import InputError
from latentia.schedulers.clock import Clock
from latentia.schedulers.prediction import affine, prediction_target, x0_coefficients
from latentia.schedulers.saved import SavedScheduler

DIFFUSION_FAMILY = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
)
"""Schedulers that solve the same diffusion and may be swapped for one another through `from_config`."""

LazyX0 = torch.Tensor | tuple[float, torch.Tensor, float, torch.Tensor]
"""x̂₀ itself, or (p, x, q, y) for p·x + q·y."""

KEPT_PLANS = 16
"""So many run lengths a scheduler remembers the numbers of."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All numbers of a run, made once for a run length and shared by every run of it; never changed.

    `state` holds the attributes that a run starts with.
    """

    timesteps: torch.Tensor
    times: list[float]
    last: dict[float, int]
    state: Mapping[str, Any]


class StepOutput(Output):
    """What `step` returns: `prev_sample`, and `pred_original_sample` (x̂₀), computed when first read.

    x̂₀ comes from the tensors that were given to `step`: read it before changing those in place.
    """

    __slots__ = ("_x0", "prev_sample")

    def __init__(self, prev_sample: torch.Tensor, x0: LazyX0) -> None:
        self.prev_sample = prev_sample
        self._x0 = x0

    @property
    def pred_original_sample(self) -> torch.Tensor:
        """x̂₀, the network's present guess of the clean sample, in the dtype of `prev_sample`."""
        if isinstance(self._x0, tuple):
            self._x0 = affine(*self._x0)
        return self._x0.to(self.prev_sample.dtype)

    def to_tuple(self) -> tuple[torch.Tensor, ...]:
        """(prev_sample, pred_original_sample)."""
        return self.prev_sample, self.pred_original_sample

    def __getitem__(self, key: int | slice | str) -> Any:
        if key in (0, "prev_sample"):
            return self.prev_sample
        if isinstance(key, str) and key != "pred_original_sample":
            raise KeyError(f"StepOutput has no {key!r}; it has: prev_sample, pred_original_sample")
        return self.pred_original_sample if isinstance(key, str) else self.to_tuple()[key]

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"StepOutput(prev_sample={self.prev_sample!r})"


class SchedulerMixin(SavedScheduler, ABC):
    """Base of every scheduler: config on disk, place in the schedule, forward noising.

    Class attributes:
        order: network evaluations per step (Heun 2).
        step_options: keyword arguments that `step` takes beyond `generator` and `return_dict`.
    """

    timesteps: torch.Tensor
    num_inference_steps: int | None = None
    prediction_type: str
    _clock: Clock | None = None
    _step_index: int | None = None
    _begin_index: int | None = None
    _plans: dict[Any, Plan]

    @property
    def compatibles(self) -> list[type["SchedulerMixin"]]:
        """Scheduler classes that can be built from this one's config, this class included."""
        public = importlib.import_module("latentia")
        names = {type(self).__name__, *self.compatible_names} & set(public.__all__)
        return [getattr(public, name) for name in sorted(names)]

    # -- one run -----------------------------------------------------------------------------------------------

    @abstractmethod
    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose `num_inference_steps` timesteps on `device` and start a new run.

        Raises `InputError` unless it is a whole number from 1 to `num_train_timesteps`.
        """

    @abstractmethod
    def step(self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The sample at the next, less noisy timestep.

        Args:
            model_output: the network's prediction, shape of `sample`.
            timestep: an element of `timesteps`, the one that `model_output` was computed at.
            sample: (B, …) at `timestep`. Half precisions are computed in float32; the result has its dtype.
            generator: source of noise where the scheduler draws any (one, or one per sample); others ignore it.
            return_dict: False returns a plain tuple.

        Returns:
            `StepOutput` with `prev_sample` and `pred_original_sample`.

        Raises:
            InputError: `timestep` is not in the schedule, shapes differ, or `set_timesteps` was not called.
        """

    @property
    def step_index(self) -> int | None:
        """Position of the next step in `timesteps`; None before the first step."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Position that a run starts at when it skips the noisiest steps (image to image)."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say that the run starts at `timesteps[begin_index]`."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: Any) -> int:
        """Position of `timestep` in `timesteps`; `InputError` when it is not there or `set_timesteps` is due."""
        clock = self._clock
        if clock is None:
            raise InputError(f"call {type(self).__name__}.set_timesteps(num_inference_steps) before stepping")
        expected = self._step_index if self._step_index is not None else self._begin_index
        return clock.locate(timestep, expected or 0)

    def _start_run(
        self,
        key: Any,
        make: Callable[[], tuple[np.ndarray, torch.dtype, dict[str, Any]]],
        device: torch.device | str | None,
    ) -> None:
        """Rebind everything that a run changes.

        `make` gives (timesteps, their dtype, other attributes); it is called once for a `key`, always for None.
        """
        plan = self._plans.get(key) if key is not None else None
        if plan is None:
            times, dtype, state = make()
            held = torch.as_tensor(np.ascontiguousarray(times)).to(dtype)
            values = held.tolist()
            plan = Plan(held, values, {time: i for i, time in enumerate(values)}, state)
            if len(self._plans) >= KEPT_PLANS:
                self._plans.clear()
            if key is not None:
                self._plans[key] = plan
        self.num_inference_steps = len(plan.times)
        self.timesteps = plan.timesteps.to(device, copy=True)
        self._clock = Clock(self.timesteps, plan.times, plan.last)
        self._step_index = None
        self._begin_index = None
        self.__dict__.update(plan.state)

    def _finish(self, index: int, previous: torch.Tensor, x0: LazyX0, sample: torch.Tensor) -> StepOutput:
        """Count the step, and return its result in the dtype of `sample`."""
        self._step_index = index + 1
        if previous.dtype is not sample.dtype:
            previous = previous.to(sample.dtype)
        return StepOutput(previous, x0)

    def _noise(
        self, like: torch.Tensor, generator: Generators, given: torch.Tensor | None = None, name: str = "variance_noise"
    ) -> torch.Tensor:
        if given is None:
            return randn(like.shape, generator, like.device, like.dtype)
        if generator is not None:
            raise InputError(f"pass either generator or {name}, not both")
        return given.to(like.device, like.dtype)

    # -- forward process ---------------------------------------------------------------------------------------

    @abstractmethod
    def alpha_sigma(
        self, timesteps: torch.Tensor | Sequence[float] | float, dtype: torch.dtype = torch.float32
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Signal α and noise σ of x_t = α x₀ + σ ε at training timesteps, each in the shape of `timesteps`.

        Raises `InputError` for timesteps outside the training range (checked where that costs no device wait).
        """

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | Sequence[float] | float
    ) -> torch.Tensor:
        """x_t = α x₀ + σ ε at `timesteps` ((B,) or scalar), for training and for starting from an image."""
        alpha, sigma = self._forward(original_samples, noise, timesteps)
        return (original_samples * alpha).add_(noise * sigma).to(original_samples.dtype)

    def get_velocity(
        self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | Sequence[float] | float
    ) -> torch.Tensor:
        """v = α ε − σ x₀ at `timesteps` for a clean `sample` (Salimans & Ho, 2022)."""
        alpha, sigma = self._forward(sample, noise, timesteps)
        return (noise * alpha).sub_(sample * sigma).to(sample.dtype)

    def training_target(
        self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | Sequence[float] | float
    ) -> torch.Tensor:
        """What the network should predict at `timesteps`: ε, x₀, v or ε − x₀ by this scheduler's prediction type."""
        alpha, sigma = self._forward(x0, noise, timesteps)
        return prediction_target(self.prediction_type, x0, noise, alpha, sigma)

    def predict_x0(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | Sequence[float] | float,
        sample: torch.Tensor,
    ) -> torch.Tensor:
        """x̂₀ (not clipped) from a prediction at `timestep` ((B,) or scalar) and the sample it was made from."""
        alpha, sigma = self._forward(sample, model_output, timestep)
        p, q = x0_coefficients(self.prediction_type, alpha, sigma)
        return (sample * p + model_output * q).to(sample.dtype)

    def _forward(
        self, x: torch.Tensor, y: torch.Tensor, timesteps: torch.Tensor | Sequence[float] | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """α and σ shaped to multiply `x`, in float32 at least."""
        if x.shape != y.shape:
            raise InputError(f"the two tensors must have one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
        times = torch.as_tensor(timesteps, device=x.device)
        if times.ndim > 1 or (times.ndim == 1 and len(times) not in (1, len(x))):
            raise InputError(f"got {tuple(times.shape)} timesteps for a batch of {len(x)}: give one, or one per sample")
        alpha, sigma = self.alpha_sigma(times, torch.float64 if x.dtype == torch.float64 else torch.float32)
        shape = (-1,) + (1,) * (x.ndim - 1)
        return alpha.reshape(shape), sigma.reshape(shape)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)
