"""CodecTraining: what the recipes of codecs share: the pictures, turned and mirrored, and a look at them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from latentia.recipes.recipe import Bench, Recipe

if TYPE_CHECKING:
    import torch

    from latentia.core.protocols import Batch, Dataset

Augment = Literal["none", "flip", "symmetries"]


class CodecTraining(Recipe):
    """Abstract: a codec learns from pictures, or from tiles of photographs."""

    next_command: ClassVar[str] = "latentia reconstruct PICTURE.png --codec {pipeline}"

    data: str = Field(description="digits, photos, hf:NAME, or a folder of images")
    image_size: PositiveInt = Field(description="side of a picture (a tile) in pixels")
    image_channels: PositiveInt = Field(default=3, description="1 (grey) or 3 (RGB)")
    augment: Augment = Field(
        default="none",
        description="flip: mirrored half of the time; symmetries: turned and mirrored two times in three",
    )
    stride: PositiveInt = Field(default=1, description="pixels between the tiles of training photographs")
    scales: tuple[PositiveFloat, ...] = Field(default=(1.0, 0.5), description="sizes of the training photographs")

    def images(self, split: str = "train") -> Dataset:
        """The pictures; training photographs are cut into overlapping tiles, at several sizes."""
        from latentia.recipes.sources import MirroredDataset, open_data

        if self.data == "photos" and split == "train":
            from latentia.data.photos import photos

            found: Dataset = photos(split, self.image_size, self.stride, self.scales, self.image_channels)
        else:
            found = open_data(self.data, split, self.image_size, self.image_channels)
        if split != "train" or self.augment == "none":
            return found
        return MirroredDataset(found) if self.augment == "flip" else TurnedDataset(found)

    def glance(self, bench: Bench) -> torch.Tensor:
        """Up to eight held-out pictures (B, C, H, W), spread over all there are."""
        import torch

        data = self.images("test")
        rows = torch.linspace(0, len(data) - 1, min(8, len(data))).long()
        return data.batch(rows.tolist())["x"].to(bench.device)


class TurnedDataset:
    """Every square picture four times as it is, and in its seven other orientations: 11·N pictures.

    For codecs of small data sets: turned pictures are made of the same strokes, which keeps a network from learning the
    pictures by heart.
    """

    UNTURNED, ORIENTATIONS = 4, 8

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return (self.UNTURNED + self.ORIENTATIONS - 1) * len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The pictures at `indices`; the first 4N are as they are."""
        import torch

        rows, n = torch.as_tensor(indices), len(self.images)
        batch = dict(self.images.batch((rows % n).tolist()))
        x = batch["x"]
        orientation = (rows // n - self.UNTURNED + 1).clamp_min(0).view(-1, 1, 1, 1).to(x.device)
        x = torch.where((orientation & 1) > 0, x.flip(-1), x)
        x = torch.where((orientation & 2) > 0, x.flip(-2), x)
        batch["x"] = torch.where((orientation & 4) > 0, x.transpose(-1, -2), x)
        return batch
