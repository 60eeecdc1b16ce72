"""What a conditional generator of networks must beat: ways from the code of a task to weights that generate nothing.

    regression           weights as a linear function of the code, least squares
    kernel regression    weights as a smooth function of the code: the mean of a Gaussian process
    nearest task         the network of the training task whose code is nearest

Codes (T, d), vectors (T, D); a code may have several networks. Everything is computed in float64, returned in float32.
"""

from collections.abc import Callable, Sequence

import torch

from latentia.errors import InputError

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
WIDTHS = (0.05, 0.1, 0.2, 0.4)
"""Candidates: the ridge λ, and γ of exp(−γ‖a − b‖²/2)."""
FOLDS = 5

Predict = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(codes, vectors, new codes) → vectors for the new codes."""


def linear_regression(
    codes: torch.Tensor, vectors: torch.Tensor, new: torch.Tensor, ridge: float = 0.0
) -> torch.Tensor:
    """v(c) = v̄ + W(c − c̄) with W = argmin Σ‖v − v(c)‖² + λ‖W‖², for new codes (N, d) → (N, D)."""
    check_pairs(codes, vectors, new)
    c, v = codes.double(), vectors.double()
    centred, mean = c - c.mean(0), v.mean(0)
    gram = centred.T @ centred
    gram += (ridge if ridge else 1e-9 * float(gram.trace())) * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(gram, centred.T @ (v - mean))
    return (mean + (new.double() - c.mean(0)) @ weights).float()


def kernel_regression(
    codes: torch.Tensor, vectors: torch.Tensor, new: torch.Tensor, ridge: float = 0.1, width: float = 0.2
) -> torch.Tensor:
    """v(c) = v̄ + k(c, C)(k(C, C) + λI)⁻¹(V − v̄) with k(a, b) = exp(−γ‖a − b‖²/2), γ = `width`: (N, d) → (N, D)."""
    check_pairs(codes, vectors, new)
    c, v = codes.double(), vectors.double()
    mean = v.mean(0)
    gram = _kernel(c, c, width)
    gram += max(ridge, 1e-9) * torch.eye(len(gram), dtype=gram.dtype)
    return (mean + _kernel(new.double(), c, width) @ torch.linalg.solve(gram, v - mean)).float()


def nearest_task(codes: torch.Tensor, new: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Row of the nearest training code of each new one, (N,) int64; ties are broken at random."""
    distance = torch.cdist(new.double(), codes.double())
    noise = torch.rand(distance.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (distance + 1e-6 * noise).argmin(1)


def cross_validated(
    predict: Callable[..., torch.Tensor],
    candidates: Sequence[dict[str, float]],
    codes: torch.Tensor,
    vectors: torch.Tensor,
    seed: int = 0,
) -> dict[str, float]:
    """The candidate options of `predict` with the least squared error on training tasks that were left out.

    Tasks are left out whole, with all of their networks and with their opposites, in `FOLDS` parts.
    """
    tasks = (codes * codes[torch.arange(len(codes)), (codes != 0).int().argmax(1)].sign()[:, None]).unique(
        dim=0, return_inverse=True
    )[1]
    generator = torch.Generator().manual_seed(seed)
    part = torch.randint(FOLDS, (int(tasks.max()) + 1,), generator=generator)[tasks]
    used = [fold for fold in range(FOLDS) if 0 < int((part == fold).sum()) < len(codes)]
    if not used:
        return candidates[0]

    def error(options: dict[str, float]) -> float:
        total = 0.0
        for fold in used:
            out = part == fold
            made = predict(codes[~out], vectors[~out], codes[out], **options)
            total += float((made - vectors[out]).double().square().sum())
        return total

    return min(candidates, key=error)


def check_pairs(codes: torch.Tensor, vectors: torch.Tensor, new: torch.Tensor) -> None:
    """Raise `InputError` unless there is a code for each vector, and all codes are equally wide."""
    if codes.ndim != 2 or vectors.ndim != 2 or len(codes) != len(vectors) or len(codes) < 2:
        raise InputError(
            f"give at least two codes (T, d) and as many vectors, got {tuple(codes.shape)}, {tuple(vectors.shape)}"
        )
    if new.ndim != 2 or new.shape[1] != codes.shape[1]:
        raise InputError(f"new codes must be (N, {codes.shape[1]}), got {tuple(new.shape)}")


def _kernel(a: torch.Tensor, b: torch.Tensor, width: float) -> torch.Tensor:
    return torch.exp(-width / 2 * torch.cdist(a, b).square())
