"""What p-diff must beat: ways to make networks from checkpoints without learning anything.

Every control turns the originals' vectors (K, D) into vectors (N, D), float32, and is a function of them and of its
generator alone.

    uniform average    the mean of all K: the paper's "ensemble" (one network)
    averages of 16     means of random subsets, as the critics of p-diff drew them
    Gaussian           mean and variance of every coordinate
    PCA-Gaussian       mean and covariance in the space that the checkpoints span
    noise              a checkpoint plus noise, as strong as makes it as unlike the originals as p-diff's networks are
    ensemble           mean of all K predictions: no network, the ceiling that averaging has
    K = 1              p-diff itself, shown one checkpoint
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from latentia.errors import InputError, NonFiniteError, check_choice

SpreadUnit = Literal["coordinate", "tensor", "one"]
SPREADS: tuple[SpreadUnit, ...] = ("coordinate", "tensor", "one")
REACH = 8
"""Factors of four by which `match_scale` goes up or down to enclose its target: 65,536."""


@dataclass(frozen=True, slots=True)
class Matched:
    """Networks at a scale that was sought.

    Attributes:
        vectors: (N, D).
        scale: the factor found.
        similarity: what it gives.
        reached: whether that is the target within the tolerance.
    """

    vectors: Tensor
    scale: float
    similarity: float
    reached: bool


def uniform_average(vectors: Tensor) -> Tensor:
    """The mean of all checkpoints (K, D): (1, D). The paper's "ensemble" baseline, a uniform model soup."""
    return checked(vectors).mean(0, keepdim=True, dtype=torch.float64).float()


def average_draws(vectors: Tensor, n: int, generator: torch.Generator, size: int = 16) -> Tensor:
    """`n` means of `size` different checkpoints each, drawn at random from (K, D): (n, D).

    With fewer than `size` checkpoints each mean takes all of them.
    """
    k = len(checked(vectors))
    chosen = torch.rand(n, k, generator=generator).argsort(1)[:, : min(size, k)]
    weights = torch.zeros(n, k).scatter_(1, chosen, 1.0 / chosen.shape[1])
    centre = vectors.mean(0)
    return centre + weights @ (vectors - centre)  # about the mean: float32 keeps the small differences


def gaussian(vectors: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """`n` draws from N(mean, variance) of each coordinate of (K, D), on its own: (n, D).

    The variance is the unbiased one; of one checkpoint it is 0.
    """
    noise = torch.randn(n, checked(vectors).shape[1], generator=generator)
    return noise.mul_(deviation(vectors)).add_(vectors.mean(0))


def pca_gaussian(vectors: Tensor, n: int, generator: torch.Generator, components: int | None = None) -> Tensor:
    """`n` draws from the Gaussian with the mean and covariance of (K, D), in its `components` first directions: (n, D).

    Without `components`, all K − 1. The covariance XᵀX/(K − 1) of centred X is never formed: ε X/√(K − 1) with
    ε ~ N(0, 1) (n, K) has it, and the first directions are those of the K × K matrix XXᵀ.
    """
    k = len(checked(vectors))
    centre = vectors.mean(0)
    x = vectors - centre
    noise = torch.randn(n, k, generator=generator)
    if components is not None:
        if components < 1:
            raise InputError(f"components must be at least 1, got {components}")
        axes = torch.linalg.eigh((x @ x.T).double()).eigenvectors[:, -components:].float()
        noise = noise[:, : axes.shape[1]] @ axes.T
    return centre + noise @ x / math.sqrt(max(k - 1, 1))


def spread(vectors: Tensor, unit: SpreadUnit = "coordinate", slices: Sequence[slice] | None = None) -> Tensor:
    """The length that a noise of scale 1 has in each coordinate of (K, D): (D,).

    "coordinate": the standard deviation over the checkpoints; "tensor": that over the elements of the coordinate's
    tensor, mean over checkpoints (the later code's unit; needs the layout's `slices`); "one": 1, as in the article.
    Raises `InputError` where that is 0 everywhere (one checkpoint has no spread).
    """
    check_choice("noise unit", unit, SPREADS)
    if unit == "one":
        return torch.ones(checked(vectors).shape[1])
    if unit == "coordinate":
        lengths = deviation(checked(vectors))
    elif slices is None:
        raise InputError("noise in units of each tensor's spread needs the layout's slices")
    else:
        lengths = torch.empty(checked(vectors).shape[1])
        for part in slices:
            lengths[part] = vectors[:, part].std(1, correction=0).mean()
    if not bool((lengths > 0).any()):
        raise InputError(f"{len(vectors)} checkpoint(s) have no spread per {unit}: use another unit of noise")
    return lengths


def noise(vectors: Tensor, n: int, scale: float, lengths: Tensor, generator: torch.Generator) -> Tensor:
    """`n` random checkpoints of (K, D), each plus `scale`·`lengths`·ε: (n, D)."""
    base, direction = _noise_parts(vectors, n, lengths, generator)
    return base + scale * direction


def matched_noise(
    vectors: Tensor,
    n: int,
    target: float,
    similarity: Callable[[Tensor], float],
    generator: torch.Generator,
    lengths: Tensor | None = None,
    tolerance: float = 0.002,
) -> Matched:
    """`noise` at the scale at which `similarity` of its networks equals `target`.

    The same checkpoints and the same ε are used at every scale, so that one network moves along a line and bisection
    meets no chance. `lengths` is `spread(vectors)` unless given.
    """
    base, direction = _noise_parts(vectors, n, spread(vectors) if lengths is None else lengths, generator)
    return match_scale(lambda scale: base + scale * direction, target, similarity, tolerance)


def match_scale(
    make: Callable[[float], Tensor],
    target: float,
    similarity: Callable[[Tensor], float],
    tolerance: float = 0.002,
    steps: int = 20,
) -> Matched:
    """Bisect, on a logarithmic axis, for the scale at which `similarity(make(scale))` is `target`.

    Similarity falls as the scale grows. It does so in steps (an image is wrong or it is not), so the nearest value
    found is returned, and `reached` tells whether it is within `tolerance`. Raises `InputError` for a target that is
    no similarity.
    """
    if not 0 <= target <= 1:
        raise InputError(f"a similarity to match must be in [0, 1], got {target}")
    best = _at(make, 1.0, target, similarity, tolerance)
    factor = 4.0 if best.similarity > target else 0.25
    low = high = 1.0
    for _ in range(REACH):  # until the target lies between `low` (more alike) and `high` (less)
        if best.reached:
            return best
        low, high = (high, high * factor) if factor > 1 else (low * factor, low)
        tried = _at(make, high if factor > 1 else low, target, similarity, tolerance)
        best = _closer(best, tried, target)
        if (tried.similarity > target) != (factor > 1):
            break
    for _ in range(steps):
        if best.reached:
            return best
        middle = math.sqrt(low * high)
        tried = _at(make, middle, target, similarity, tolerance)
        best = _closer(best, tried, target)
        low, high = (middle, high) if tried.similarity > target else (low, middle)
    return best


def prediction_ensemble(
    vectors: Tensor, probabilities: Callable[..., Tensor], own: Mapping[str, Tensor] | None = None, chunk: int = 16
) -> Tensor:
    """Mean over all networks (K, D) of their `probabilities` ((k, D), own= → (k, M, C)): (M, C).

    `chunk` networks at a time: all predictions of 200 networks for ImageNet would be 40 GB. `own` are the tensors that
    each network has for itself, name → (K, …), as in `Checkpoints`.
    """
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(checked(vectors)), chunk):
        rows = slice(start, start + chunk)
        mine = {name: stacked[rows] for name, stacked in (own or {}).items()}
        total = total + probabilities(vectors[rows], own=mine).sum(0, dtype=torch.float64)
    return (total / len(vectors)).float()


