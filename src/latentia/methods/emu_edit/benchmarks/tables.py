"""Tables with pictures in the layouts of Hugging Face data sets, read row by row.

| layout | read by |
|---|---|
| `metadata.jsonl` or `metadata.csv` beside picture files, in a folder for each split | nothing further |
| `<split>-00000-of-00004.parquet`, also under `data/` | `pyarrow` |
| `save_to_disk` (Arrow files), Hub ids | `datasets` |
"""

import csv
import importlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentia.core.files import read_json
from latentia.data.decode import flatten
from latentia.data.hub_datasets import load_rows, open_cell
from latentia.errors import ArtifactError, InputError, MissingDependency, check_choice, nearest

METADATA = ("metadata.jsonl", "metadata.csv")
_SUFFIX = "file_name"


class Table(ABC):
    """Rows by number, columns by name. `name` says where it is from, in messages."""

    def __init__(self, name: str, columns: Sequence[str], length: int) -> None:
        self.name, self.columns, self.length = name, tuple(columns), length

    def __len__(self) -> int:
        return self.length

    @abstractmethod
    def column(self, name: str) -> list[Any]:
        """All values of a column without pictures."""

    @abstractmethod
    def row(self, index: int) -> Mapping[str, Any]:
        """One row; cells with pictures are not decoded."""

    def need(self, *columns: str) -> None:
        """Raise `InputError` that names the missing columns, those there are, and the likeliest mistake."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            others = [column for column in self.columns if column not in columns]
            hints = [f"{m} (is it {near!r}?)" if (near := nearest(m, others)) else m for m in missing]
            raise InputError(
                f"{self.name} lacks the column{'s'[: len(missing) != 1]} {', '.join(hints)}; "
                f"it has: {', '.join(self.columns) or 'none'}"
            )

    def picture(self, index: int, column: str) -> np.ndarray:
        """The picture of a cell, uint8 (H, W, 3); raises `ArtifactError` for one that is missing or broken."""
        cell = self.row(index)[column]
        if cell is None or (isinstance(cell, Mapping) and cell.get("bytes") is None and not cell.get("path")):
            raise ArtifactError(f"{self.name}: row {index} has no picture in {column!r}")
        try:
            with open_cell(cell) as picture:
                return np.asarray(flatten(picture, "RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise ArtifactError(f"{self.name}: the {column!r} of row {index} cannot be decoded: {error}") from error


class FolderTable(Table):
    """Picture files and a file of metadata: `file_name` is the column `image`, `X_file_name` the column `X`."""

    def __init__(self, metadata: Path) -> None:
        self.folder = metadata.parent
        self.rows = _read_jsonl(metadata) if metadata.suffix == ".jsonl" else _read_csv(metadata)
        named = list(dict.fromkeys(key for row in self.rows for key in row))
        self._files = {_picture_column(key): key for key in named if key.endswith(_SUFFIX)}
        columns = [_picture_column(key) if key.endswith(_SUFFIX) else key for key in named]
        super().__init__(str(metadata), columns, len(self.rows))

    def column(self, name: str) -> list[Any]:
        """See the base."""
        return [row.get(name) for row in self.rows]

    def row(self, index: int) -> Mapping[str, Any]:
        """See the base."""
        row = dict(self.rows[index])
        for column, key in self._files.items():
            given = row.pop(key, None)
            row[column] = None if not given else {"bytes": None, "path": str(self._inside(str(given), index))}
        return row

    def _inside(self, name: str, index: int) -> Path:
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ArtifactError(f"{self.name}: row {index} names {name!r}, which is outside its folder")
        return path


class ParquetTable(Table):
    """Parquet files one after another; one group of rows is in memory at a time."""

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        try:
            parquet: Any = importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise MissingDependency(
                f"{name} holds Parquet files, which need the package 'pyarrow': pip install 'latentia[datasets]'"
            ) from None
        try:
            self._files = [parquet.ParquetFile(file) for file in files]
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{name}: {error}") from error
        self._groups: list[tuple[int, int, int]] = []
        total = 0
        for number, file in enumerate(self._files):
            for group in range(file.num_row_groups):
                self._groups.append((total, number, group))
                total += file.metadata.row_group(group).num_rows
        self._open: tuple[int, list[Any]] = (-1, [])
        super().__init__(name, self._files[0].schema_arrow.names, total)

    def column(self, name: str) -> list[Any]:
        """See the base."""
        return [row[name] for file in self._files for row in file.read(columns=[name]).to_pylist()]

    def row(self, index: int) -> Mapping[str, Any]:
        """See the base."""
        at = max(i for i, (start, _, _) in enumerate(self._groups) if start <= index)
        start, number, group = self._groups[at]
        if self._open[0] != at:
            self._open = at, self._files[number].read_row_group(group).to_pylist()
        found: Mapping[str, Any] = self._open[1][index - start]
        return found


class DatasetsTable(Table):
    """A table of the package `datasets`, its pictures left undecoded."""

    def __init__(self, name: str, rows: Any) -> None:
        import datasets

        for column, feature in rows.features.items():
            if isinstance(feature, datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        self._rows = rows
        super().__init__(name, rows.column_names, len(rows))

    def column(self, name: str) -> list[Any]:
        """See the base."""
        return list(self._rows[name])

    def row(self, index: int) -> Mapping[str, Any]:
        """See the base."""
        found: Mapping[str, Any] = self._rows[index]
        return found


def open_tables(name: str) -> dict[str, Table]:
    """Every split of a local folder in one of the layouts above, opened; empty when `name` is no folder."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return {}
    if (folder / "dataset_dict.json").is_file():
        splits = read_json(folder / "dataset_dict.json").get("splits", [])
        return {split: _from_disk(folder / split) for split in splits}
    found: dict[str, Table] = {}
    for inner in sorted(each for each in folder.iterdir() if each.is_dir()):
        metadata = next((inner / each for each in METADATA if (inner / each).is_file()), None)
        if metadata is not None:
            found[inner.name] = FolderTable(metadata)
    for split, files in _parquet_files(folder).items():
        found.setdefault(split, ParquetTable(f"{name} ({split})", files))
    return found


