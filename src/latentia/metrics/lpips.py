"""LPIPS of reconstructions: a thin face that reports the number under its network's name."""

from typing import Protocol

import torch

from latentia.core.arguments import check_count
from latentia.errors import InputError
from latentia.metrics.measurement import Measurement


class Distance(Protocol):
    """A perceptual distance (x, x̂) → (B,) that says on which network it measures."""

    name: str

    def __call__(self, x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        """Distances (B,)."""
        ...


@torch.no_grad()
def perceptual_distance(distance: Distance, x: torch.Tensor, x_hat: torch.Tensor, batch_size: int = 64) -> Measurement:
    """Mean distance of the pairs (N, C, H, W), named after its network: `lpips-alex`, `photo_features_distance`, …

    Raises `InputError` when there are no pairs or the shapes differ.
    """
    check_count("batch_size", batch_size)
    if x.shape != x_hat.shape or len(x) == 0:
        raise InputError(f"need pairs of pictures (N, C, H, W), got {tuple(x.shape)} and {tuple(x_hat.shape)}")
    parts = [distance(a, b) for a, b in zip(x.split(batch_size), x_hat.split(batch_size), strict=True)]
    name = distance.name if is_lpips(distance) else f"{distance.name}_distance"
    return Measurement(name, float(torch.cat(parts).double().mean()), len(x))


def lpips(distance: Distance, x: torch.Tensor, x_hat: torch.Tensor, batch_size: int = 64) -> Measurement:
    """`perceptual_distance` on LPIPS' own weights; `InputError` for any other network, which may not bear the name."""
    if not is_lpips(distance):
        raise InputError(
            f"{distance.name!r} is not LPIPS: load latentia.losses.lpips.LPIPS with its weights, or report "
            "`perceptual_distance`, which bears the network's name"
        )
    return perceptual_distance(distance, x, x_hat, batch_size)


def is_lpips(distance: Distance) -> bool:
    """Whether this is LPIPS proper, which exists with its published weights only."""
    return distance.name in ("lpips-alex", "lpips-vgg")
