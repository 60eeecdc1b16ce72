"""Fréchet distance between two sets of features, its floor (real against real) and its ceiling (noise)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from latentia.core.protocols import FeatureNetwork
from latentia.core.rng import derive_seed, sample_generators
from latentia.errors import InputError, NonFiniteError
from latentia.metrics.features import Images, extract
from latentia.metrics.inception_features import InceptionFeatures
from latentia.metrics.measurement import Measurement

EPS = 1e-6
"""What is added to the diagonal of both covariances by default; the standard `fid` adds nothing."""


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Mean (D,) and unbiased covariance (D, D) of `n` feature vectors, float64."""

    mean: torch.Tensor
    covariance: torch.Tensor
    n: int

    @classmethod
    def fit(cls, features: torch.Tensor) -> "Gaussian":
        """Moments of features (N, D): μ = Σf/N, Σ = Σ(f − μ)(f − μ)ᵀ/(N − 1).

        Raises `InputError` when N < 2, `NonFiniteError` for NaN or infinity.
        """
        if features.ndim != 2 or len(features) < 2:
            raise InputError(f"a covariance needs features (N ≥ 2, D), got {tuple(features.shape)}")
        if not bool(torch.isfinite(features).all()):
            raise NonFiniteError("features hold NaN or infinity: look at the images they were computed from")
        rows = features.detach().to("cpu", torch.float64)
        mean = rows.mean(0)
        centred = rows - mean
        return cls(mean, centred.T @ centred / (len(rows) - 1), len(rows))


def frechet_distance(
    mean1: torch.Tensor, covariance1: torch.Tensor, mean2: torch.Tensor, covariance2: torch.Tensor, eps: float = 0.0
) -> float:
    """d² = |μ₁ − μ₂|² + tr(C₁ + C₂ − 2 (C₁^½ C₂ C₁^½)^½), with C = Σ + eps·I.

    Dowson & Landau 1982; Heusel et al. 2017. The symmetric product has the same eigenvalues as C₁C₂, so two
    symmetric eigendecompositions in float64 suffice, and a singular covariance needs no special case.

    Shapes: means (D,), covariances (D, D). Raises `InputError` when they do not fit together, or when a
    covariance is not symmetric or has a negative eigenvalue beyond rounding.
    """
    mu1, mu2 = mean1.to("cpu", torch.float64), mean2.to("cpu", torch.float64)
    dim = mu1.numel()
    for name, tensor, shape in (
        ("mean1", mean1, (dim,)),
        ("mean2", mean2, (dim,)),
        ("covariance1", covariance1, (dim, dim)),
        ("covariance2", covariance2, (dim, dim)),
    ):
        if tuple(tensor.shape) != shape:
            raise InputError(f"{name} must be {shape} to fit mean1, got {tuple(tensor.shape)}: same network for both?")
        if not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"{name} holds NaN or infinity")
    if eps < 0:
        raise InputError(f"eps must not be negative, got {eps}")
    ridge = eps * torch.eye(dim, dtype=torch.float64)
    c1, c2 = _symmetric(covariance1, "covariance1") + ridge, _symmetric(covariance2, "covariance2") + ridge
    values, vectors = torch.linalg.eigh(c1)
    root = (vectors * _not_negative(values, "covariance1").sqrt()) @ vectors.T
    inner = torch.linalg.eigvalsh(root @ c2 @ root)
    trace_root = _not_negative(inner, "covariance2", scale=float(c1.diagonal().max() * c2.diagonal().max())).sqrt()
    distance = (mu1 - mu2).square().sum() + c1.trace() + c2.trace() - 2 * trace_root.sum()
    return max(0.0, float(distance))


def _symmetric(matrix: torch.Tensor, name: str) -> torch.Tensor:
    c = matrix.to("cpu", torch.float64)
    if not torch.allclose(c, c.T, rtol=1e-6, atol=1e-6 * float(c.abs().max())):
        raise InputError(f"{name} is not symmetric: largest difference {float((c - c.T).abs().max()):.3g}")
    return (c + c.T) / 2


def _not_negative(values: torch.Tensor, name: str, scale: float | None = None) -> torch.Tensor:
    scale = float(values.abs().max()) if scale is None else scale
    if float(values.min()) < -1e-6 * scale:
        raise InputError(f"{name} is no covariance: it has the eigenvalue {float(values.min()):.3g}")
    return values.clamp(min=0)


def frechet_name(network: FeatureNetwork) -> str:
    """`fid` for the standard Inception weights, `frechet_<network>` for every other ruler."""
    if isinstance(network, InceptionFeatures) and network.verified:
        return "fid"
    return f"frechet_{network.name}"


