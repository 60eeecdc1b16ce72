"""Microseconds of one scheduler step, ours against Diffusers': `python -m benchmarks.scheduler_step`.

A step is one turn of a sampling loop without the network: `scale_model_input` and `step`, with `set_timesteps(20)`
spread over the turns. Runs of both are interleaved and the median of the paired ratios is quoted, because the
machine is noisy. It measures overhead per step, not the speed of a pipeline.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

STEPS = 20
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "DDIM": ("DDIMScheduler", {**SD, "clip_sample": False}, True),
    "DDIM, clipped": ("DDIMScheduler", {}, True),
    "DDPM (draws noise)": ("DDPMScheduler", {"clip_sample": False}, True),
    "PNDM": ("PNDMScheduler", {**SD, "skip_prk_steps": True}, True),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", dict(SD), True),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {**SD, "solver_order": 3}, True),
    "SDE-DPM++ 2M (draws noise)": ("DPMSolverMultistepScheduler", {**SD, "algorithm_type": "sde-dpmsolver++"}, True),
    "Euler": ("EulerDiscreteScheduler", dict(SD), True),
    "Euler ancestral (draws noise)": ("EulerAncestralDiscreteScheduler", dict(SD), True),
    "Heun": ("HeunDiscreteScheduler", dict(SD), True),
    "FlowMatch Euler": ("FlowMatchEulerDiscreteScheduler", {}, False),
}


def sampling_loop(scheduler: Any, shape: tuple[int, ...], scaled: bool) -> Callable[[], int]:
    """One run of `STEPS` steps with a network that costs nothing; returns the number of turns."""
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    output = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def run() -> int:
        x = sample
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            if scaled:
                scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x).prev_sample
        return len(scheduler.timesteps)

    return run


def microseconds(run: Callable[[], int]) -> float:
    """Wall time of one turn."""
    start = time.perf_counter()
    turns = run()
    return (time.perf_counter() - start) / turns * 1e6


def compare(name: str, shape: tuple[int, ...], pairs: int) -> tuple[float, float, float]:
    """(ours, Diffusers', ratio): medians over `pairs` interleaved runs."""
    import diffusers

    import latentia

    diffusers.utils.logging.set_verbosity_error()
    cls, config, scaled = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = sampling_loop(getattr(latentia, cls)(**config), shape, scaled)
        theirs = sampling_loop(getattr(diffusers, cls)(**config), shape, scaled)
        for _ in range(3):
            ours(), theirs()
        measured = [(microseconds(ours), microseconds(theirs)) for _ in range(pairs)]
    mine, peer = zip(*measured)
    return statistics.median(mine), statistics.median(peer), statistics.median(b / a for a, b in measured)


def main(batch: int = 1, pairs: int = 40) -> dict[str, tuple[float, float, float]]:
    """Print the table for a batch of 4×64×64 latents and return it."""
    torch.set_num_threads(1)
    shape = (batch, 4, 64, 64)
    print(f"scheduler step, {'x'.join(map(str, shape))}, {STEPS} steps, µs (median of {pairs} interleaved pairs)")
    print(f"{'':32s}{'latentia':>10s}{'diffusers':>11s}{'ratio':>8s}")
    table = {}
    with torch.no_grad():
        for name in CASES:
            table[name] = compare(name, shape, pairs)
            print("{:32s}{:10.1f}{:11.1f}{:8.1f}".format(name, *table[name]))
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=40)
    main(**vars(parser.parse_args()))
