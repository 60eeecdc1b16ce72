"""Precision and recall of generated samples by k-nearest-neighbour manifolds."""

import torch

from latentia.errors import InputError
from latentia.metrics.measurement import Measurement
from latentia.metrics.neighbours import CHUNK, distance_chunks


def manifold_radii(features: torch.Tensor, k: int = 3, chunk: int = CHUNK) -> torch.Tensor:
    """Distance of each sample (N, D) to its k-th nearest other sample: float64 (N,)."""
    if k < 1 or len(features) <= k:
        raise InputError(
            f"a manifold of the {k} nearest neighbours needs k ≥ 1 and more than k samples, got n = {len(features)}"
        )
    radii = []
    for start, distances in distance_chunks(features, features, chunk):
        rows = torch.arange(len(distances))
        distances[rows, start + rows] = torch.inf  # not its own neighbour, though rounding gave it a distance
        radii.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(radii)


def inside(queries: torch.Tensor, features: torch.Tensor, radii: torch.Tensor, chunk: int = CHUNK) -> torch.Tensor:
    """Whether each query (N, D) lies in the ball of `radii` (M,) around any of `features` (M, D): bool (N,)."""
    return torch.cat([(distances <= radii).any(dim=1) for _, distances in distance_chunks(queries, features, chunk)])


def precision_recall(
    name: str, real: torch.Tensor, generated: torch.Tensor, k: int = 3, chunk: int = CHUNK
) -> dict[str, Measurement]:
    """`precision_<name>`: share of generated features inside the real manifold; `recall_<name>`: the reverse.

    The manifold of a set is the union of balls that reach each sample's k-th neighbour
    (Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1–3; k = 3). Features are (N, D) and (M, D); both numbers depend
    on N and M. Raises `InputError` when a set has no more than k samples.
    """
    precision = inside(generated, real, manifold_radii(real, k, chunk), chunk).double().mean()
    recall = inside(real, generated, manifold_radii(generated, k, chunk), chunk).double().mean()
    counts = (len(generated), len(real))
    return {
        f"precision_{name}": Measurement(f"precision_{name}", float(precision), *counts, details={"k": k}),
        f"recall_{name}": Measurement(f"recall_{name}", float(recall), *counts, details={"k": k}),
    }
