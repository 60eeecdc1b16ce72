"""What StableDiffusionPipeline costs beside its network, ours and Diffusers': `python -m benchmarks pipeline_call`.

Overhead: the network is replaced by one that answers at once, so that a call is nothing but the loop: scaling,
batching for guidance, the scheduler's step. Per step = (a call of 60 steps − a call of 10) / 50, and the rest of the
call by itself: checks, text, noise. Whole steps: a network a fifth as wide as Stable Diffusion 1's, guided. The
libraries alternate on the same folder; medians, and medians of the pairs' ratios.
"""

import importlib
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.folders import tiny
from benchmarks.forward import SD_UNET, paired

LIBRARIES = ("latentia", "diffusers")
SCHEDULERS = (
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
)
SHORT, LONG = 10, 60


def pipeline(library: str, scheduler: str, **more: Any) -> Any:
    """The tiny pipeline with this scheduler and without a progress bar."""
    package = importlib.import_module(library)
    pipe = package.StableDiffusionPipeline.from_pretrained(tiny(), **more)
    pipe.scheduler = getattr(package, scheduler).from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Answer:
    """A forward that returns the same small tensor, as an output or as a tuple."""

    def __init__(self, unet: Any) -> None:
        x = torch.zeros(2, 4, 8, 8)
        self.output = unet(x, 1, torch.zeros(2, 77, unet.config.cross_attention_dim))
        self.output.sample = 0.1 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def __call__(self, *_: Any, return_dict: bool = True, **__: Any) -> Any:
        return self.output if return_dict else (self.output.sample,)


def milliseconds(pipe: Any, steps: int) -> float:
    """CPU milliseconds of one call without decoding."""
    start = time.process_time()
    pipe("a dog", num_inference_steps=steps, output_type="latent", generator=torch.Generator().manual_seed(0))
    return 1e3 * (time.process_time() - start)


def overhead(scheduler: str, pairs: int) -> list[list[float]]:
    """Rows of (per step, rest of the call) in milliseconds, ours before Diffusers'."""
    pipes = [pipeline(library, scheduler) for library in LIBRARIES]
    for pipe in pipes:
        pipe.unet.forward = Answer(pipe.unet)
        milliseconds(pipe, SHORT)
    rows = []
    for turn in range(pairs):
        row = [0.0] * 4
        for i in (0, 1) if turn % 2 else (1, 0):
            short, long = (milliseconds(pipes[i], steps) for steps in (SHORT, LONG))
            row[2 * i] = (long - short) / (LONG - SHORT)
            row[2 * i + 1] = short - SHORT * row[2 * i]
        rows.append(row)
    return rows


def guided(batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Both pipelines on one network of a working size: three guided steps on `batch` prompts."""
    calls = []
    state = None
    for library in LIBRARIES:
        package = importlib.import_module(library)
        torch.manual_seed(0)
        unet = package.UNet2DConditionModel(**SD_UNET | {"cross_attention_dim": 32}).eval()
        state = state or unet.state_dict()
        unet.load_state_dict(state)
        pipe = pipeline(library, "DDIMScheduler", unet=unet)
        z = torch.randn(batch, 4, 32, 32, generator=torch.Generator().manual_seed(1))
        given = {"num_inference_steps": 3, "height": 64, "width": 64, "latents": z, "output_type": "latent"}
        calls.append(lambda pipe=pipe, given=given: pipe(["a dog"] * batch, **given))
    return calls[0], calls[1]


def main(pairs: int = 15, seconds: float = 10.0) -> dict[str, float]:
    """Print the tables; returns our overhead per step by scheduler, and the ratios of guided calls by batch."""
    import diffusers

    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    table = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(f"a call without its network, CPU ms, one thread, median of {pairs} pairs; guided, 1x4x8x8")
        print(f"{'':34}{'ours/step':>10}{'peer/step':>10}{'ratio':>7}{'ours/call':>11}{'peer/call':>10}{'ratio':>7}")
        for name in SCHEDULERS:
            rows = overhead(name, pairs)
            a, c, b, d = (statistics.median(column) for column in zip(*rows))
            step, rest = (statistics.median(row[2 + i] / row[i] for row in rows) for i in (0, 1))
            table[name] = a
            print(f"{name:34}{a:10.3f}{b:10.3f}{step:6.2f}x{c:11.2f}{d:10.2f}{rest:6.2f}x")
        print("\nthree guided steps, sd1/5, 4x32x32 latents, fp32")
        print(f"{'prompts':>8}{'ours ms':>10}{'peer ms':>10}{'ratio':>8}")
        for batch in (1, 4):
            ours, peer, ratio = paired(*guided(batch), seconds)
            table[f"guided, {batch}"] = ratio
            print(f"{batch:8d}{ours:10.1f}{peer:10.1f}{ratio:7.2f}x")
    return table


if __name__ == "__main__":
    main()
