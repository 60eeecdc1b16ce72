"""Examples of a task of one's own: a folder (or Hub data set) of pictures before and after, and what was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentia.data.captions import CaptionedImages, ConditionImages
from latentia.errors import InputError
from latentia.methods.emu_edit.datasets import EditRows, Encode
from latentia.methods.emu_edit.inversion import examples_of
from latentia.methods.emu_edit.rows import Row
from latentia.recipes.sources import open_pictures

if TYPE_CHECKING:
    from latentia.data.pictures import Pictures

CHANGED = 8
"""Least difference of a channel, of 255, from which on a pixel counts as edited: JPEG files differ everywhere."""


class PairRows(EditRows):
    """Rows read from pictures: `file_name` the edited one, `conditioning_image` the one before, `text` the instruction.

    Args:
        data: `hf:NAME`, or a folder with metadata.jsonl.
        task: what the task is called.
        size: side to which the shorter side is resized; then the middle square is seen, of both pictures alike.
        instruction: of pairs that have none of their own; empty: they are an error.
        encode, number: see `UnseenRows`.

    Raises `InputError` for pairs without instruction or picture before, `ArtifactError` naming broken files.
    """

    def __init__(
        self,
        data: str,
        task: str,
        size: int,
        instruction: str = "",
        encode: Encode | None = None,
        number: int | None = None,
    ) -> None:
        pictures: Pictures = open_pictures(data, size)
        self.after = CaptionedImages(pictures, size, caption=instruction)
        self.before = ConditionImages(pictures, size)
        super().__init__(len(self.after), encode)
        if not len(self):
            raise InputError(f"{data} holds no pictures")
        self.task, self.number, self.split = task, number, "train"
        self.shape = (3, size, size)

    def row(self, index: int) -> Row:
        """Pair `index`."""
        before = _array(self.before.pixels([index], condition=True))
        after = _array(self.after.pixels([index]))
        mask = (np.abs(after.astype(np.int16) - before) >= CHANGED).any(-1)
        return Row(before, self.after.captions[index], after, self.task, "", "", mask)

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, Any]:
        """The pairs at `indices`; see `examples_of`."""
        return examples_of([self.row(int(i)) for i in indices], self.encode, self.number)


def _array(x: torch.Tensor) -> np.ndarray:
    picture: np.ndarray = x[0].permute(1, 2, 0).numpy()
    return picture
