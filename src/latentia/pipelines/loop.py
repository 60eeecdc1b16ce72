"""The one sampling loop: noise in, latents out. Every pipeline runs this and nothing else."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from latentia.core.rng import Generators
from latentia.errors import InputError, NonFiniteError, unknown_choice
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.callbacks import Callback, check_returned

Denoise = Callable[[PipelineCall, torch.Tensor, torch.Tensor], torch.Tensor]
"""`denoise(call, z, t)`: the network's prediction for the scaled input z at time t, guided if the call asks for it."""

READ_ONLY = ("model_output", "pred_original_sample")
"""Tensors that a callback may look at but not replace."""


def sample_loop(
    call: PipelineCall,
    denoise: Denoise,
    latents: torch.Tensor,
    *,
    generator: Generators = None,
    step_options: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    wanted: Sequence[str] = (),
    refine: Callable[[PipelineCall, torch.Tensor], torch.Tensor] | None = None,
    advance: Callable[[], object] = lambda: None,
) -> torch.Tensor:
    """Walk `latents` (B, ...) down all timesteps of the call's scheduler: predict, step, call back.

    `generator` feeds every stochastic step; `step_options` are further keywords of `scheduler.step` (such as `eta`);
    `refine(call, z)` may replace each step's latents before the callback sees them (`call.step_index` is the step);
    `callback` gets the `wanted` tensors; `advance` moves the progress bar.
    Raises `Cancelled`, and `NonFiniteError` naming the first step whose latents hold a NaN or infinity.
    """
    scheduler, options = call.scheduler, step_options or {}
    finite = FiniteWatch(call.num_timesteps)
    for i, t in enumerate(call.timesteps):
        call.begin_step(i)
        output = denoise(call, scheduler.scale_model_input(latents, t), t)
        stepped = scheduler.step(output, t, latents, generator=generator, **options)
        latents = stepped.prev_sample if refine is None else refine(call, stepped.prev_sample)
        if callback is not None:
            shown = {"latents": latents, **call.tensors, "model_output": output}
            if "pred_original_sample" in wanted:
                shown["pred_original_sample"] = stepped.pred_original_sample
            returned = callback(call, i, t, {name: shown[name] for name in wanted})
            latents = _replace(call, check_returned(returned), shown)
        finite.see(latents)
        advance()
    call.check_cancelled()
    finite.check()
    return latents


def _replace(call: PipelineCall, returned: Mapping[str, Any], shown: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Take over what a callback returned; gives back the latents to go on with."""
    for name, value in returned.items():
        if name not in shown:
            raise unknown_choice("tensor returned by the callback", name, shown)
        if value is shown[name]:
            continue
        if name in READ_ONLY:
            raise InputError(f"the callback returned another {name!r}, which is only for reading: replace 'latents'")
        if not isinstance(value, torch.Tensor) or value.shape != shown[name].shape:
            what = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise InputError(
                f"the callback returned {what} for {name!r}: expected a tensor of {tuple(shown[name].shape)}"
            )
        if name != "latents":
            call.tensors[name] = value.to(shown[name])
    latents: torch.Tensor = returned.get("latents", shown["latents"]).to(shown["latents"])
    return latents


class FiniteWatch:
    """Finds the first step with a NaN or infinity, without waiting for the device at every step.

    One sum a step stays on the device; all are read together every `PERIOD` steps and at the end.
    """

    PERIOD = 16

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.first = 0
        self.sums: list[torch.Tensor] = []

    def see(self, latents: torch.Tensor) -> None:
        """Note one step's latents."""
        self.sums.append(latents.sum())
        if len(self.sums) == self.PERIOD:
            self.check()

    def check(self) -> None:
        """Raise `NonFiniteError` if any noted step was not finite, and forget them."""
        bad = (~torch.isfinite(torch.stack(self.sums))).nonzero() if self.sums else torch.empty(0)
        if len(bad):
            step = self.first + int(bad[0]) + 1
            raise NonFiniteError(
                f"NaN or infinity in the latents after step {step} of {self.num_steps}: "
                "use a wider dtype, a lower guidance scale or more steps, and check the network's weights"
            )
        self.first += len(self.sums)
        self.sums.clear()
