"""Where pictures with captions lie: a folder, or a Hub data set; perhaps each with a second picture to steer by."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from latentia.data.folder import CAPTION_FIELDS, METADATA, ImageFolder, image_folder
from latentia.data.hub_datasets import find_column, image_column, load_rows, open_cell
from latentia.errors import ArtifactError

CONDITION_COLUMNS = ("conditioning_image", "condition", "control", "source")


class Pictures(Protocol):
    """Where pictures lie, and what is said of them."""

    captions: Sequence[str]
    conditioned: bool
    """Whether a second picture belongs to each, such as its edges."""

    def name(self, row: int) -> str:
        """What to call picture `row` in an error."""
        ...

    def cells(self, rows: Sequence[int], condition: bool) -> list[Any]:
        """What `open` takes, for the pictures `rows` or for those that belong to them."""
        ...

    def open(self, cell: Any) -> Image.Image:
        """The picture, perhaps not decoded yet."""
        ...


class FolderPictures:
    """The files of a folder; captions from metadata.jsonl, else from NAME.txt beside NAME.png."""

    def __init__(self, folder: ImageFolder) -> None:
        self.root, self.files, self.conditions = folder.root, folder.files, folder.conditions
        self.captions: Sequence[str] = [
            said or _beside(self.root / file) for said, file in zip(folder.captions, self.files)
        ]
        self.conditioned = bool(self.conditions) and all(self.conditions)

    def name(self, row: int) -> str:
        """The file."""
        return self.files[row]

    def cells(self, rows: Sequence[int], condition: bool) -> list[Path]:
        """Paths."""
        names = self.conditions if condition else self.files
        return [self.root / names[row] for row in rows]

    def open(self, cell: Path) -> Image.Image:
        """The file, opened."""
        return Image.open(cell)


class HubPictures:
    """Rows of a Hub data set; a row with several captions counts with its first."""

    def __init__(self, name: str, split: str = "train", image: str | None = None, caption: str | None = None) -> None:
        rows, self.image = image_column(load_rows(name, split), name, image)
        columns = list(rows.column_names)
        text = find_column("caption column", caption, columns, CAPTION_FIELDS)
        self.captions: Sequence[str] = [_one(said) for said in rows[text]] if text else [""] * len(rows)
        self.condition = find_column("conditioning column", None, columns, CONDITION_COLUMNS)
        self.conditioned = self.condition is not None
        self.rows = image_column(rows, name, self.condition)[0] if self.condition else rows

    def name(self, row: int) -> str:
        """The row's number."""
        return f"row {row}"

    def cells(self, rows: Sequence[int], condition: bool) -> list[Any]:
        """Cells of the table."""
        found: list[Any] = self.rows[list(rows)][self.condition if condition else self.image]
        return found

    def open(self, cell: Any) -> Image.Image:
        """The cell's picture."""
        return open_cell(cell)


def _beside(file: Path) -> str:
    path = file.with_suffix(".txt")
    try:
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is no UTF-8 text: {error}") from None


def _one(said: Any) -> str:
    first = said if isinstance(said, str) or said is None else next(iter(said), None)
    return "" if first is None else str(first)


def folder_pictures(path: Path, size: int) -> FolderPictures:
    """The pictures of a folder, of its sub-folder `train` if it has one, with what metadata.jsonl says of them."""
    root = path / "train" if (path / "train").is_dir() else path
    labels = "metadata" if (root / METADATA).is_file() else "none"
    return FolderPictures(image_folder(root, size, labels=labels))
