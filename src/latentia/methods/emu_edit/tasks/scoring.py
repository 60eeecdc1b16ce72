"""Exact scoring, for a world in which the right answer is known.

Reading by synthesis: of all pictures that the answer might have been (the thing in each colour, absent, in another
shape, …) the edited one is said to show that which is nearest in squared error where the edit happens.
"""

from collections.abc import Sequence

import numpy as np

from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.world.render import Box

GAIN = 0.75
"""Least gain of a success: at most a quarter of the squared error that copying the input has."""

OUTSIDE = 20.0
"""Least PSNR outside the edit, in dB, of a success."""

MAX_PSNR = 60.0
"""PSNR reported for equal pixels, where it would be infinite."""

STRUCTURE = 0.5
"""Least `structure` of a success in edits of the whole picture: a flat grey is no relief, however near."""

OVERLAP = 0.5
"""Least intersection over union of a success in detection and segmentation."""


def squared_error(a: np.ndarray, b: np.ndarray, where: np.ndarray | None = None) -> float:
    """Mean squared difference of two uint8 pictures with values in [0, 1], over the pixels `where`."""
    difference = (a.astype(np.float32) - b.astype(np.float32)) / 255
    chosen = difference if where is None else difference[where]
    return float(np.square(chosen).mean()) if chosen.size else 0.0


def psnr(error: float) -> float:
    """−10 log₁₀ of a mean squared error of values in [0, 1], in dB, at most `MAX_PSNR`."""
    return min(MAX_PSNR, -10 * float(np.log10(error))) if error > 0 else MAX_PSNR


def gain(row: Row, edited: np.ndarray) -> float:
    """1 − e(edited, target) / e(input, target) in the edit region, e squared error: 1 target, 0 input or worse."""
    copied = squared_error(row.image, row.target, row.mask)
    return max(0.0, 1 - squared_error(edited, row.target, row.mask) / copied) if copied > 0 else 0.0


def structure(row: Row, edited: np.ndarray) -> float:
    """1 − e(edited, target) / e(the target's mean colour, target), e squared error: 1 the target, 0 a flat picture."""
    mean = row.target.astype(np.float32).mean(axis=(0, 1))
    flat = squared_error(np.broadcast_to(mean, row.target.shape), row.target)
    return max(0.0, 1 - squared_error(edited, row.target) / flat) if flat > 0 else 1.0


def measures(row: Row, edited: np.ndarray) -> dict[str, float]:
    """`gain`, `psnr` of the whole picture against the target, `l1`, and `psnr_outside` where there is an outside."""
    found = {
        "gain": gain(row, edited),
        "psnr": psnr(squared_error(edited, row.target)),
        "l1": float(np.abs(edited.astype(np.float32) - row.target.astype(np.float32)).mean()) / 255,
    }
    outside = ~row.mask
    if outside.any():
        found["psnr_outside"] = psnr(squared_error(edited, row.target, outside))
    return found


def region(mask: np.ndarray) -> np.ndarray:
    """The bounding box of a mask as a mask: where alternatives of another outline differ too."""
    rows, columns = mask.any(axis=1), mask.any(axis=0)
    return np.outer(rows, columns) if mask.any() else np.ones_like(mask)


def nearest(edited: np.ndarray, candidates: Sequence[np.ndarray], where: np.ndarray) -> int:
    """Index of the candidate picture with the smallest squared error over `where`."""
    return int(np.argmin([squared_error(edited, candidate, where) for candidate in candidates]))


def verdict(row: Row, edited: np.ndarray, read: bool | float, name: str = "read") -> dict[str, float]:
    """All `measures`, the reading (1: as ordered) and `success`: read right, `GAIN` reached, the outside kept.

    Where there is no outside, `structure` takes its place.
    """
    found = measures(row, edited)
    kept = found.get("psnr_outside", MAX_PSNR) >= OUTSIDE
    if row.mask.all():
        found["structure"] = structure(row, edited)
        kept = found["structure"] >= STRUCTURE
    success = float(float(read) >= 1 and found["gain"] >= GAIN and kept)
    return {"success": success, name: float(read), **found}


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 0 when both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 0.0


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def marked(before: np.ndarray, after: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels that moved at least half the way from `before` to `colour`, bool (H, W)."""
    way = np.array(colour, dtype=np.float32) - before.astype(np.float32)
    moved = after.astype(np.float32) - before.astype(np.float32)
    length = np.square(way).sum(axis=-1)
    off = np.square(moved - way).sum(axis=-1)
    return ((moved * way).sum(axis=-1) >= 0.5 * length) & (off <= 0.25 * length)
