"""Samplers by the short names that users type; no torch until one is made."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from latentia.errors import InputError, unknown_choice

if TYPE_CHECKING:
    from latentia.schedulers.saved import SavedScheduler
    from latentia.schedulers.scheduler import SchedulerMixin

FLOW = "FlowMatchEulerDiscreteScheduler"

SAMPLERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing"}),
    "ddpm": ("DDPMScheduler", {"timestep_spacing": "trailing"}),
    "dpm": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm++3": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 3}),
    "dpm++karras": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}),
    "dpm++sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "flow": (FLOW, {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}
"""Short name → public class and what it is told beyond the pipeline's own config."""


def check_sampler(name: str) -> str:
    """`name` in lower case; raises `UnknownChoiceError` with the nearest one."""
    known = name.lower()
    if known not in SAMPLERS:
        raise unknown_choice("scheduler", name, SAMPLERS)
    return known


def make_sampler(name: str, trained_with: SavedScheduler) -> SchedulerMixin:
    """The sampler `name` for a network that was trained with another scheduler of the same family.

    Raises `InputError` when one belongs to flow matching and the other to diffusion, and for pipelines of tokens.
    """
    from latentia.schedulers.tokens import TokenScheduler

    class_name, arguments = SAMPLERS[check_sampler(name)]
    own = type(trained_with).__name__
    if isinstance(trained_with, TokenScheduler):
        raise InputError(f"scheduler {name!r} does not fit: this pipeline draws tokens, by its {own}: leave it out")
    if (own == FLOW) != (class_name == FLOW):
        family = "flow matching: use flow" if own == FLOW else "diffusion: use any but flow"
        raise InputError(f"scheduler {name!r} does not fit: this pipeline was trained by {family}")
    kind: type[SchedulerMixin] = getattr(importlib.import_module("latentia"), class_name)
    made: SchedulerMixin = kind.from_config(trained_with.config, **arguments)
    return made
