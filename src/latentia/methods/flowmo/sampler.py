"""FlowMo's sampler: Euler steps on a shifted grid, guided inside an interval."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from latentia.core.arguments import check_count, check_number
from latentia.errors import InputError
from latentia.schedulers.flow_match_euler import FlowMatchEulerDiscreteScheduler

Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(x_t (B, C, H, W), t (B,), code (B, S, c + 1)) → v of x_t's shape."""


@dataclass(frozen=True)
class Sampler:
    """How a picture is sampled from a code.

        t_i = ((n − i + 1)/n)^ρ,   x ← x − (t_i − t_{i+1})·v,   v = v_∅ + s·(v_c − v_∅) while σ = t/(1 − t) is inside

    Attributes:
        num_inference_steps: n.
        rho: ρ; 1 spaces evenly, 4 (paper) steps widely near noise and finely near the data.
        guidance_scale: s; 1 asks the decoder with the code alone.
        guidance_interval: (low, high) in σ where guidance acts; None: everywhere.

    Raises `InputError` for values out of range.
    """

    num_inference_steps: int = 25
    rho: float = 4.0
    guidance_scale: float = 1.5
    guidance_interval: tuple[float, float] | None = (0.17, 1.02)

    def __post_init__(self) -> None:
        check_count("num_inference_steps", self.num_inference_steps)
        check_number("rho", self.rho, low=0, open_low=True)
        check_number("guidance_scale", self.guidance_scale, low=0)
        if self.guidance_interval is not None:
            if len(self.guidance_interval) != 2:
                raise InputError(f"guidance_interval must be (low, high) in sigma, got {self.guidance_interval!r}")
            low, high = (check_number("guidance_interval", end, low=0) for end in self.guidance_interval)
            if low > high:
                raise InputError(f"guidance_interval {self.guidance_interval} starts above its end")

    def is_guided(self, t: float) -> bool:
        """Whether guidance acts at time t."""
        if self.guidance_scale == 1:
            return False
        if self.guidance_interval is None:
            return True
        low, high = (sigma / (1 + sigma) for sigma in self.guidance_interval)
        return low <= t <= high

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Euler's method on this grid, set to its timesteps."""
        steps = self.num_inference_steps
        scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=max(1000, steps), rho=self.rho)
        scheduler.set_timesteps(steps)
        return scheduler


@torch.no_grad()
def sample_flow(velocity: Velocity, z: torch.Tensor, code: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """z ~ N(0, I) (B, C, H, W) at t = 1 → x at t = 0, given `code` (B, S, c + 1)."""
    scheduler = sampler.scheduler()
    x = z
    for timestep, t in zip(scheduler.timesteps, scheduler.sigmas.tolist()):
        v = guided(velocity, x, t, code, sampler)
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
    return x


def guided(velocity: Velocity, x: torch.Tensor, t: float, code: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    """v at time t, of one pass over the batch or, while guided, of the batch with and without its code."""
    if not sampler.is_guided(t):
        return velocity(x, x.new_full((len(x),), t), code)
    both = velocity(torch.cat([x, x]), x.new_full((2 * len(x),), t), torch.cat([torch.zeros_like(code), code]))
    without, given = both.chunk(2)
    return torch.lerp(without, given, sampler.guidance_scale)