def frechet_of(name: str, real: torch.Tensor | Gaussian, generated: torch.Tensor, eps: float = EPS) -> Measurement:
    """The distance of features (N, D) to real ones, or to their saved `Gaussian`, reported as `name`.

    Warns and records `rank_deficient` when either set has no more samples than dimensions: then the
    covariance is singular and the distance is biased upwards. Compare only at equal n.
    """
    reference = real if isinstance(real, Gaussian) else Gaussian.fit(real)
    fitted = Gaussian.fit(generated)
    dim = fitted.mean.numel()
    value = frechet_distance(reference.mean, reference.covariance, fitted.mean, fitted.covariance, eps)
    deficient = min(reference.n, fitted.n) <= dim
    if deficient:
        warnings.warn(
            f"{name}: {reference.n} real and {fitted.n} generated samples in {dim} dimensions: "
            "a covariance is singular and the distance biased upwards; use more samples",
            stacklevel=2,
        )
    details = {"dim": dim, "eps": eps, "rank_deficient": deficient}
    return Measurement(name, value, fitted.n, reference.n, details=details)


def frechet(
    network: FeatureNetwork, real: Images | Gaussian, generated: Images, eps: float | None = None, batch_size: int = 256
) -> Measurement:
    """Fréchet distance of `generated` images to `real` ones on `network`: `fid` or `frechet_<network>`.

    `eps` is added to both diagonals: 1e-6, and 0 for `fid`, whose published numbers have none.
    Only numbers of one ruler, one n and one run may be compared.
    """
    name = frechet_name(network)
    chosen = (0.0 if name == "fid" else EPS) if eps is None else eps
    reference = real if isinstance(real, Gaussian) else Gaussian.fit(extract(network, real, batch_size))
    return frechet_of(name, reference, extract(network, generated, batch_size), chosen)


def balanced_draw(labels: torch.Tensor, n: int, generator: torch.Generator) -> torch.Tensor:
    """`n` different row numbers with equally many of each class (the remainder goes to random classes).

    Raises `InputError` when a class has too few members.
    """
    classes = labels.unique()
    if n < 1:
        raise InputError(f"n must be at least 1, got {n}")
    each, rest = divmod(n, len(classes))
    extra = set(torch.randperm(len(classes), generator=generator)[:rest].tolist())
    rows = []
    for i, label in enumerate(classes):
        members = torch.nonzero(labels == label).flatten()
        wanted = each + (i in extra)
        if wanted > len(members):
            raise InputError(f"class {int(label)} has {len(members)} samples, a balanced draw of {n} needs {wanted}")
        rows.append(members[torch.randperm(len(members), generator=generator)[:wanted]])
    return torch.cat(rows)


def real_floor(
    name: str,
    features: torch.Tensor,
    n: int,
    labels: torch.Tensor | None = None,
    draws: int = 10,
    seed: int = 0,
    eps: float = EPS,
    disjoint: bool = False,
) -> Measurement:
    """The floor: what `n` random real samples score against all of them, mean over `draws`.

    With `labels` (N,) each draw is balanced over the classes, `<name>_floor_balanced`; without, chance moves the
    class shares too, which doubles the floor of the digits. The drawn samples are part of what they are compared
    with, which flatters them: n fresh samples of the true distribution would score about
    (1/n + 1/N) / (1/n − 1/N) times this. With `disjoint` each draw is compared with the other samples instead,
    `<name>_floor_disjoint`.
    `details` hold the standard deviation over the draws. Never zero, because n is finite.
    """
    total = len(features)
    if draws < 1:
        raise InputError(f"draws must be at least 1, got {draws}")
    if not 2 <= n <= (total - 2 if disjoint else total):
        raise InputError(f"a floor needs 2 ≤ n ≤ {total - 2 * disjoint} of the {total} real samples, got n = {n}")
    whole = Gaussian.fit(features)
    values = []
    for generator in sample_generators(derive_seed("floor", seed), range(draws)):
        if labels is None:
            rows = torch.randperm(total, generator=generator)[:n]
        else:
            rows = balanced_draw(labels, n, generator)
        reference = Gaussian.fit(features[_others(rows, total)]) if disjoint else whole
        values.append(frechet_of(name, reference, features[rows], eps).value)
    spread = torch.tensor(values, dtype=torch.float64)
    std = float(spread.std()) if draws > 1 else 0.0
    details = {"draws": draws, "std": std, "dim": features.shape[1], "eps": eps, "balanced": labels is not None}
    label = name + "_floor" + ("_balanced" if labels is not None else "") + ("_disjoint" if disjoint else "")
    return Measurement(label, float(spread.mean()), n, total - n * disjoint, seed, details)


def _others(rows: torch.Tensor, total: int) -> torch.Tensor:
    left = torch.ones(total, dtype=torch.bool)
    left[rows] = False
    return left


def noise_ceiling(
    network: FeatureNetwork,
    real: Images | Gaussian,
    n: int,
    shape: Sequence[int],
    seed: int = 0,
    eps: float | None = None,
) -> Measurement:
    """The ceiling: what `n` images of Gaussian noise N(0, 1), clipped to [-1, 1], of `shape` (C, H, W) score."""
    generator = torch.Generator().manual_seed(derive_seed("noise", seed))
    noise = torch.randn(n, *shape, generator=generator).clamp_(-1, 1)
    found = frechet(network, real, noise, eps)
    return Measurement(f"{found.name}_ceiling", found.value, n, found.n_real, seed, found.details)
