"""One running call: the state that belongs to it and to nobody else.

A pipeline keeps nothing about its calls, so any number of threads may share it. What changes while
sampling (guidance, interruption, the scheduler's multistep memory, replaced conditions) lives here.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.protocols import Scheduler
from latentia.errors import Cancelled, InputError
from latentia.pipelines import guidance
from latentia.pipelines.callbacks import CancelToken

if TYPE_CHECKING:
    from latentia.pipelines.pipeline import DiffusionPipeline

ALIASES = {
    "_guidance_scale": "guidance_scale",
    "_guidance_rescale": "guidance_rescale",
    "_interrupt": "interrupt",
    "_num_timesteps": "num_timesteps",
}
"""Diffusers' private spellings of a call's state."""
PER_CALL = frozenset({"guidance_scale", "guidance_rescale", "guidance_interval", "interrupt", "num_timesteps"})
"""Names that belong to a call and cannot be set on the pipeline itself."""


class PipelineCall:
    """The `pipe` that a callback receives: the pipeline, as this one call sees it.

    Reads fall through to the pipeline, except `scheduler` (this call's own copy) and the state below.
    `timesteps` are the scheduler's, or those of them that the call visits (an image as the start skips the first).
    Writes stay in the call:

        guidance_scale, guidance_rescale: take effect from the next step on.
        interrupt: True stops the call before the next step with `Cancelled`; nothing is decoded.
        any other name: a note, readable until the call ends. Components cannot be replaced in mid-call.
    """

    def __init__(
        self,
        pipeline: "DiffusionPipeline",
        scheduler: Scheduler,
        *,
        timesteps: torch.Tensor | None = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
        guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        cancel: CancelToken | None = None,
    ) -> None:
        interval = guidance.check_interval(guidance_interval)
        horizon = scheduler.config.num_train_timesteps
        timesteps = scheduler.timesteps if timesteps is None else timesteps
        vars(self).update(
            _pipeline=pipeline,
            scheduler=scheduler,
            timesteps=timesteps,
            num_timesteps=len(timesteps),
            tensors=dict(tensors or {}),
            step_index=0,
            interrupt=False,
            cancel=cancel,
            guidance_scale=guidance.check_scale(guidance_scale),
            guidance_rescale=guidance.check_rescale(guidance_rescale),
            guidance_interval=interval,
            _guided=[guidance.is_active(t, horizon, interval) for t in timesteps.tolist()],
            _joined={},
        )

    _pipeline: "DiffusionPipeline"
    scheduler: Scheduler
    timesteps: torch.Tensor
    num_timesteps: int
    tensors: dict[str, torch.Tensor]
    """Conditions of this call by name; a callback's replacements land here."""
    step_index: int
    interrupt: bool
    cancel: CancelToken | None
    guidance_scale: float
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    _guided: list[bool]
    _joined: dict[tuple[str, ...], tuple[tuple[torch.Tensor, ...], torch.Tensor]]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by copy and pickle of an object that has no state yet
            raise AttributeError(name)
        own = ALIASES.get(name)
        return getattr(self, own) if own else getattr(self._pipeline, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Another call of the pipeline, from inside this one."""
        return self._pipeline(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        name = ALIASES.get(name, name)
        if name in self._pipeline.components:
            raise InputError(f"{name} cannot be replaced during a call: set it on the pipeline before calling it")
        if name == "guidance_scale":
            value = guidance.check_scale(value)
        elif name == "guidance_rescale":
            value = guidance.check_rescale(value)
        elif name in ("guidance_interval", "num_timesteps", "step_index", "timesteps"):
            raise InputError(f"{name} is fixed for the whole call: pass it to the call")
        super().__setattr__(name, value)

    @property
    def current_scale(self) -> float:
        """The guidance scale at this step: `guidance_scale` inside the interval, 1 outside."""
        return self.guidance_scale if self._guided[self.step_index] else 1.0

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether this step runs both halves."""
        return self.current_scale > 1

    def joined(self, *names: str) -> torch.Tensor:
        """The named tensors behind one another along the batch; joined anew only when a callback replaced one."""
        parts = tuple(self.tensors[name] for name in names)
        made = self._joined.get(names)
        if made is None or any(a is not b for a, b in zip(made[0], parts)):
            made = self._joined[names] = parts, torch.cat(parts)
        return made[1]

    def begin_step(self, index: int) -> None:
        """Enter turn `index` of the loop. Raises `Cancelled` if the call shall stop before it."""
        self.check_cancelled()
        super().__setattr__("step_index", index)

    def check_cancelled(self) -> None:
        """Raise `Cancelled` if the callback interrupted the call or its token was cancelled."""
        if self.cancel is not None:
            self.cancel.check()
        if self.interrupt:
            raise Cancelled(
                f"the call was interrupted after step {self.step_index + 1} of {self.num_timesteps}; "
                "nothing was decoded"
            )
