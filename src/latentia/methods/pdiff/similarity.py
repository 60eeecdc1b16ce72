"""How alike two networks are: the overlap of their mistakes, and the distance of their weights.

IoU(a, b) = |W_a ∩ W_b| / |W_a ∪ W_b|, where W is the set of images that a network gets wrong (p-diff §4.2).
With the sets as rows of 0 and 1 every intersection of two populations is one matrix product.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from latentia.errors import InputError

COLUMNS = 1 << 16
"""Coordinates that `l2_matrix` takes at a time: float64 copies of whole networks would not fit."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """The article's four mean similarities; None where there is no pair to compare.

    Attributes:
        originals: among the originals, a network never with itself.
        generated: among the generated, likewise.
        across: every generated one with every original.
        nearest: every generated one with the original most like it.
    """

    originals: float | None
    generated: float | None
    across: float
    nearest: float


def iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the wrong predictions `a` (N, M) with `b` (K, M), both bool over the same M images: float32 (N, K).

    Two networks without a mistake are alike: 0/0 counts as 1. Raises `InputError` for anything but two bool matrices
    over as many images.
    """
    return _ratio(_overlap(a, b), a.sum(1), b.sum(1))


def nearest_similarity(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """For each of `a` (N, M) the greatest IoU with one of `b` (K, M), and which: float32 (N,) and int64 (N,)."""
    best = iou_matrix(a, b).max(1)
    return best.values, best.indices


def own_nearest_similarity(a: Tensor) -> Tensor:
    """For each of `a` (N, M) the greatest IoU with another of them: float32 (N,). Raises `InputError` for N < 2."""
    if len(a) < 2:
        raise InputError(f"the nearest other network needs two networks, got {len(a)}")
    return iou_matrix(a, a).fill_diagonal_(-1.0).amax(1)


def mean_similarity(a: Tensor) -> float | None:
    """Mean IoU over the pairs of different networks of `a` (N, M); None for one network."""
    n = len(a)
    if n < 2:
        return None
    matrix = iou_matrix(a, a)
    return float((matrix.sum(dtype=torch.float64) - matrix.trace()) / (n * (n - 1)))


def four_comparisons(originals: Tensor, generated: Tensor) -> Comparisons:
    """The article's four comparisons from the wrong predictions of `originals` (K, M) and `generated` (N, M)."""
    across = iou_matrix(generated, originals).double()
    return Comparisons(
        originals=mean_similarity(originals),
        generated=mean_similarity(generated),
        across=float(across.mean()),
        nearest=float(across.amax(1).mean()),
    )


def jackknife_nearest(a: Tensor, b: Tensor, groups: int = 20, other: bool = False) -> Tensor:
    """Mean nearest similarity of `a` to `b`, each time without one group of images: float64 (G,).

    Which images happen to be in the test set moves a similarity. Two populations judged on the same images move
    together, so the standard error of their difference d is √((G−1)/G · Σ(d_g − d̄)²) over these values. Image i is in
    group i mod G; with `other`, `a` is `b` and a network is not compared with itself.
    """
    groups = min(groups, a.shape[1])
    parts = [
        (_overlap(x, y), x.sum(1), y.sum(1)) for x, y in ((a[:, g::groups], b[:, g::groups]) for g in range(groups))
    ]
    totals = [torch.stack(column).sum(0) for column in zip(*parts)]
    values = []
    for part in parts:
        matrix = _ratio(*(total - share for total, share in zip(totals, part)))
        if other:
            matrix.fill_diagonal_(-1.0)
        values.append(matrix.amax(1).mean(dtype=torch.float64))
    return torch.stack(values)


def jackknife_error(values: Tensor) -> float:
    """Standard error from leave-one-group-out values (G,): √((G−1)/G · Σ(v_g − v̄)²)."""
    groups = len(values)
    return float(((groups - 1) / groups * (values - values.mean()).square().sum()).sqrt())


def l2_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances of the weight vectors `a` (N, D) and `b` (K, D): float64 (N, K).

    Neighbouring checkpoints differ by little of their length, so the squares are taken about the mean of `b` and in
    float64; `COLUMNS` coordinates at a time. Raises `InputError` for vectors of different length.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(f"distances need (N, D) and (K, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    squares = torch.zeros(len(a), len(b), dtype=torch.float64)
    for x, y in zip(a.split(COLUMNS, 1), b.split(COLUMNS, 1)):
        x, y = x.double(), y.double()
        centre = y.mean(0)
        x, y = x - centre, y - centre
        squares += x.square().sum(1)[:, None] + y.square().sum(1) - 2 * (x @ y.T)
    return squares.clamp_(min=0).sqrt_()


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """|W_a ∩ W_b| of all pairs. float32 counts exactly up to 16.7 million images."""
    for name, wrong in (("a", a), ("b", b)):
        if wrong.dtype != torch.bool or wrong.ndim != 2:
            raise InputError(f"{name} must be bool (networks, images), got {wrong.dtype} {tuple(wrong.shape)}")
    if a.shape[1] != b.shape[1]:
        raise InputError(f"both must be judged on the same images, got {a.shape[1]} and {b.shape[1]}")
    return a.float() @ b.float().T


def _ratio(both: Tensor, in_a: Tensor, in_b: Tensor) -> Tensor:
    either = in_a[:, None] + in_b - both
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)
