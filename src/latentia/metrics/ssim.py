"""Structural similarity of reconstructions."""

import torch
import torch.nn.functional as F

from latentia.errors import InputError
from latentia.metrics.psnr import DATA_RANGE, check_pair

WINDOW, SIGMA = 11, 1.5
K1, K2 = 0.01, 0.03


def ssim(x: torch.Tensor, y: torch.Tensor, data_range: float = DATA_RANGE) -> torch.Tensor:
    """Mean SSIM of each pair, (B, C, H, W) twice → float64 (B,), 1 for equal images.

    Wang et al. 2004, eq. 13: ((2μxμy + C₁)(2σxy + C₂)) / ((μx² + μy² + C₁)(σx² + σy² + C₂)) with an 11×11 Gaussian
    window of σ = 1.5, C₁ = (0.01 range)², C₂ = (0.03 range)², weighted (biased) moments; averaged over the
    positions where the window lies inside the image, and over channels.
    Raises `InputError` for images smaller than the window.
    """
    check_pair(x, y, data_range)
    if min(x.shape[-2:]) < WINDOW:
        raise InputError(f"SSIM needs images of at least {WINDOW}×{WINDOW} pixels, got {tuple(x.shape[-2:])}")
    batch, channels, height, width = x.shape
    a = x.double().reshape(-1, 1, height, width)
    b = y.double().reshape(-1, 1, height, width)
    mu_a, mu_b, aa, bb, ab = _blur(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    variances = aa - mu_a.square() + bb - mu_b.square()
    covariance = ab - mu_a * mu_b
    luminance = (2 * mu_a * mu_b + c1) / (mu_a.square() + mu_b.square() + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return (luminance * structure).mean(dim=(1, 2, 3)).reshape(batch, channels).mean(1)


def _blur(images: torch.Tensor) -> torch.Tensor:
    """(N, 1, H, W) → (N, 1, H − 10, W − 10), by a row and a column convolution."""
    offsets = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    return F.conv2d(F.conv2d(images, weights.reshape(1, 1, 1, -1)), weights.reshape(1, 1, -1, 1))
