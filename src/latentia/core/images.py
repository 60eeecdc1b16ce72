"""Pictures as tensors and back: (B, C, H, W) in [-1, 1] ↔ PIL, and grids of them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from latentia.errors import InputError, NonFiniteError, check_choice

OUTPUT_TYPES = ("pil", "np", "pt")


def to_uint8(x: torch.Tensor) -> np.ndarray:
    """(B, C, H, W) in [-1, 1] → uint8 array (B, H, W, C); values outside are clipped.

    Raises `NonFiniteError` when `x` holds a NaN or infinity, before it turns into a black picture.
    """
    _check(x)
    scaled = (x.detach().float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def _check(x: torch.Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"expected float pictures (B, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        bad = [i for i, picture in enumerate(x) if not bool(torch.isfinite(picture).all())]
        raise NonFiniteError(f"pictures {bad} hold NaN or infinity: decode in float32, or lower the guidance scale")


def _check_channels(x: torch.Tensor) -> None:
    if x.ndim == 4 and x.shape[1] not in (1, 3):
        raise InputError(f"a picture has 1 or 3 channels, got {x.shape[1]}: decode the latents first")


def to_pil(x: torch.Tensor) -> list[Image.Image]:
    """(B, C, H, W) in [-1, 1], C 1 or 3 → PIL pictures; `InputError` for another C."""
    _check_channels(x)
    arrays = to_uint8(x)
    return [Image.fromarray(a[..., 0]) if a.shape[-1] == 1 else Image.fromarray(a) for a in arrays]


def from_pil(pictures: Sequence[Image.Image], channels: int = 3) -> torch.Tensor:
    """PIL pictures of one size → (B, C, H, W) in [-1, 1]; `channels` 1 or 3.

    Raises `InputError` for no pictures, or several sizes.
    """
    if channels not in (1, 3):
        raise InputError(f"channels must be 1 or 3, got {channels}")
    sizes = sorted({p.size for p in pictures})
    if len(sizes) != 1:
        raise InputError(f"expected pictures of one size, got {sizes or 'none'} (width, height): resize them first")
    arrays = [np.asarray(p.convert("L" if channels == 1 else "RGB"), dtype=np.float32) for p in pictures]
    stacked = torch.from_numpy(np.stack(arrays)).reshape(len(arrays), *arrays[0].shape[:2], channels)
    return stacked.permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def as_output(x: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
    """What a pipeline returns: `pil` pictures, `np` (B, H, W, C) in [0, 1], or `pt` (B, C, H, W) in [0, 1].

    Raises `NonFiniteError` when `x` holds a NaN or infinity, `UnknownChoiceError` for another `output_type`.
    """
    check_choice("output_type", output_type, OUTPUT_TYPES)
    if output_type == "pil":
        return to_pil(x)
    _check(x)
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    unit = (wide / 2 + 0.5).clamp(0, 1).float()
    return unit.permute(0, 2, 3, 1).cpu().numpy() if output_type == "np" else unit


def grid(x: torch.Tensor, columns: int | None = None, pad: int = 2, scale: int = 1) -> Image.Image:
    """(B, C, H, W) in [-1, 1] → one picture of `columns` a row, `pad` mid-grey pixels apart, enlarged `scale` times."""
    _check_channels(x)
    arrays = to_uint8(x).repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, channels = arrays.shape
    if count == 0 or scale < 1 or (columns is not None and columns < 1):
        raise InputError(f"a grid needs pictures, columns and scale of at least 1, got {count}, {columns}, {scale}")
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + pad) + pad, columns * (width + pad) + pad, channels), 128, np.uint8)
    for i, picture in enumerate(arrays):
        top, left = pad + (i // columns) * (height + pad), pad + (i % columns) * (width + pad)
        sheet[top : top + height, left : left + width] = picture
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
