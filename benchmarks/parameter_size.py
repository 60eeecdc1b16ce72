"""Memory and time of one training step against D, the number of generated parameters.

`python -m benchmarks parameter_size`: each row in a process of its own, on one thread: random vectors, forward,
backward and AdamW in float32. Memory is what the process held at most beyond what it held before the networks were
built: weights, gradients, both moments, activations. Time is CPU seconds of a step, the least of some. Routes:

    ours     `ParameterAutoencoder` of the digit recipes (batch 50) and their UNet on its latents (batch 50)
    paper    the third edition's autoencoder and denoiser at its own widths, latent 128 to 1024 (batch 50)
    tokens   `ParameterTokenTransformer` on the parameters themselves (batch 8), no autoencoder

The paper's own figures (its table 13, MB on a GPU) stand in the last column.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latentia.methods.pdiff.presets import DIGITS, V2
from latentia.methods.pdiff.tokens import ParameterTokenTransformer, token_size_for
from latentia.recipes.pdiff_paper import PAPER

SIZES = (2_048, 20_000, 100_000, 300_000, 1_000_000)
LATENT = {2_048: 128, 20_000: 256, 100_000: 512, 300_000: 1024}
"""The paper's latent dimensions; table 13 has 30,016, 100,288 and 300,288 parameters for the last three."""
PUBLISHED = {2_048: 2_048, 20_000: 30_016, 100_000: 100_288, 300_000: 300_288}
ROUTES = ("ours: autoencoder", "ours: UNet", "paper: autoencoder", "paper: denoiser", "tokens")
BATCH, TOKEN_BATCH, STEPS = 50, 8, 3
LARGEST = {
    "ours: autoencoder": 300_000,
    "ours: UNet": 300_000,
    "paper: autoencoder": 100_000,
    "paper: denoiser": 300_000,
}
"""Rows beyond take more memory than a machine of 16 GB has (the paper's autoencoder: 2.5 GB of weights alone)."""


def layers(size: int) -> list[tuple[int, ...]]:
    """Shapes of a network of `size` parameters: square matrices and their biases, the last one cut to fit."""
    side = 256 if size >= 100_000 else 64
    shapes: list[tuple[int, ...]] = []
    while size >= side * (side + 1):
        shapes += [(side, side), (side,)]
        size -= side * (side + 1)
    return [*shapes, (size,)] if size else shapes


def networks(route: str, size: int) -> tuple[nn.Module, Callable[[nn.Module], torch.Tensor]]:
    """What is trained, and its loss on random data."""
    if route == "tokens":
        shapes = tuple(layers(size))
        model: nn.Module = ParameterTokenTransformer(shapes, token_size=token_size_for(shapes))
        x, t = torch.randn(TOKEN_BATCH, size), torch.rand(TOKEN_BATCH)
        return model, lambda net: (net(x, t).sample - x).square().mean()
    latent = LATENT[size]
    if route.startswith("paper"):
        padded = -(-size // 64) * 64
        codec = V2.build_autoencoder(padded, latent_dim=latent) if "auto" in route else None
        latents, preset = (1, latent), V2
    else:
        padded, preset = size, DIGITS
        with torch.device("cpu" if "auto" in route else "meta"):  # the UNet only needs the latents' shape
            codec = DIGITS.build_autoencoder(size)
        latents = codec.latents
    if "autoencoder" in route:
        assert codec is not None
        x = torch.randn(BATCH, padded)
        return codec, lambda net: (net.from_latents(net.to_latents(x)) - x).square().mean()
    z, t = torch.randn(BATCH, *latents), torch.randint(1000, (BATCH,))
    return preset.build_unet(latents), lambda net: (net(z, t).sample - z).square().mean()


def memory(name: str) -> int:
    """Bytes: `VmRSS` what this process holds, `VmHWM` what it held at most (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def row(route: str, size: int) -> dict[str, Any]:
    """Train some steps in this process; parameters, peak bytes and seconds a step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warm = nn.Sequential(nn.Linear(8, 8), nn.Conv1d(8, 8, 3))
    before = memory("VmRSS")
    model, loss = networks(route, size)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    seconds = []
    for _ in range(STEPS):
        start = time.process_time()
        optimizer.zero_grad()
        loss(model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(time.process_time() - start)
    del warm
    weights = sum(parameter.numel() for parameter in model.parameters())
    return {"weights": weights, "peak": memory("VmHWM") - before, "seconds": min(seconds)}


def measure(route: str, size: int) -> dict[str, Any]:
    """`row` in a process of its own. Raises `RuntimeError` with what it said if it fails."""
    command = [sys.executable, "-m", "benchmarks.parameter_size", "--route", route, "--size", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def published(route: str, size: int) -> str:
    """The paper's MB at the nearest size."""
    numbers = PAPER["memory"].values.get(PUBLISHED.get(size, 0))
    if numbers is None or route == "tokens":
        return ""
    return f"{numbers[0 if 'auto' in route else 1]:,}"


def main(routes: Sequence[str] = ROUTES, sizes: Sequence[int] = SIZES) -> None:
    """Print the table."""
    print(f"torch {torch.__version__}, one thread, float32; batch {BATCH}, tokens {TOKEN_BATCH}")
    print(f"{'route':22}{'D':>10}{'weights':>13}{'peak MB':>10}{'CPU ms/step':>13}{'paper MB (GPU)':>16}")
    for route in routes:
        for size in sizes:
            if size > LARGEST.get(route, size):
                continue
            found = measure(route, size)
            numbers = f"{found['weights']:13,}{found['peak'] / 1e6:10,.0f}{1e3 * found['seconds']:13,.0f}"
            print(f"{route:22}{size:10,}{numbers}{published(route, size):>16}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--route", choices=ROUTES, required=True)
    parser.add_argument("--size", type=int, required=True)
    typed = parser.parse_args()
    print(json.dumps(row(typed.route, typed.size)))
