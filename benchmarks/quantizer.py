"""Forward and backward of quantizers, ours and vector-quantize-pytorch's, in training, on the same tensors.

The two alternate call by call, so that noise of the machine hits both alike; the ratio is the median of the pairs'
ratios. The peer is set to the same mathematics: straight-through gradients, decay 0.99, no k-means (both have
started), the peer's own revival threshold. Run: `python -m benchmarks quantizer`.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from latentia.codecs.quantizers.registry import build_quantizer

Pair = tuple[nn.Module, nn.Module]


class Rows(nn.Module):
    """The peer's residual quantizer, which takes (B, N, d) alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: torch.Tensor) -> object:
        return self.inner(z.flatten(2).movedim(1, -1).contiguous())


def pairs() -> dict[str, tuple[Callable[[], Pair], int]]:
    """Name → (builder of ours and theirs, channels of z)."""
    try:
        from vector_quantize_pytorch import FSQ, LFQ, ResidualVQ, VectorQuantize
    except ImportError:
        print("the peer is not installed: pip install vector-quantize-pytorch")
        return {}

    shared = {"rotation_trick": False, "accept_image_fmap": True, "decay": 0.99, "commitment_weight": 0.25}

    def vq(codes: int, dim: int, **changes) -> Callable[[], Pair]:
        ours = {"num_codes": codes, "kmeans": 0, **changes}
        theirs = {"threshold_ema_dead_code": 2, "use_cosine_sim": bool(changes.get("cosine"))}
        return lambda: (build_quantizer("vq_ema", dim=dim, **ours), VectorQuantize(dim, codes, **shared, **theirs))

    def residual() -> Pair:
        ours = build_quantizer("residual", dim=64, num_codes=512, levels=4, codebook_options={"kmeans": 0})
        given = {name: value for name, value in shared.items() if name != "accept_image_fmap"}
        return ours, Rows(ResidualVQ(dim=64, num_quantizers=4, codebook_size=512, threshold_ema_dead_code=2, **given))

    def lfq(bits: int) -> Callable[[], Pair]:
        weights = {"entropy_weight": 0.1, "commitment_weight": 0.25}
        theirs = {"entropy_loss_weight": 0.1, "commitment_loss_weight": 0.25}
        return lambda: (
            build_quantizer("lfq", dim=bits, tau=0.01, **weights),
            LFQ(dim=bits, codebook_size=2**bits, **theirs),
        )

    def fsq() -> Pair:
        levels = (8, 5, 5, 5)
        return build_quantizer("fsq", dim=4, levels=levels), FSQ(list(levels))

    return {
        "vq_ema K=512 d=16": (vq(512, 16), 16),
        "vq_ema K=512 d=64": (vq(512, 64), 64),
        "vq_ema K=8192 d=8": (vq(8192, 8), 8),
        "vq_ema K=512 d=16 cosine": (vq(512, 16, cosine=True), 16),
        "residual 4 x K=512 d=64": (residual, 64),
        "lfq 9 bits": (lfq(9), 9),
        "lfq 14 bits": (lfq(14), 14),
        "fsq 8,5,5,5": (fsq, 4),
    }


def loss_of(out: object) -> torch.Tensor:
    """A scalar that both values and losses reach, whatever the class returns."""
    if hasattr(out, "values") and not isinstance(out, tuple):
        return out.values.square().mean() + out.loss
    values, loss = out[0], out[2] if len(out) > 2 else None
    total = values.square().mean()
    return total if loss is None else total + loss.sum()


def compare(ours: nn.Module, theirs: nn.Module, z: torch.Tensor, seconds: float) -> tuple[float, float, float]:
    """Median milliseconds of ours and theirs, and the median ratio theirs/ours."""
    modules = [ours.train(), theirs.train()]
    rows: list[list[float]] = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(rows) < 7:
        row = [0.0, 0.0]
        for i in (0, 1) if len(rows) % 2 else (1, 0):
            leaf = z.detach().requires_grad_()
            start = time.perf_counter()
            loss_of(modules[i](leaf)).backward()
            row[i] = time.perf_counter() - start
        rows.append(row)
    rows = rows[2:]
    a, b = (1e3 * statistics.median(column) for column in zip(*rows))
    return a, b, statistics.median(row[1] / row[0] for row in rows)


def main(seconds: float = 1.5) -> None:
    """Print the table; a batch of 64 pictures of 8×8 positions."""
    torch.manual_seed(0)
    print(f"quantizer forward + backward, 64×8×8 vectors, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'quantizer':28} {'ours ms':>9} {'vector-quantize-pytorch':>24} {'ratio':>7}")
    for name, (build, dim) in pairs().items():
        ours, theirs = build()
        a, b, ratio = compare(ours, theirs, torch.randn(64, dim, 8, 8), seconds)
        print(f"{name:28} {a:9.2f} {b:24.2f} {ratio:6.2f}x")


if __name__ == "__main__":
    main()
