"""A row: a picture, what to do with it, and how it then looks."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentia.errors import InputError


@dataclass(slots=True)
class Row:
    """One example of an edit.

    Attributes:
        image: the picture before, uint8 (H, W, 3).
        instruction: what to do.
        target: the picture after, uint8 (H, W, 3).
        task: a name in `TASKS`.
        input_caption, output_caption: what the two pictures show; they differ.
        mask: where the edit happens, bool (H, W); all True for edits of the whole picture.
        meta: plain values for JSON: what a task's score needs (`kind`, scenes), and the objects of the instruction,
            `original_object` and `edited_object`.
    """

    image: np.ndarray
    instruction: str
    target: np.ndarray
    task: str
    input_caption: str
    output_caption: str
    mask: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)


def check_row(row: Row) -> None:
    """Raise `InputError` for a row whose parts do not fit together."""
    shape = row.image.shape
    for name, picture in (("image", row.image), ("target", row.target)):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(f"{name} must be uint8 (H, W, 3), got {picture.dtype} {picture.shape}")
    if row.target.shape != shape:
        raise InputError(f"image and target must have one size, got {shape[:2]} and {row.target.shape[:2]}")
    if row.mask.dtype != np.bool_ or row.mask.shape != shape[:2]:
        raise InputError(f"mask must be bool {shape[:2]}, got {row.mask.dtype} {row.mask.shape}")
    if not row.instruction.strip():
        raise InputError("the instruction is empty")
