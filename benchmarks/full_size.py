"""Stable Diffusion 1.5 at its own size, ours and Diffusers': `python -m benchmarks full_size`.

Random weights; minutes on a CPU, 8 GB of memory and 5 GB of disk. Part one: one forward pass of the UNet (860 million
weights, one set for both) in float32 and bfloat16, alternating, in CPU time, which other processes disturb less. Part
two: each library in a process of its own loads the folder and samples 3 steps of 256² under guidance with four
schedulers: times, most memory beyond what the process held before (over the weights' size), and the largest difference
of the latents. Diffusers maps the file and reads it while it samples first; `load + DDIM` is what a user waits for.
"""

import argparse
import time

import torch
from safetensors.torch import load_file

from benchmarks.folders import full, root, tiny
from benchmarks.forward import paired, text_unet_pair

CASES = ((32, torch.float32, 1), (32, torch.float32, 2), (32, torch.bfloat16, 1), (64, torch.float32, 1))
LIBRARIES = ("latentia", "diffusers")


@torch.no_grad()
def forward(seconds: float, largest: int) -> None:
    """UNet forwards up to latents of `largest`²."""
    from full_size_sd import UNET

    print(f"UNet of 859,520,964 weights, one forward, CPU ms, {torch.get_num_threads()} threads")
    print(f"{'latents':16}{'dtype':>10}{'ours CPU':>10}{'peer CPU':>10}{'ratio':>8}{'max diff':>10}")
    for size, dtype, batch in CASES:
        if size > largest:
            continue
        ours, peer, difference = text_unet_pair(UNET, batch, size, dtype)
        a, b, ratio = paired(ours, peer, seconds, time.process_time)
        name = str(dtype).removeprefix("torch.")
        print(f"{f'{batch}x4x{size}x{size}':16}{name:>10}{a:10.0f}{b:10.0f}{ratio:7.2f}x{difference:10.1e}", flush=True)
        del ours, peer


def sampling(threads: int) -> None:
    """Load and sample, each library in its own process."""
    from full_size_sd import measure

    runs, latents = {}, {}
    for library in LIBRARIES:
        out = root() / f"{library}.safetensors"
        runs[library] = measure(library, full(), out, threads=threads, warm=str(tiny()))
        latents[library] = load_file(out)
    ours, theirs = runs["latentia"], runs["diffusers"]
    size = 4 * sum(ours["parameters"].values())
    print(f"\nload, and 3 steps of 256² under guidance, float32, {threads} threads; ratio: Diffusers' over ours")
    print(f"{'':34}{'latentia':>10}{'diffusers':>11}{'ratio':>8}{'max diff':>10}")

    def line(name: str, a: float, b: float, end: str = "") -> None:
        print(f"{name:34}{a:10.2f}{b:11.2f}{b / a:7.2f}x{end}")

    line("load, s", ours["load_seconds"], theirs["load_seconds"])
    for key, name in (("peak", "peak of the load / weights"), ("sampling_peak", "peak of all / weights")):
        line(name, *((run[key] - run["baseline"]) / size for run in (ours, theirs)))
    for scheduler, a in ours["seconds"].items():
        difference = float((latents["latentia"][scheduler] - latents["diffusers"][scheduler]).abs().max())
        line(f"{scheduler}, s", a, theirs["seconds"][scheduler], f"{difference:10.1e}")
    line("load + DDIM, s", *(run["load_seconds"] + run["seconds"]["DDIMScheduler"] for run in (ours, theirs)))


def main(seconds: float = 30.0, largest: int = 64) -> None:
    """Print both tables."""
    forward(seconds, largest)
    sampling(torch.get_num_threads())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each forward case")
    parser.add_argument("--largest", type=int, default=64, help="side of the largest latents that go forward")
    main(**vars(parser.parse_args()))
