"""Distance to the nearest training sample: memorised samples lie closer to the training set than held-out ones."""

from collections.abc import Iterator

import torch

from latentia.errors import InputError, NonFiniteError
from latentia.metrics.measurement import Measurement

CHUNK = 1024


def distance_chunks(
    queries: torch.Tensor, reference: torch.Tensor, chunk: int = CHUNK
) -> Iterator[tuple[int, torch.Tensor]]:
    """Euclidean distances of `chunk` queries (N, D) at a time to every reference (M, D): (first row, (≤chunk, M)).

    In float64, where the fast matrix form |a|² + |b|² − 2ab is exact enough for near-copies.
    Raises `InputError` when a set is empty or the dimensions differ, `NonFiniteError` for NaN or infinity.
    """
    if queries.ndim != 2 or reference.ndim != 2 or queries.shape[1] != reference.shape[1]:
        raise InputError(f"distances need (N, D) and (M, D), got {tuple(queries.shape)} and {tuple(reference.shape)}")
    if not len(queries) or not len(reference):
        raise InputError(f"distances need samples on both sides, got {len(queries)} and {len(reference)}")
    a, b = queries.to("cpu", torch.float64), reference.to("cpu", torch.float64)
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise NonFiniteError("features hold NaN or infinity: look at the images they were computed from")
    for start in range(0, len(a), chunk):
        yield start, torch.cdist(a[start : start + chunk], b, compute_mode="use_mm_for_euclid_dist")


def nearest(queries: torch.Tensor, reference: torch.Tensor, chunk: int = CHUNK) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance to, and row of, the nearest reference (M, D) of each query (N, D): float64 (N,) and int64 (N,)."""
    found = [distances.min(dim=1) for _, distances in distance_chunks(queries, reference, chunk)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def nearest_training(
    name: str, generated: torch.Tensor, train: torch.Tensor, held_out: torch.Tensor | None = None
) -> dict[str, Measurement]:
    """Median distance of `generated` features to the nearest of `train`, and the same for real `held_out` ones.

    Returns `nearest_<name>` (details: 5 %, 25 %, 75 % and 95 % quantiles, the smallest distance) and, with
    `held_out`, `nearest_<name>_held_out` and `nearest_<name>_ratio` = generated / held out.
    A ratio near 1: as far from the training set as real images are. Well below 1: memorised.
    """
    generated_result = _median(f"nearest_{name}", generated, train)
    results = {generated_result.name: generated_result}
    if held_out is not None:
        held = _median(f"nearest_{name}_held_out", held_out, train)
        ratio = generated_result.value / held.value if held.value > 0 else float("inf")
        results[held.name] = held
        details = {"n_held_out": len(held_out)}
        results[f"nearest_{name}_ratio"] = Measurement(
            f"nearest_{name}_ratio", ratio, len(generated), len(train), details=details
        )
    return results


def _median(name: str, queries: torch.Tensor, train: torch.Tensor) -> Measurement:
    distances, _ = nearest(queries, train)
    levels = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles = torch.quantile(distances, torch.tensor(levels, dtype=torch.float64)).tolist()
    details = {f"q{round(100 * level):02d}": value for level, value in zip(levels, quantiles) if level != 0.5}
    details["smallest"] = float(distances.min())
    return Measurement(name, quantiles[2], len(queries), len(train), details=details)
