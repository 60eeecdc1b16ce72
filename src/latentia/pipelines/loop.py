"""The one sampling loop: noise in, latents out. Every pipeline runs this and nothing else."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from latentia.core.finite import first_nonfinite, is_finite
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
    Raises `Cancelled`, and `NonFiniteError` naming the first step whose latents hold a NaN or infinity, and who made
    it: for that the prediction of that step is computed a second time.
    """
    scheduler, options = call.scheduler, step_options or {}
    finite = FiniteWatch(call.num_timesteps, lambda turn: _culprit(call, denoise, turn))
    for i, t in enumerate(call.timesteps):
        call.begin_step(i)
        z = scheduler.scale_model_input(latents, t)
        turn = Turn(i, t, z, dict(call.tensors), call.guidance_scale, call.guidance_rescale)
        output = denoise(call, z, t)
        stepped = scheduler.step(output, t, latents, generator=generator, **options)
        latents = stepped.prev_sample if refine is None else refine(call, stepped.prev_sample)
        if callback is not None:
            shown = {"latents": latents, **call.tensors, "model_output": output}
            if "pred_original_sample" in wanted:
                shown["pred_original_sample"] = stepped.pred_original_sample
            returned = callback(call, i, t, {name: shown[name] for name in wanted})
            latents = _replace(call, check_returned(returned), shown)
        finite.see(latents if latents.is_floating_point() else output, turn)  # tokens are finite, come what may
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
            halves = "; it is the positive half alone: do not chunk it" if name == "prompt_embeds" else ""
            raise InputError(
                f"the callback returned {what} for {name!r}: expected a tensor of {tuple(shown[name].shape)}{halves}"
            )
        if name != "latents":
            call.tensors[name] = value.to(shown[name])
    latents: torch.Tensor = returned.get("latents", shown["latents"]).to(shown["latents"])
    return latents


class Turn(NamedTuple):
    """What a prediction depends on, so that it can be repeated: references, no copies of tensors."""

    step: int
    t: torch.Tensor
    z: torch.Tensor
    tensors: dict[str, torch.Tensor]
    guidance_scale: float
    guidance_rescale: float


class FiniteWatch:
    """Finds the first step with a NaN or infinity, without waiting for the device at every step.

    One sum a step stays on the device; all are read together every `PERIOD` steps and at the end. Until then the
    inputs of these steps are held, so that `explain(turn)` can say of the first bad one who made it.
    """

    PERIOD = 16

    def __init__(self, num_steps: int, explain: Callable[[Turn], str] | None = None) -> None:
        self.num_steps = num_steps
        self.explain = explain
        self.first = 0
        self.sums: list[torch.Tensor] = []
        self.turns: list[Turn | None] = []

    def see(self, latents: torch.Tensor, turn: Turn | None = None) -> None:
        """Note one step's latents, and what led to them."""
        self.sums.append(latents.sum())
        self.turns.append(turn)
        if len(self.sums) == self.PERIOD:
            self.check()

    def check(self) -> None:
        """Raise `NonFiniteError` if any noted step was not finite, and forget them."""
        sums = torch.stack(self.sums).tolist() if self.sums else []
        bad = next((i for i, value in enumerate(sums) if not math.isfinite(value)), None)
        if bad is not None:
            turn = self.turns[bad]
            culprit = self.explain(turn) if self.explain is not None and turn is not None else ""
            raise NonFiniteError(
                f"NaN or infinity in the latents after step {self.first + bad + 1} of {self.num_steps}: "
                f"{culprit}use a wider dtype, a lower guidance scale or more steps, and check the network's weights"
            )
        self.first += len(sums)
        self.sums.clear()
        self.turns.clear()


def _culprit(call: PipelineCall, denoise: Denoise, turn: Turn) -> str:
    """Who made the first bad number of a turn, as the beginning of an error's advice."""
    if not is_finite(turn.z):
        return "the scheduler's scaling of the network's input overflowed; "
    past = copy.copy(call)  # the call as it was then
    vars(past).update(
        step_index=turn.step,
        tensors=turn.tensors,
        guidance_scale=turn.guidance_scale,
        guidance_rescale=turn.guidance_rescale,
    )
    outputs: list[torch.Tensor] = []
    networks = {name: part for name, part in call.components.items() if isinstance(part, nn.Module)}
    try:
        name = first_nonfinite(networks, lambda: outputs.append(denoise(past, turn.z, turn.t)))
    except Exception as error:  # the finding is what matters, not that it could not be explained
        return f"(repeating the step to find out where failed with {type(error).__name__}: {error}) "
    if name is not None:
        return f"first in {name}; "
    if not is_finite(outputs):
        return "outside the network's modules, in the guidance or the inputs' preparation; "
    return "the prediction was finite, the scheduler's step, or what followed it, made it; "
