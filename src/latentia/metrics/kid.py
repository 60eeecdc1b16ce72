"""Kernel distance: an unbiased Fréchet-like distance that small sets can be compared by."""

import torch

from latentia.core.rng import derive_seed, sample_generators
from latentia.errors import InputError, NonFiniteError
from latentia.metrics.measurement import Measurement


def mmd2(x: torch.Tensor, y: torch.Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of x (N, D) and y (M, D), kernel (x·y/D + 1)³.

    Bińkowski et al. 2018, arXiv:1801.01401, eq. 4. Can be slightly negative.
    Raises `InputError` for shapes that do not fit, `NonFiniteError` for NaN or infinity.
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise InputError(f"needs features (N ≥ 2, D) and (M ≥ 2, D), got {tuple(x.shape)} and {tuple(y.shape)}")
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise NonFiniteError("features hold NaN or infinity: look at the images they were computed from")
    x, y = x.double(), y.double()
    n, m, dim = len(x), len(y), x.shape[1]
    k_xx, k_yy, k_xy = ((a @ b.T / dim + 1).pow(3) for a, b in ((x, x), (y, y), (x, y)))
    within = (k_xx.sum() - k_xx.trace()) / (n * (n - 1)) + (k_yy.sum() - k_yy.trace()) / (m * (m - 1))
    return float(within - 2 * k_xy.mean())


def kernel_distance(
    name: str, real: torch.Tensor, generated: torch.Tensor, subset: int = 1000, subsets: int = 100, seed: int = 0
) -> Measurement:
    """`kid_<name>`: mean `mmd2` over random subsets, of all samples at once when neither set exceeds `subset`.

    `details` hold the standard deviation over the subsets.
    """
    if subset < 2 or subsets < 1:
        raise InputError(f"needs subset ≥ 2 and subsets ≥ 1, got {subset} and {subsets}")
    label = f"kid_{name}"
    if max(len(real), len(generated)) <= subset:
        return Measurement(label, mmd2(real, generated), len(generated), len(real), None, {"subsets": 1, "std": 0.0})
    size = min(subset, len(real), len(generated))
    values = []
    for g in sample_generators(derive_seed("kid", seed), range(subsets)):
        rows = torch.randperm(len(real), generator=g)[:size]
        columns = torch.randperm(len(generated), generator=g)[:size]
        values.append(mmd2(real[rows], generated[columns]))
    spread = torch.tensor(values, dtype=torch.float64)
    std = float(spread.std()) if subsets > 1 else 0.0
    details = {"subset": size, "subsets": subsets, "std": std}
    return Measurement(label, float(spread.mean()), len(generated), len(real), seed, details)
