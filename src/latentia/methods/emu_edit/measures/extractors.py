"""What an extractor is: pictures, and for some texts too, as vectors; and what it is called."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch


class PictureFeatures(Protocol):
    """Pictures as vectors, such as DINO. `digest` tells published weights apart; None for networks of our own."""

    @property
    def name(self) -> str:
        """What stands in the brackets of a number."""
        ...

    @property
    def digest(self) -> str | None:
        """First digits of the weights' SHA-256."""
        ...

    def pictures(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Pictures uint8 (H, W, 3), each of its own size → (B, D)."""
        ...


@runtime_checkable
class PicturesAndTexts(PictureFeatures, Protocol):
    """Pictures and texts in one space, such as CLIP."""

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """B texts → (B, D)."""
        ...

    def too_long(self, text: str) -> bool:
        """Whether the end of the text is cut off."""
        ...
