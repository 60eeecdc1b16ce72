"""What a finished first stage reports of itself: numbers on held-out pictures, and a sheet of reconstructions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.protocols import Codec, FeatureNetwork
from latentia.recipes.codec_evaluation import CodecNumbers
from latentia.recipes.codec_report import write_report

if TYPE_CHECKING:
    from latentia.recipes.codec_gan import CodecGAN

MOST = 2048
"""Pictures judged at most; a paper's 50,000 are for `latentia evaluate`."""


def held_out(recipe: CodecGAN, split: str) -> torch.Tensor:
    """The pictures (N, C, H, W) to judge: tiles side by side of whole photographs, in full and in half size; or the
    split of the recipe's data. `report` photographs are never trained on, nor settings chosen by them.
    """
    if recipe.data == "photos":
        from latentia.data.photos import photos

        data: Any = photos(split, recipe.image_size, scales=(1.0, 0.5), channels=recipe.image_channels)
    else:
        data = recipe.images("test")
    rows = torch.linspace(0, len(data) - 1, min(len(data), MOST)).long()
    found: torch.Tensor = data.batch(rows.tolist())["x"]
    return found


def rulers(recipe: CodecGAN, out: Path) -> list[FeatureNetwork]:
    """The ruler of the recipe's data: `digits` for digits, `photo_features` for photographs; none for other data."""
    if recipe.data == "digits":
        from latentia.recipes.judge import digits_judge

        return [digits_judge(recipe.image_size)]
    if recipe.data == "photos" and recipe.image_channels == 3:
        from latentia.recipes.photo_features import FOLDER, ruler

        return [ruler(out / FOLDER)]
    return []


def tell(recipe: CodecGAN, codec: Codec, out: Path) -> CodecNumbers:
    """Judge the codec, write `out`/report.json, report.html and reconstructions.png; returns the numbers.

    Photographs are judged on `report`, all other data on its test split.
    """
    split = "report" if recipe.data == "photos" else "test"
    pictures = held_out(recipe, split)
    return write_report(recipe.name, codec, pictures, rulers(recipe, out), out, split)
