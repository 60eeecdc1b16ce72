"""Closed forms: cosines of features, and distances of pixels. Values of single edits; means are taken elsewhere."""

import numpy as np
import torch
from PIL import Image

from latentia.errors import InputError


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """⟨a, b⟩ / (|a| |b|) of each pair of rows, (B, D) twice → float64 (B,) in [-1, 1]; NaN beside a zero vector."""
    if a.ndim != 2 or a.shape != b.shape:
        raise InputError(f"cosines need two tensors (B, D), got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)


def direction(
    before: torch.Tensor,
    after: torch.Tensor,
    told_before: torch.Tensor,
    told_after: torch.Tensor,
    normalise: bool = True,
) -> torch.Tensor:
    """CLIPdir: cos( I(x_out) − I(x_in), T(caption_out) − T(caption_in) ) of each edit → float64 (B,).

    Gal et al. 2022; Sheynin et al. 2023. All four are (B, D). With `normalise` features are brought to length 1 first,
    as InstructPix2Pix's code does; the paper does not say. 0 where the picture did not move at all (nothing was done);
    NaN where the captions are the same (nothing was asked for, so that the edit cannot be judged).
    """
    four = [each.double() for each in (before, after, told_before, told_after)]
    if normalise:
        four = [torch.nn.functional.normalize(each, dim=1) for each in four]
    moved, told = four[1] - four[0], four[3] - four[2]
    found = cosine(moved, told)
    found = torch.where((moved == 0).all(1), torch.zeros_like(found), found)
    return torch.where((told == 0).all(1), torch.full_like(found, torch.nan), found)


def pixel_distance(a: np.ndarray, b: np.ndarray, power: int = 1) -> float:
    """Mean |a − b|^power of two uint8 pictures of one shape, values in [0, 1]: L1 for 1, L2 (squared) for 2.

    Subtracted as floats: bytes would wrap around. Raises `InputError` for other types or shapes.
    """
    if a.dtype != np.uint8 or b.dtype != np.uint8 or a.shape != b.shape:
        raise InputError(f"need two uint8 pictures of one shape, got {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    difference = np.abs(a.astype(np.float32) - b.astype(np.float32)) / 255
    return float((difference if power == 1 else difference**power).mean(dtype=np.float64))


def sized(picture: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The picture resized (bicubic) to the height and width of another, as MagicBrush's evaluator does with results."""
    height, width = like.shape[:2]
    if picture.shape[:2] == (height, width):
        return picture
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
