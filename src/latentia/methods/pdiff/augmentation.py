"""Random crops, flips and rotations of whole batches, on the device that they are on; and the centre crop of tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentia.core.arguments import check_count, check_number
from latentia.core.protocols import Batch, Dataset
from latentia.errors import InputError, check_choice

CROPS = ("none", "resized", "shift")


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed, each by its own draw.

    Args:
        size: pixels a side of what comes out; at most those of what goes in.
        crop: `shift`: pad by `pad` black pixels, cut `size` at a random place (CIFAR's); `resized`: a random part of
            the area `scale` and of an aspect ratio from 3/4 to 4/3, resized (ImageNet's); `none`: the centre.
        pad: of `shift`.
        scale: least and largest share of the area, of `resized`.
        flip: mirror half of the images.
        rotate: largest angle in degrees, either way.

    Flips, parts and angles are one affine map of each image, taken bilinearly, black (−1) outside; shifts, flips and
    the centre alone copy pixels. Draws are a function of the seed alone, the same on every device.
    """

    size: int
    crop: str = "none"
    pad: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = False
    rotate: float = 0.0

    def __post_init__(self) -> None:
        check_choice("crop", self.crop, CROPS)
        check_count("size", self.size)
        check_count("pad", self.pad, least=0)
        check_number("rotate", self.rotate, 0, 180)
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale is the least and the largest share of the area, in (0, 1], got {self.scale}")

    def __call__(self, x: Tensor, seed: int) -> Tensor:
        """x (B, C, H, W) in [-1, 1] → (B, C, size, size)."""
        generator = torch.Generator().manual_seed(seed)
        flips = torch.rand(len(x), generator=generator) < 0.5 if self.flip else torch.zeros(len(x), dtype=torch.bool)
        if self.crop == "resized" or self.rotate:
            if self.crop == "shift":
                x = self._shift(x, generator)
            return self._warp(x, flips, generator)
        x = self._shift(x, generator) if self.crop == "shift" else centre(x, self.size)
        return torch.where(flips.to(x.device).view(-1, 1, 1, 1), x.flip(-1), x) if self.flip else x

    def _shift(self, x: Tensor, generator: torch.Generator) -> Tensor:
        x = F.pad(x, (self.pad,) * 4, value=-1.0)
        _check_fits(x, self.size)
        spare = torch.tensor([x.shape[-2] - self.size, x.shape[-1] - self.size])
        corner = (torch.rand(len(x), 2, generator=generator) * (spare + 1)).long().minimum(spare).to(x.device)
        ahead = torch.arange(self.size, device=x.device)
        rows, columns = (corner[:, i, None] + ahead for i in (0, 1))
        images = torch.arange(len(x), device=x.device).view(-1, 1, 1)
        picked = x.movedim(1, -1)[images, rows[:, :, None], columns[:, None, :]]  # (B, size, size, C)
        return picked.movedim(-1, 1).contiguous()

    def _warp(self, x: Tensor, flips: Tensor, generator: torch.Generator) -> Tensor:
        """One affine map an image: output coordinates in [-1, 1] → input coordinates."""
        draws = torch.rand(len(x), 5, generator=generator)
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:, 0]
        ratio = torch.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * draws[:, 1])
        if self.crop != "resized":
            area, ratio = torch.ones_like(area), torch.ones_like(ratio)
            if self.crop == "none":
                x = centre(x, self.size)
        wide, high = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        shift_x, shift_y = ((1 - side) * (2 * draws[:, i] - 1) for i, side in ((2, wide), (3, high)))
        angle = math.radians(self.rotate) * (2 * draws[:, 4] - 1)
        mirror = 1 - 2 * flips.float()
        cos, sin = angle.cos(), angle.sin()
        theta = torch.stack(
            [
                torch.stack([wide * mirror * cos, -wide * sin, shift_x], 1),
                torch.stack([high * mirror * sin, high * cos, shift_y], 1),
            ],
            1,
        ).to(x.device, x.dtype)
        grid = F.affine_grid(theta, [len(x), x.shape[1], self.size, self.size], align_corners=False)
        return F.grid_sample(x + 1, grid, align_corners=False) - 1


class CentreCrop:
    """A data set whose images are cut to their middle `size`×`size`, as classifiers are tested."""

    def __init__(self, images: Dataset, size: int) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The images at `indices`, cut."""
        batch = dict(self.images.batch(indices))
        batch["x"] = centre(batch["x"], self.size)
        return batch


class Part:
    """Some samples of another data set."""

    def __init__(self, images: Dataset, rows: Tensor) -> None:
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples at `indices` of these."""
        batch: Batch = self.images.batch(self.rows[torch.as_tensor(indices)].tolist())
        return batch


def centre(x: Tensor, size: int) -> Tensor:
    """The middle of x (B, C, H, W), (B, C, size, size); `InputError` for smaller images."""
    _check_fits(x, size)
    top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
    return x[..., top : top + size, left : left + size]


def _check_fits(x: Tensor, size: int) -> None:
    if min(x.shape[-2:]) < size:
        raise InputError(f"images of {x.shape[-2]}×{x.shape[-1]} pixels are too small to cut {size}×{size} out of them")
