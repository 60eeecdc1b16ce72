"""EMAModel.step of Latentia and of Diffusers on the same tensors: paired medians and their ratio.

The three alternate call by call, so that noise of the machine hits all alike; the ratio is the median of the pairs'
ratios. `foreach` is Diffusers' own faster switch. Run: `python benchmarks/ema.py`.
"""

import statistics
import time

import torch
from diffusers.training_utils import EMAModel as Peer
from torch import nn

from latentia import EMAModel


def fifty_million() -> list[nn.Parameter]:
    """456 tensors of the sizes a UNet has, 50 M numbers in all: few large, many small."""
    large = [(512, 512 - 2, 3, 3)] * 16 + [(512, 512)] * 40
    small = [(512,)] * 400
    return [nn.Parameter(torch.randn(shape)) for shape in large + small]


def many_small() -> list[nn.Parameter]:
    """600 tensors of 64×64: what a small transformer has."""
    return [nn.Parameter(torch.randn(64, 64)) for _ in range(600)]


def compare(parameters: list[nn.Parameter], seconds: float) -> tuple[list[float], list[float]]:
    """Median milliseconds of ours, Diffusers', Diffusers' with foreach; median ratios of the last two to ours."""
    emas = [EMAModel(parameters), Peer(parameters), Peer(parameters, foreach=True)]
    for ema in emas * 3:
        ema.step(parameters)
    rows: list[list[float]] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(rows) < 10:
        row = [0.0] * 3
        for i in sorted(range(3), key=lambda i: (i + len(rows)) % 3):
            start = time.perf_counter()
            emas[i].step(parameters)
            row[i] = time.perf_counter() - start
        rows.append(row)
    medians = [1e3 * statistics.median(column) for column in zip(*rows)]
    return medians, [statistics.median(row[i] / row[0] for row in rows) for i in (1, 2)]


def main(seconds: float = 6.0) -> None:
    """Print the table."""
    print(f"EMA step, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'tensors':34} {'ours ms':>8} {'diffusers':>10} {'foreach':>8} {'ratio':>7} {'to foreach':>11}")
    for name, parameters in (("456 tensors, 50 M", fifty_million()), ("600 tensors of 64x64, 2.5 M", many_small())):
        numbers = sum(p.numel() for p in parameters) / 1e6
        (ours, plain, fast), (ratio, to_fast) = compare(parameters, seconds)
        print(f"{name:26} ({numbers:4.1f} M) {ours:8.2f} {plain:10.2f} {fast:8.2f} {ratio:6.2f}x {to_fast:10.2f}x")


if __name__ == "__main__":
    main()