def greedy_soup(vectors: Tensor, scores: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Average checkpoints (K, D) as long as that helps: (1, D) (greedy model soup, Wortsman et al. 2022).

    From the best of `scores` (K,) downwards, a checkpoint joins the average unless `score` ((1, D) → (1,)) falls.
    """
    order = scores.argsort(descending=True, stable=True).tolist()
    total, count = checked(vectors)[order[0]].double(), 1
    reached = float(scores[order[0]])
    for row in order[1:]:
        tried = (total + vectors[row]) / (count + 1)
        value = float(score(tried.float()[None]))
        if value >= reached:
            total, count, reached = total + vectors[row], count + 1, value
    return (total / count).float()[None]


def one_checkpoint(vectors: Tensor, generate: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
    """What p-diff makes of a single checkpoint: `generate` ((1, D) → (N, D)) on a random row of (K, D)."""
    row = int(torch.randint(len(checked(vectors)), (1,), generator=generator))
    return generate(vectors[row : row + 1].clone())


def checked(vectors: Tensor, kind: str = "checkpoint") -> Tensor:
    """`vectors` themselves if they are float (N ≥ 1, D), else `InputError`, and finite, else `NonFiniteError`."""
    if vectors.ndim != 2 or not len(vectors) or not vectors.is_floating_point():
        raise InputError(f"{kind}s must be float (N, D) with N ≥ 1, got {vectors.dtype} {tuple(vectors.shape)}")
    if not bool(vectors.isfinite().all()):
        row = int((~vectors.isfinite().all(1)).nonzero()[0])
        raise NonFiniteError(f"{kind} {row} holds NaN or infinity: leave it out, or find out where it diverged")
    return vectors


def deviation(vectors: Tensor) -> Tensor:
    """Unbiased standard deviation of each coordinate of (K, D): (D,); 0 for one checkpoint."""
    return vectors.std(0) if len(vectors) > 1 else torch.zeros(vectors.shape[1])


def _noise_parts(vectors: Tensor, n: int, lengths: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = torch.randint(len(checked(vectors)), (n,), generator=generator)
    return vectors[rows], torch.randn(n, vectors.shape[1], generator=generator).mul_(lengths)


def _at(
    make: Callable[[float], Tensor],
    scale: float,
    target: float,
    similarity: Callable[[Tensor], float],
    tolerance: float,
) -> Matched:
    vectors = make(scale)
    found = similarity(vectors)
    return Matched(vectors, scale, found, abs(found - target) <= tolerance)


def _closer(a: Matched, b: Matched, target: float) -> Matched:
    return b if abs(b.similarity - target) < abs(a.similarity - target) else a
