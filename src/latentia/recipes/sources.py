"""Where a recipe's images and first stages come from, by name or folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentia.errors import ArtifactError, InputError, check_choice, nearest

if TYPE_CHECKING:
    from latentia.codecs.spatial_codec import SpatialCodec
    from latentia.core.protocols import Dataset

PUBLISHED_SIZES = {"digits": 1257, "celebahq": 30_000, "imagenet": 1_281_167, "hf:cifar10": 50_000}
"""Images in each training set, for dry runs, which open no data."""
