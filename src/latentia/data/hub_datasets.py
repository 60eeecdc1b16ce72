"""Data sets by name from the Hugging Face Hub, when the `datasets` package is installed."""

import io
import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from latentia.data.dataset import check_channels, check_indices, check_size
from latentia.data.decode import decode_all, prepare, to_unit
from latentia.errors import ArtifactError, InputError, MissingDependency, check_choice, unknown_choice

IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")


class HubDataset:
    """Rows of a Hub data set: `{"x": (B, C, size, size) in [-1, 1], "label": (B,) int64}`, decoded when asked for.

    `classes` are the class names when the data set declares them, `rows` is the underlying table.
    """

    def __init__(
        self, rows: Any, image: str, label: str | None, size: int, channels: int, classes: Sequence[str]
    ) -> None:
        self.rows, self.image, self.label = rows, image, label
        self.shape = (channels, size, size)
        self.classes = tuple(classes)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, torch.Tensor]:
        """The rows at `indices`; `ArtifactError` lists those whose picture cannot be decoded."""
        wanted = check_indices(indices, len(self)).tolist()
        table = self.rows[wanted]
        pictures, failures = decode_all(self._decode, table[self.image])
        if failures:
            listed = "; ".join(f"row {wanted[i]} ({reason})" for i, reason in list(failures.items())[:10])
            raise ArtifactError(f"{len(failures)} pictures cannot be decoded: {listed}")
        x = torch.stack([p for p in pictures if p is not None]) if wanted else torch.empty(0, *self.shape)
        labels = [0] * len(wanted) if self.label is None else table[self.label]
        return {"x": to_unit(x), "label": torch.tensor(labels, dtype=torch.int64)}

    def _decode(self, cell: Any) -> torch.Tensor:
        if isinstance(cell, Image.Image):
            return prepare(cell, self.shape[1], self.shape[0])
        source = cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])
        with Image.open(source) as picture:
            return prepare(picture, self.shape[1], self.shape[0])


def hf_dataset(
    name: str,
    size: int,
    split: str = "train",
    image: str | None = None,
    label: str | None = None,
    channels: int = 3,
    config: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> HubDataset:
    """A Hub data set by name, prepared as `image_folder` does: shorter side to `size` (bicubic), centre crop.

    Args:
        name: e.g. `uoft-cs/cifar10`; a local folder in the format of `datasets` works too.
        size, channels: shape of `x`.
        split: one of the data set's splits.
        image, label: columns; None finds them (`image`, `img`, …; `label`, …). A data set without a label
            column has label 0 everywhere.
        config, revision, cache_dir: passed on to `datasets.load_dataset`. No code of the data set is run.

    Raises `MissingDependency` without the package, `ArtifactError` when it cannot be loaded,
    `UnknownChoiceError` for a split or column that is not there.
    """
    size, channels = check_size(size), check_channels(channels)
    try:
        import datasets  # optional and slow to import
    except ImportError:
        raise MissingDependency(
            "data sets by name need the package 'datasets': pip install 'latentia[datasets]'"
        ) from None
    try:
        loaded = datasets.load_dataset(name, config, revision=revision, cache_dir=cache_dir)
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"cannot load data set {name!r}: {error}") from error
    check_choice("split", split, loaded)
    rows = loaded[split]
    columns = list(rows.column_names)
    image = _column("image column", image, columns, IMAGE_COLUMNS)
    if image is None:
        raise InputError(f"{name} has no image column among {', '.join(columns)}: say image='...'")
    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))  # decoded here: in threads, failures by row
    label = _column("label column", label, columns, LABEL_COLUMNS)
    classes = getattr(rows.features[label], "names", None) or () if label else ()
    return HubDataset(rows, image, label, size, channels, classes)


def _column(kind: str, given: str | None, columns: Sequence[str], usual: Sequence[str]) -> str | None:
    if given is None:
        return next((name for name in usual if name in columns), None)
    if given not in columns:
        raise unknown_choice(kind, given, columns)
    return given
