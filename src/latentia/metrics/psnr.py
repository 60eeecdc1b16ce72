"""Peak signal-to-noise ratio of reconstructions."""

import torch

from latentia.errors import InputError

DATA_RANGE = 2.0
"""Peak-to-peak range of images in [-1, 1]."""


def check_pair(x: torch.Tensor, y: torch.Tensor, data_range: float) -> None:
    """Raise `InputError` unless both are (B, C, H, W) of one shape and `data_range` is positive."""
    if x.ndim != 4 or x.shape != y.shape or x.numel() == 0:
        raise InputError(f"comparing images needs two tensors (B, C, H, W), got {tuple(x.shape)} and {tuple(y.shape)}")
    if not data_range > 0:
        raise InputError(f"data_range must be positive (2 for [-1, 1], 1 for [0, 1]), got {data_range}")


def psnr(x: torch.Tensor, y: torch.Tensor, data_range: float = DATA_RANGE) -> torch.Tensor:
    """10 log₁₀(range² / MSE) in dB of each pair, (B, C, H, W) twice → float64 (B,); equal images give ∞.

    For images in [-1, 1] the range is 2: 10 log₁₀(4 / MSE).
    """
    check_pair(x, y, data_range)
    mse = (x.double() - y.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(data_range**2 / mse)


def psnr_pooled(x: torch.Tensor, y: torch.Tensor, data_range: float = DATA_RANGE) -> float:
    """The same from the mean square error over all images together: never above the mean of `psnr`."""
    check_pair(x, y, data_range)
    mse = (x.double() - y.double()).square().mean()
    return float(10 * torch.log10(data_range**2 / mse))
