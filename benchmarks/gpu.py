"""Pictures a second on a GPU beside Diffusers in the same process: `python -m benchmarks gpu`; needs CUDA.

Stable Diffusion 1.5's size with random weights, 512², 20 steps of DPM-Solver++ under classifier-free guidance, decoded,
bfloat16; eager, then with the UNet's repeated blocks compiled (both libraries offer `compile_repeated_blocks`).
The libraries take turns; medians. `of ceiling` is our share of the fastest bfloat16 matrix product measured on the
device: the FLOPs of the UNet and the decoder, over the time of the whole call. `GB beside` is the most memory beside
the weights, ours/theirs.
"""

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.folders import full

LIBRARIES = ("latentia", "diffusers")
STEPS, SIZE = 20, 512


def pipeline(library: str, compiled: bool) -> Any:
    """The pipeline on the GPU in bfloat16."""
    package = importlib.import_module(library)
    pipe = package.StableDiffusionPipeline.from_pretrained(full(), torch_dtype=torch.bfloat16).to("cuda")
    pipe.scheduler = package.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if compiled:
        pipe.unet.compile_repeated_blocks(fullgraph=True)
    return pipe


def pictures(pipe: Any, batch: int) -> Callable[[], Any]:
    """A call that makes `batch` pictures and waits for them."""

    def run() -> Any:
        generator = torch.Generator("cuda").manual_seed(0)
        call = {"num_inference_steps": STEPS, "height": SIZE, "width": SIZE, "output_type": "pt"}
        made = pipe(["a red cube"] * batch, generator=generator, **call).images
        torch.cuda.synchronize()
        return made

    return run


def ceiling(side: int = 8192, rounds: int = 50) -> float:
    """Multiply-add FLOPs a second of one large bfloat16 matrix product."""
    a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(rounds):
        a @ b
    torch.cuda.synchronize()
    return 2 * side**3 * rounds / (time.perf_counter() - start)


@torch.no_grad()
def flops(pipe: Any) -> float:
    """FLOPs of one picture: two UNet passes a step, and the decoder."""
    side = SIZE // 8
    z = torch.zeros(1, 4, side, side, device="cuda", dtype=torch.bfloat16)
    text = torch.zeros(1, 77, 768, device="cuda", dtype=torch.bfloat16)
    counts = []
    for call in (lambda: pipe.unet(z, 1, text), lambda: pipe.vae.decode(z)):
        with FlopCounterMode(display=False) as counter:
            call()
        counts.append(counter.get_total_flops())
    return 2 * STEPS * counts[0] + counts[1]


def main(rounds: int = 5, batches: tuple[int, ...] = (1, 8)) -> None:
    """Print the table."""
    if not torch.cuda.is_available():
        print("no CUDA device: this benchmark was not run")
        return
    top, work = ceiling(), 0.0
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; bf16 matrix product {top / 1e12:.0f} TFLOP/s")
    print(f"{'':22}{'batch':>6}{'ours img/s':>12}{'peer img/s':>12}{'ratio':>7}{'of ceiling':>11}{'GB beside':>12}")
    for compiled in (False, True):
        pipes = [pipeline(library, compiled) for library in LIBRARIES]
        work = work or flops(pipes[0])
        for batch in batches:
            calls, memory = [pictures(pipe, batch) for pipe in pipes], []
            for call in calls:
                call()  # compiles, picks kernels
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                call()
                memory.append((torch.cuda.max_memory_allocated() - before) / 1e9)
            rows = []
            for turn in range(rounds):
                row = [0.0, 0.0]
                for i in (0, 1) if turn % 2 else (1, 0):
                    start = time.perf_counter()
                    calls[i]()
                    row[i] = time.perf_counter() - start
                rows.append(row)
            ours, peer = (batch / statistics.median(column) for column in zip(*rows))
            ratio = statistics.median(b / a for a, b in rows)
            held = "/".join(f"{m:.1f}" for m in memory)
            name = "compiled blocks" if compiled else "eager"
            print(f"{name:22}{batch:6d}{ours:12.2f}{peer:12.2f}{ratio:6.2f}x{ours * work / top:10.0%} {held:>11}")
        del pipes, calls


if __name__ == "__main__":
    main()
