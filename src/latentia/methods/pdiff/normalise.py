"""Vectors and latents with mean 0 and spread 1, and back: `Standardiser` for parameters, `Whitener` for latents.

Both are modules of buffers, so that the numbers are saved with the networks that were trained on them. They are
fitted in float64.
"""

from collections.abc import Sequence
from math import prod
from typing import Self

import torch
from torch import nn

from latentia.core.arguments import check_count
from latentia.errors import InputError, check_choice

STANDARDISERS = ("center", "coordinate", "none", "tensor")
WHITENERS = ("coordinate", "full", "none")
SMALLEST_SPREAD = 1e-6
"""A coordinate whose spread is below this share of its size carries rounding alone, and counts as constant."""
FLOOR = 1e-3
"""Latent directions with less than this share of the largest spread are not blown up to 1."""


class Standardiser(nn.Module):
    """Parameter vectors v (B, D) → x = (v − mean)/scale, and back.

    Kinds:
        tensor: one mean and one scale for each tensor: the mean and the standard deviation of its elements, averaged
            over the checkpoints (the published code). What all checkpoints share stays in x, and dominates it.
        coordinate: mean and standard deviation of each coordinate over the checkpoints: x is the deviation from
            the mean checkpoint, all coordinates counting alike.
        center: the mean checkpoint, and one scale for all coordinates: errors in x are errors in v.
        none: x = v.

    What does not vary over the checkpoints has scale 0: it is only centred, and comes back as the mean whatever x
    says there, for an error in x would mean a change that no checkpoint shows. Constant and one-element tensors of kind
    `tensor` pass unchanged.

    Args:
        size: D.
        kind: one of the above; `fit` measures it, the constructor alone changes nothing.

    Raises `UnknownChoiceError` for another kind, `InputError` for a size that is none.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, size: int, kind: str = "coordinate") -> None:
        super().__init__()
        check_choice("standardiser", kind, STANDARDISERS)
        self.kind = kind
        self.register_buffer("mean", torch.zeros(check_count("size", size)))
        self.register_buffer("scale", torch.ones(size))

    @classmethod
    def fit(cls, vectors: torch.Tensor, kind: str = "coordinate", slices: Sequence[slice] = ()) -> Self:
        """Measured on `vectors` (K, D), K ≥ 1; `tensor` needs the `slices` of a layout.

        Raises `InputError` for other shapes and for vectors that are not finite.
        """
        fitted = cls(check_rows("vectors", vectors, 2).shape[1], kind)
        wide = vectors.double()
        mean, scale = fitted.mean.double(), fitted.scale.double()
        if kind in ("center", "coordinate"):
            mean, spread = wide.mean(dim=0), wide.std(dim=0, correction=0)
            spread = spread.where(spread > SMALLEST_SPREAD * wide.abs().amax(dim=0), 0.0)
            scale = spread if kind == "coordinate" else (spread > 0) * spread.square().mean().sqrt()
        elif kind == "tensor":
            _check_slices(slices, wide.shape[1])
            for part in slices:
                values = wide[:, part]
                spread = values.std(dim=1).mean() if values.shape[1] > 1 else values.new_zeros(())
                if spread > 0:
                    mean[part], scale[part] = values.mean(), spread
        fitted.mean.copy_(mean)
        fitted.scale.copy_(scale)
        return fitted

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """v (B, D) → x (B, D)."""
        return (v - self.mean) / self.scale.where(self.scale > 0, 1.0)

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, D) → v (B, D)."""
        return torch.addcmul(self.mean, x, self.scale)


class Whitener(nn.Module):
    """Latents z (B, c, L) → white ones of the same shape, for which N(0, I) is the right place to start, and back.

    Kinds:
        coordinate: each element by its own mean and standard deviation.
        full: turned to the principal axes, the widest first, each with spread 1: also uncorrelated.
        none: z itself.

    Directions that (almost) do not vary are divided by `FLOOR` times the largest spread, so that whitening can be
    undone and what is sampled there changes nothing.

    Args:
        shape: (c, L) of z.
        kind: one of the above; `fit` measures it, the constructor alone changes nothing.

    Raises `UnknownChoiceError` for another kind, `InputError` for a shape that is none.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    axes: torch.Tensor | None

    def __init__(self, shape: Sequence[int], kind: str = "full") -> None:
        super().__init__()
        check_choice("whitener", kind, WHITENERS)
        self.kind = kind
        self.shape = tuple(check_count("latent shape", n) for n in shape)
        size = prod(self.shape)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("axes", torch.eye(size) if kind == "full" else None)

    @classmethod
    def fit(cls, z: torch.Tensor, kind: str = "full") -> Self:
        """Measured on latents z (K, c, L), K ≥ 1. Raises `InputError` for other shapes, and for what is not finite."""
        fitted = cls(check_rows("latents", z, 3).shape[1:], kind)
        if kind == "none":
            return fitted
        flat = z.flatten(1).double()
        mean = flat.mean(dim=0)
        if fitted.axes is None:
            spread = (flat - mean).square().mean(dim=0).sqrt()
        else:
            # eigh ascends; the K − 1 directions that vary are wanted first.
            covariance = (flat - mean).T @ (flat - mean) / len(flat)
            values, axes = torch.linalg.eigh(covariance)
            spread = values.clamp(min=0).sqrt().flip(0)
            fitted.axes.copy_(axes.flip(1))
        largest = spread.max()
        fitted.mean.copy_(mean)
        fitted.scale.copy_(spread.clamp(min=FLOOR * largest) if largest > 0 else torch.ones_like(spread))
        return fitted

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, c, L) → white (B, c, L)."""
        flat = z.flatten(1) - self.mean
        turned = flat if self.axes is None else flat @ self.axes
        return (turned / self.scale).unflatten(1, self.shape)

    def inverse(self, white: torch.Tensor) -> torch.Tensor:
        """white (B, c, L) → z (B, c, L)."""
        turned = white.flatten(1) * self.scale
        flat = turned if self.axes is None else turned @ self.axes.T
        return (flat + self.mean).unflatten(1, self.shape)


def check_rows(name: str, rows: torch.Tensor, ndim: int) -> torch.Tensor:
    """`rows` with a sample dimension in front, at least one row, finite. Raises `InputError`."""
    if rows.ndim != ndim or not rows.numel() or not rows.is_floating_point():
        raise InputError(f"{name} must be floats with {ndim} axes and at least one row, got {tuple(rows.shape)}")
    bad = ~torch.isfinite(rows).flatten(1).all(dim=1)
    if bool(bad.any()):
        numbers = ", ".join(map(str, bad.nonzero().flatten().tolist()[:5]))
        raise InputError(f"{name} hold NaN or infinity in {int(bad.sum())} of {len(rows)} rows: {numbers}")
    return rows


def _check_slices(slices: Sequence[slice], size: int) -> None:
    covered = sum(len(range(*part.indices(size))) for part in slices)
    if covered != size:
        raise InputError(f"the slices cover {covered} of {size} coordinates: pass the slices of these vectors' layout")
