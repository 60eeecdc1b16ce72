"""Many small networks at once against a loop over them: training from seeds, and scoring on 540 images.

CPU seconds of one thread (`time.process_time`), the variants in turn, the least of some rounds. The scoring loop is
`load_state_dict` and a forward pass, once on all images and once on batches of 64 as a data loader gives them. Where
every parameter is generated, a loop over whole batches keeps one core busy already: the gain there is small.
Run: `python benchmarks/parameters.py`.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

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
def loop_over(network: nn.Module, checkpoints: Checkpoints, x: torch.Tensor, y: torch.Tensor, size: int) -> list[float]:
    """Accuracy of each network, one after the other, on batches of `size`."""
    accuracies = []
    for vector in checkpoints.vectors:
        network.load_state_dict({**checkpoints.base, **checkpoints.layout.unflatten(vector)})
        right = torch.cat([network(some).argmax(-1) for some in x.split(size)]) == y
        accuracies.append(float(right.float().mean()))
    return accuracies


def scoring() -> None:
    """The table of scoring 100 networks on the test digits."""
    test = digits("test", size=8)
    x, y = test.tensors["x"], test.tensors["label"]
    print(f"\n{'score 100 networks on 540 digits':34} {'Scorer':>9} {'loop':>9} {'loop b64':>9}   CPU ms")
    last = ["layer3.1.bn1", "layer3.1.bn2"]
    for name, patterns in (("resnet", last), ("resnet", ["fc"]), ("mlp3", ["*"]), ("convnet3", ["*"])):
        network = build(name).eval()
        base = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        layout = ParameterLayout.select(network, patterns)
        networks = Checkpoints(layout, layout.flatten(network) + 0.05 * torch.randn(100, layout.size), base)
        scorer = Scorer(network, layout, base, x, y)
        loop = partial(loop_over, network, networks, x, y)
        once, whole, batches = cpu_seconds(
            partial(scorer.accuracies, networks.vectors), partial(loop, 540), partial(loop, 64)
        )
        times = f"{1e3 * once:9.1f} {1e3 * whole:9.1f} {1e3 * batches:9.1f}"
        print(f"{name + ' ' + ' '.join(patterns):34} {times}   {whole / once:.2f}x, {batches / once:.2f}x")


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread")
    training()
    scoring()


if __name__ == "__main__":
    main()
