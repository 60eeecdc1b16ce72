"""Half or double the resolution of a feature map, with or without weights."""

import torch
from torch import nn
from torch.nn import functional as F


def upsample_nearest(x: torch.Tensor) -> torch.Tensor:
    """x (B, C, H, W) → (B, C, 2H, 2W), each value repeated."""
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
