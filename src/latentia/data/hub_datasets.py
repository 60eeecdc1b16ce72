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
        with open_cell(cell) as picture:
            return prepare(picture, self.shape[1], self.shape[0])


def open_cell(cell: Any) -> Image.Image:
    """The picture in a cell of an image column: decoded already, as bytes, or as the path of a file."""
    if isinstance(cell, Image.Image):
        return cell.copy()
    return Image.open(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]))


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
    rows = load_rows(name, split, config, revision, cache_dir)
    columns = list(rows.column_names)
    rows, image = image_column(rows, name, image)
    label = find_column("label column", label, columns, LABEL_COLUMNS)
    classes = getattr(rows.features[label], "names", None) or () if label else ()
    return HubDataset(rows, image, label, size, channels, classes)


def load_rows(
    name: str,
    split: str = "train",
    config: str | None = None,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """One split of a Hub data set as a table of `datasets`; raises as `hf_dataset` does."""
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
    return loaded[split]


def image_column(
    rows: Any, name: str, image: str | None = None, usual: Sequence[str] = IMAGE_COLUMNS
) -> tuple[Any, str]:
    """The table with the pictures of a column left undecoded, and that column: `image`, or the first of `usual`."""
    columns = list(rows.column_names)
    image = find_column("image column", image, columns, usual)
    if image is None:
        raise InputError(f"{name} has no image column among {', '.join(columns)}: say image='...'")
    import datasets

    if isinstance(rows.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))  # decoded here: in threads, failures by row
    return rows, image


def find_column(kind: str, given: str | None, columns: Sequence[str], usual: Sequence[str]) -> str | None:
    """The column `given`, which must be there, or the first of `usual` that is; None for none."""
    if given is None:
        return next((name for name in usual if name in columns), None)
    if given not in columns:
        raise unknown_choice(kind, given, columns)
    return given
