"""Looking into a running call: `callback_on_step_end`, ready-made callbacks, cancelling.

A callback is called after every turn of the loop as `callback(pipe, step_index, timestep, tensors)`.
`pipe` is this call's view of the pipeline (`call.PipelineCall`), `tensors` holds the names asked for;
it returns None (nothing changes) or a dict of the tensors to replace.
"""

import inspect
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from latentia.errors import Cancelled, InputError, check_choice

Callback = Callable[..., Mapping[str, Any] | None]

logger = logging.getLogger(__name__)


class CancelToken:
    """A switch that stops running calls from anywhere: another thread, a signal handler, a web request.

    `pipe(..., cancel=token)` raises `Cancelled` before the next step once `token.cancel()` was called;
    nothing is decoded.
    """

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Ask every call that holds this token to stop."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._event.is_set()

    def check(self) -> None:
        """Raise `Cancelled` if `cancel` was called."""
        if self.cancelled:
            raise Cancelled("the call was cancelled by its token; nothing was decoded")


@runtime_checkable
class DeclaresInputs(Protocol):
    """A callback that names the tensors it wants."""

    tensor_inputs: Sequence[str]


class PipelineCallback(ABC):
    """Base of callbacks that carry their own list of wanted tensors.

    Class attributes:
        tensor_inputs: names handed over in `callback_kwargs`, out of the pipeline's `_callback_tensor_inputs`.
    """

    tensor_inputs: Sequence[str] = ("latents",)

    @abstractmethod
    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: torch.Tensor, callback_kwargs: dict[str, Any]
    ) -> Mapping[str, Any] | None:
        """Look at, or return replacements for, the tensors after one turn."""

    def __call__(
        self, pipeline: Any, step_index: int, timestep: torch.Tensor, callback_kwargs: dict[str, Any]
    ) -> Mapping[str, Any] | None:
        """What the loop calls: `callback_fn`."""
        return self.callback_fn(pipeline, step_index, timestep, callback_kwargs)


class MultiPipelineCallbacks(PipelineCallback):
    """Several callbacks, in order; each sees what those before it replaced."""

    def __init__(self, callbacks: Sequence[PipelineCallback]) -> None:
        self.callbacks = list(callbacks)
        self.tensor_inputs = tuple(dict.fromkeys(name for c in self.callbacks for name in c.tensor_inputs))

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: torch.Tensor, callback_kwargs: dict[str, Any]
    ) -> Mapping[str, Any]:
        """Call every callback and return everything they replaced."""
        replaced: dict[str, Any] = {}
        for callback in self.callbacks:
            replaced |= check_returned(callback(pipeline, step_index, timestep, {**callback_kwargs, **replaced}))
        return replaced


class Trajectory(PipelineCallback):
    """Records the prediction x̂₀ along the way: the frames of a denoising strip.

    After the call `steps` are the recorded turns and `frames` the predictions, (B, ...) each on the CPU, in the
    space that is sampled; `pipe.decode(frame)` makes pictures of them. `every` counts turns; the last is always kept.
    """

    tensor_inputs = ("pred_original_sample",)

    def __init__(self, every: int = 1) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise InputError(f"Trajectory(every=...) counts turns: give an integer of at least 1, got {every!r}")
        self.every = every
        self._parts: dict[int, list[torch.Tensor]] = {}

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: torch.Tensor, callback_kwargs: dict[str, Any]
    ) -> None:
        """Keep this turn's prediction if its number is due."""
        if step_index % self.every == 0 or step_index == pipeline.num_timesteps - 1:
            kept = callback_kwargs["pred_original_sample"].detach().cpu()
            self._parts.setdefault(step_index, []).append(kept)

    @property
    def steps(self) -> list[int]:
        """The recorded turns, ascending."""
        return sorted(self._parts)

    @property
    def frames(self) -> list[torch.Tensor]:
        """x̂₀ at each recorded turn; chunks of one call are joined."""
        return [torch.cat(self._parts[step]) for step in self.steps]


def check_callback(callback: object) -> Callback | None:
    """The callback in its four-argument form. Raises `InputError` when it cannot be called that way.

    A list of callbacks becomes `MultiPipelineCallbacks`; a function of three arguments is taken as the older
    `(pipe, step_index, latents)`.
    """
    if callback is None or isinstance(callback, PipelineCallback):
        return callback
    if isinstance(callback, list | tuple) and callback and all(isinstance(c, PipelineCallback) for c in callback):
        return MultiPipelineCallbacks(callback)
    if not callable(callback) or isinstance(callback, type):
        raise InputError(
            f"callback_on_step_end must be a function (pipe, step_index, timestep, tensors), got {callback!r}; "
            "write one, or an instance of a PipelineCallback"
        )
    if _accepts(callback, 4):
        return callback
    if _accepts(callback, 3):
        logger.warning(
            "callback_on_step_end %s takes (pipe, step_index, latents); the full form is "
            "(pipe, step_index, timestep, tensors) and may return replaced tensors",
            getattr(callback, "__name__", "of three arguments"),
        )
        return _LatentsCallback(callback)
    raise InputError(
        f"callback_on_step_end takes {inspect.signature(callback)}, but is called with four positional arguments: "
        "(pipe, step_index, timestep, tensors)"
    )


def _accepts(function: Callable[..., Any], count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))
    except TypeError:
        return False
    except ValueError:  # built-ins without a signature
        return count == 4
    return True


class _LatentsCallback(PipelineCallback):
    """A function of the older form `(pipe, step_index, latents)`."""

    def __init__(self, function: Callable[..., Mapping[str, Any] | None]) -> None:
        self.function = function

    def callback_fn(
        self, pipeline: Any, step_index: int, timestep: torch.Tensor, callback_kwargs: dict[str, Any]
    ) -> Mapping[str, Any] | None:
        return self.function(pipeline, step_index, callback_kwargs["latents"])


def wanted_tensors(callback: Callback, asked: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Names to hand to the callback: its own `tensor_inputs`, else those asked for. Raises on unknown ones."""
    names = callback.tensor_inputs if isinstance(callback, DeclaresInputs) else asked
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InputError(f"callback_on_step_end_tensor_inputs must be a list of names, got {names!r}")
    for name in names:
        check_choice("callback tensor", name, known)
    return tuple(names)


def check_returned(returned: object) -> Mapping[str, Any]:
    """What a callback returned, as a dict. Raises `InputError` unless it is None or a dict."""
    if returned is None:
        return {}
    if not isinstance(returned, Mapping):
        raise InputError(
            f"callback_on_step_end returned {type(returned).__name__}: return None, or a dict of the tensors "
            "to replace such as {'latents': latents}"
        )
    return returned


def check_cancel(cancel: object) -> CancelToken | None:
    """A cancel token or None. Raises `InputError`."""
    if cancel is not None and not isinstance(cancel, CancelToken):
        raise InputError(f"cancel must be a CancelToken, got {cancel!r}: make one, pass it, and call its cancel()")
    return cancel
