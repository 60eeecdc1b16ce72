"""Rows to look at: before and after, side by side."""

from collections.abc import Sequence

import numpy as np

from latentia.errors import InputError
from latentia.methods.emu_edit.rows import Row

GAP = 2


def contact_sheet(
    rows: Sequence[Row], edited: Sequence[np.ndarray] | None = None, columns: int = 4, scale: int = 2
) -> np.ndarray:
    """Pictures on white, uint8 (H, W, 3): each row's input, its edit where given, and its target.

    Args:
        rows: all of one size.
        edited: one picture a row, put between input and target; None: only the two.
        columns: rows side by side.
        scale: how many times each pixel is repeated.

    Raises `InputError` when there is no row, or not one edit for each.
    """
    if not rows or (edited is not None and len(edited) != len(rows)):
        raise InputError(f"a sheet needs rows and one edit for each, got {len(rows)} and {edited and len(edited)}")
    strips = []
    for i, row in enumerate(rows):
        shown = [row.image, row.target] if edited is None else [row.image, edited[i], row.target]
        strips.append(np.concatenate(shown, axis=1))
    height, width = strips[0].shape[:2]
    lines = -(-len(strips) // columns)
    sheet = np.full((lines * (height + GAP), columns * (width + GAP), 3), 255, dtype=np.uint8)
    for i, strip in enumerate(strips):
        top, left = (height + GAP) * (i // columns), (width + GAP) * (i % columns)
        sheet[top : top + height, left : left + width] = strip
    return sheet.repeat(scale, axis=0).repeat(scale, axis=1)
