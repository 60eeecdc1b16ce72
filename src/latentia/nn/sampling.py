"""Half or double the resolution of a feature map, with or without weights."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


class _DoubleOnCPU(torch.autograd.Function):
    """Nearest-neighbour doubling of a contiguous map by three strided copies.

    For such maps PyTorch's kernel goes through channels-last and back: 3 to 20 times slower on one thread.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        doubled = x.new_empty(batch, channels, height, 2, width, 2)
        doubled[..., 0, :, 0] = x
        doubled[..., 0, :, 1] = x
        doubled[..., 1, :, :] = doubled[..., 0, :, :]
        return doubled.view(batch, channels, 2 * height, 2 * width)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        top, bottom = grad[..., 0::2, :], grad[..., 1::2, :]
        return top[..., 0::2] + top[..., 1::2] + bottom[..., 0::2] + bottom[..., 1::2]


def upsample_nearest(x: torch.Tensor) -> torch.Tensor:
    """x (B, C, H, W) → (B, C, 2H, 2W), each value repeated."""
    if x.is_cpu and x.numel() <= 2**20 and x.is_contiguous() and not torch.compiler.is_compiling():
        doubled: torch.Tensor = _DoubleOnCPU.apply(x)
        return doubled
    if x.numel() > 2**29:
        x = x.contiguous()  # the channels-last kernel indexes its output with 32 bits
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def downsample_mean(x: torch.Tensor) -> torch.Tensor:
    """x (B, C, H, W) → (B, C, H/2, W/2), means of 2×2."""
    return F.avg_pool2d(x, 2)


class Downsample(nn.Module):
    """3×3 convolution of stride 2: (B, C, H, W) → (B, C, H/2, W/2).

    `padding` 1 pads all sides; 0 pads right and below only (the DDPM and LDM autoencoder convention).
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.asymmetric = padding == 0
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) → (B, C, H/2, W/2)."""
        halved: torch.Tensor = self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)
        return halved


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3×3 convolution: (B, C, H, W) → (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) → (B, C, 2H, 2W)."""
        doubled: torch.Tensor = self.conv(upsample_nearest(x))
        return doubled
