"""Putting a repainted region back: where to crop, how to fit, and how to blend. 1 in a mask is repainted, 0 kept."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from latentia.core.images import to_pil
from latentia.errors import InputError
from latentia.pipelines.image_input import Pictures

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, as PIL counts."""


@dataclass(frozen=True, kw_only=True)
class PasteBack:
    """How repainted pictures return into those given.

    Attributes:
        original: the pictures as given.
        opacity: (n, 1, H, W) of the repainted picture over the original, in the original's size.
        box: where in the original the repainted picture lies; None: everywhere.
    """

    original: Pictures
    opacity: torch.Tensor
    box: Box | None = None

    def __call__(self, x: torch.Tensor, image_rows: Sequence[int], mask_rows: Sequence[int]) -> torch.Tensor:
        """Repainted pictures x (B, 3, h, w) in [-1, 1] → whole ones (B, 3, H, W), on the same device.

        In float64, where the device has it: then [0, 1] → [-1, 1] → [0, 1] gives back every bit.
        """
        device = x.device
        original = self.original.centred(torch.float32 if device.type == "mps" else torch.float64)
        if self.box is not None:
            x = placed(original, to_pil(x), self.box)
        return pasted(original[list(image_rows)].to(device), x.to(device), self.opacity[list(mask_rows)].to(device))


def feathered(mask: torch.Tensor, feather: float) -> torch.Tensor:
    """Opacity of the repainted picture, (n, 1, H, W) in [0, 1], from a mask.

    The mask, widened by r = ⌈2σ⌉ pixels, blurred by a Gaussian of σ = `feather` pixels cut off at r: 1 on the whole
    mask, so that nothing of what was to go shines through; falling smoothly outside; exactly 0 from 2r + 1 pixels on
    (the larger of the distances along rows and columns). 0 leaves the mask's edge as it is.
    """
    radius = math.ceil(2 * feather)
    if radius == 0:
        return mask
    wide = F.max_pool2d(mask, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    wide = F.max_pool2d(wide, (2 * radius + 1, 1), stride=1, padding=(radius, 0))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / feather).square())
    kernel = (weights / weights.sum()).to(mask)
    # Beyond its border a picture goes on as at the border.
    wide = F.conv2d(F.pad(wide, (radius,) * 4, mode="replicate"), kernel.view(1, 1, 1, -1))
    wide = F.conv2d(wide, kernel.view(1, 1, -1, 1))
    return torch.maximum(wide.clamp(0, 1), mask)


def pasted(original: torch.Tensor, repainted: torch.Tensor, opacity: torch.Tensor) -> torch.Tensor:
    """original + opacity·(repainted − original), pictures in [-1, 1]; exactly the original where opacity is 0."""
    return torch.lerp(original, repainted.clamp(-1, 1).to(original), opacity.to(original))


def crop_box(mask: Image.Image, height: int, width: int, padding: int) -> Box:
    """The part of a picture to work on: what the mask (grey) touches and `padding` pixels around it, widened to the
    shape height : width as far as the picture goes.

    Raises `InputError` for a mask that is black everywhere.
    """
    box = mask.getbbox()
    if box is None:
        raise InputError("mask_image is black everywhere: there is nothing to crop to; 1 (white) is repainted")
    left, top = max(box[0] - padding, 0), max(box[1] - padding, 0)
    right, bottom = min(box[2] + padding, mask.width), min(box[3] + padding, mask.height)
    shape = width / height
    if (right - left) / (bottom - top) > shape:
        top, bottom = _widened(top, bottom, int((right - left) / shape), mask.height)
    else:
        left, right = _widened(left, right, int((bottom - top) * shape), mask.width)
    return left, top, right, bottom


def _widened(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """[low, high) grown on both sides to `length`, then moved and cut to lie within [0, limit)."""
    more = length - (high - low)
    low, high = low - more // 2, high + more - more // 2
    beyond = max(high - limit, 0)
    low, high = low - beyond, high - beyond
    return max(low, 0), min(high - min(low, 0), limit)


def fitted(picture: Image.Image, width: int, height: int, *, cover: bool = False) -> Image.Image:
    """The picture in another size without distortion, centred, in RGB.

    `cover` cuts off what is too long; otherwise the whole picture is shown and its outermost rows or columns fill
    the rest.
    """
    own_width = max(1, picture.width * height // picture.height)
    own_height = max(1, picture.height * width // picture.width)
    narrow = width * picture.height - picture.width * height  # below 0: the target is narrower than the picture
    whole = narrow > 0 if cover else narrow < 0  # whether the picture's width is the target's
    wide, high = (width, own_height) if whole else (own_width, height)
    scaled = picture.resize((wide, high), Image.Resampling.LANCZOS)
    left, top = width // 2 - wide // 2, height // 2 - high // 2
    sheet = Image.new("RGB", (width, height))
    sheet.paste(scaled, (left, top))
    # An empty box at an edge: the rows or columns there, continued (as Diffusers does).
    if top > 0:
        sheet.paste(scaled.resize((width, top), box=(0, 0, width, 0)), (0, 0))
        sheet.paste(scaled.resize((width, top), box=(0, high, width, high)), (0, top + high))
    elif left > 0:
        sheet.paste(scaled.resize((left, height), box=(0, 0, 0, height)), (0, 0))
        sheet.paste(scaled.resize((left, height), box=(wide, 0, wide, height)), (left + wide, 0))
    return sheet


def placed(original: torch.Tensor, repainted: list[Image.Image], box: Box) -> torch.Tensor:
    """Pictures (n, 3, H, W) in [-1, 1]: the `original` (1, 3, H, W) with each repainted one fitted into the box."""
    left, top, right, bottom = box
    sheets = original.repeat(len(repainted), 1, 1, 1)
    for sheet, picture in zip(sheets, repainted, strict=True):
        part = np.array(fitted(picture, right - left, bottom - top, cover=True))
        sheet[:, top:bottom, left:right] = torch.from_numpy(part).to(original).permute(2, 0, 1) / 127.5 - 1
    return sheets
