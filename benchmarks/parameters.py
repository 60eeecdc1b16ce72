"""Many small networks at once against a loop over them: training from seeds, and scoring on 540 images.

CPU seconds (`time.process_time`), the variants in turn, the least of some rounds. Three loops score one network after
the other, each with `load_state_dict`, `eval`, forward and argmax: over a `DataLoader` of batches of 64, as one writes
it; over slices of 64 images; and over all images in one batch, the hardest to beat. GFLOP/s count the multiplications
and additions of the plain forward pass; `peak` is what one product of 1024² matrices reaches, and what a convolution of
64 channels does. Where the loop is near the peak (the ResNet of 174,970 parameters) no arrangement can be 5 times as
fast. Run: `python -m benchmarks parameters`, or `python -m benchmarks.parameters --threads 2 --only scoring`.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from latentia.data.digits import digits
from latentia.methods.pdiff.checkpoints import Checkpoints
from latentia.methods.pdiff.collect import train_seeds
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.many import Fit
from latentia.methods.pdiff.networks import build
from latentia.methods.pdiff.scoring import Scorer


def cpu_seconds(*variants: Callable[[], object], rounds: int = 3) -> list[float]:
    """Least CPU seconds of each variant; they take turns, after one turn that is not counted."""
    best = [float("inf")] * len(variants)
    for turn in range(rounds + 1):
        for i, variant in enumerate(variants):
            start = time.process_time()
            variant()
            if turn:
                best[i] = min(best[i], time.process_time() - start)
    return best


def training() -> None:
    """The table of training from seeds."""
    data = digits("train", size=8).batch(range(400))
    images = data["x"], data["label"]
    print(f"{'train, 5 epochs of 400 digits':34} {'at once':>9} {'loop':>9}   CPU ms per network")
    for name, sizes, some in (("mlp3", {}, 50), ("convnet3", {}, 50), ("resnet", {"width": 4, "blocks": (1, 1)}, 25)):
        run = partial(train_seeds, partial(build, name, **sizes), images, fit=Fit(epochs=5))
        once, loop = cpu_seconds(partial(run, seeds=some), partial(run, seeds=10, vectorised=False), rounds=2)
        once, loop = 1e3 * once / some, 1e3 * loop / 10
        label = f"{name} {' '.join(f'{k}={v}' for k, v in sizes.items())}"
        print(f"{label:34} {once:9.1f} {loop:9.1f}   {loop / once:.2f}x")


@torch.no_grad()
def loop_over(network: nn.Module, checkpoints: Checkpoints, batches: Iterable[Sequence[torch.Tensor]]) -> list[float]:
    """Accuracy of each network, one after the other, on `batches` of images and labels."""
    accuracies = []
    for vector in checkpoints.vectors:
        network.load_state_dict({**checkpoints.base, **checkpoints.layout.unflatten(vector)})
        network.eval()
        right = total = 0
        for x, y in batches:
            right += int((network(x).argmax(-1) == y).sum())
            total += len(y)
        accuracies.append(right / total)
    return accuracies


def peaks() -> str:
    """GFLOP/s of a large product and of a wide convolution."""
    a, b = torch.randn(2, 1024, 1024)
    x, w = torch.randn(64, 64, 16, 16).contiguous(memory_format=torch.channels_last), torch.randn(64, 64, 3, 3)
    product, convolution = cpu_seconds(lambda: a @ b, lambda: F.conv2d(x, w, padding=1), rounds=5)
    return (
        f"product {2e-9 * 1024**3 / product:.0f}, convolution {2e-9 * 64 * 64 * 256 * 64 * 9 / convolution:.0f} GFLOP/s"
    )


WHOLE: tuple[tuple[str, dict[str, Any], list[str]], ...] = (
    ("mlp3", {}, ["*"]),
    ("convnet3", {}, ["*"]),
    ("resnet", {"width": 4, "blocks": (1, 1)}, ["*"]),
    ("resnet", {"width": 8, "blocks": (1, 1, 1)}, ["*"]),
    ("resnet", {}, ["*"]),
    ("resnet", {}, ["fc"]),
    ("resnet", {}, ["layer3.1.bn1", "layer3.1.bn2"]),
)


def scoring(count: int = 100) -> None:
    """The table of scoring networks on the test digits."""
    test = digits("test", size=8)
    x, y = test.tensors["x"], test.tensors["label"]
    slices = list(zip(torch.split(x, 64), torch.split(y, 64)))
    loader = DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=64)
    print(f"\npeak: {peaks()}")
    print(f"{f'score {count} networks on 540 digits':42}{'Scorer':>8}{'loader':>9}{'by 64':>9}{'at once':>9}  CPU ms")
    for name, sizes, patterns in WHOLE:
        network = build(name, **sizes).eval()
        base = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        layout = ParameterLayout.select(network, patterns)
        networks = Checkpoints(layout, layout.flatten(network) + 0.05 * torch.randn(count, layout.size), base)
        scorer = Scorer(network, layout, base, x, y)
        assert torch.allclose(scorer.accuracies(networks.vectors), torch.tensor(loop_over(network, networks, slices)))
        with FlopCounterMode(display=False) as flops:
            network(x)
        loops = [partial(loop_over, network, networks, batches) for batches in (loader, slices, [(x, y)])]
        found = cpu_seconds(partial(scorer.accuracies, networks.vectors), *loops, rounds=2)
        speeds = [1e-9 * count * flops.get_total_flops() / seconds for seconds in (found[0], found[3])]
        label = f"{name} {' '.join(map(str, sizes.values()))} {' '.join(patterns)} ({layout.size:,})"
        times = "".join(f"{1e3 * seconds:9.1f}" for seconds in found)
        gains = ", ".join(f"{seconds / found[0]:.1f}x" for seconds in found[1:])
        rates = f"  {speeds[0]:.0f} against {speeds[1]:.0f} GFLOP/s" if patterns == ["*"] else ""
        print(f"{label:41}{times}   {gains}{rates}", flush=True)


def main(threads: int = 1, only: str = "") -> None:
    """Print both tables."""
    torch.set_num_threads(threads)
    print(f"torch {torch.__version__}, {threads} thread(s)")
    for table in (training, scoring):
        if only in ("", table.__name__):
            table()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=("", "training", "scoring"), default="")
    main(**vars(parser.parse_args()))