def open_table(name: str, split: str) -> Table:
    """One split of a folder or a Hub id.

    Raises `ArtifactError` for a folder in no known layout, `UnknownChoiceError` for a split that is not there,
    `MissingDependency` for a layout whose package is not installed.
    """
    tables = open_tables(name)
    if tables:
        check_choice(f"split of {name}", split, tables)
        return tables[split]
    if Path(name).expanduser().is_dir():
        raise ArtifactError(
            f"{name} holds no data set: expected {' or '.join(METADATA)} in a folder for each split, "
            "<split>-*.parquet, or dataset_dict.json"
        )
    return DatasetsTable(f"{name} ({split})", load_rows(name, split))


def _from_disk(folder: Path) -> Table:
    try:
        import datasets
    except ImportError:
        raise MissingDependency(
            f"{folder} was written by save_to_disk, which needs the package 'datasets': pip install "
            "'latentia[datasets]'"
        ) from None
    return DatasetsTable(str(folder), datasets.load_from_disk(str(folder)))


def _parquet_files(folder: Path) -> dict[str, list[Path]]:
    """Parquet files by split: `data/test-00000-of-00003-1a2b.parquet`, `test-….parquet`, `test/….parquet`."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("*.parquet")):
        inner = file.parent if file.parent.name not in ("data", folder.name) else None
        split = file.name.split("-")[0].removesuffix(".parquet") if inner is None else inner.name
        found.setdefault(split, []).append(file)
    return found


def _picture_column(key: str) -> str:
    return "image" if key == _SUFFIX else key.removesuffix(f"_{_SUFFIX}")


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ArtifactError(f"{path}, line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ArtifactError(f"{path}, line {number}: expected an object of columns, got {type(row).__name__}")
        rows.append(row)
    return rows


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [dict(row) for row in csv.DictReader(file)]
