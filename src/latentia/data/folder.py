"""A folder of pictures as a dataset: decoded when asked for, labelled by sub-folder or by metadata.jsonl."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from PIL import Image

from latentia.data.dataset import check_channels, check_indices, check_size
from latentia.data.decode import decode_all, prepare, to_unit
from latentia.errors import ArtifactError, InputError, check_choice

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
LABELS = ("auto", "folders", "metadata", "none")
CORRUPT = ("raise", "skip")
METADATA = "metadata.jsonl"
CAPTION_FIELDS = ("text", "caption")
CONDITION_FIELDS = ("conditioning_image", "conditioning_image_file_name")


class ImageFolder:
    """Pictures below a folder: `{"x": (B, C, size, size) in [-1, 1], "label": (B,) int64}`.

    Attributes:
        files: paths relative to the folder, sorted by their parts, so that the order is the same everywhere.
        classes: class names, sorted; empty when there are none (then all labels are 0).
        labels: class index of each file, int64 (N,).
        captions: text of each file from metadata.jsonl (`text` or `caption`), "" where it has none.
        skipped: files left out as corrupt, with the reason.
        conditions: the picture that belongs to each file, by metadata.jsonl's `conditioning_image`, "" where it has
            none; such pictures are not among `files`. Empty when there are none at all.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        labels: torch.Tensor,
        classes: Sequence[str],
        captions: Sequence[str],
        shape: tuple[int, int, int],
        skipped: Mapping[str, str] = MappingProxyType({}),
        conditions: Sequence[str] = (),
    ) -> None:
        self.root, self.files, self.captions = root, tuple(files), tuple(captions)
        self.conditions = tuple(conditions)
        self.labels, self.classes = labels, tuple(classes)
        self.shape = shape
        self.skipped = dict(skipped)

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, torch.Tensor]:
        """The pictures at `indices`, decoded in threads; `ArtifactError` names every one that cannot be decoded."""
        rows = check_indices(indices, len(self))
        files = [self.files[row] for row in rows.tolist()]
        pictures, failures = decode_all(self._decode, files)
        if failures:
            raise ArtifactError(_describe(self.root, {files[i]: reason for i, reason in failures.items()}))
        x = torch.stack([p for p in pictures if p is not None]) if files else torch.empty(0, *self.shape)
        return {"x": to_unit(x), "label": self.labels[rows]}

    def corrupt(self) -> dict[str, str]:
        """Decode every file once; those that fail, with the reason."""
        found: dict[str, str] = {}
        for start in range(0, len(self), 256):  # a few at a time: nothing is kept
            files = self.files[start : start + 256]
            _, failures = decode_all(self._decode, files)
            found |= {files[i]: reason for i, reason in failures.items()}
        return found

    def without(self, files: Mapping[str, str]) -> "ImageFolder":
        """The same folder without `files` (name → reason), which `skipped` records; classes keep their numbers."""
        kept = [i for i, name in enumerate(self.files) if name not in files]
        names, captions = [self.files[i] for i in kept], [self.captions[i] for i in kept]
        skipped = self.skipped | dict(files)
        conditions = [self.conditions[i] for i in kept] if self.conditions else ()
        return ImageFolder(self.root, names, self.labels[kept], self.classes, captions, self.shape, skipped, conditions)

    def _decode(self, file: str) -> torch.Tensor:
        with Image.open(self.root / file) as picture:
            return prepare(picture, self.shape[1], self.shape[0])


def image_folder(
    path: str | os.PathLike[str],
    size: int,
    channels: int = 3,
    labels: str = "auto",
    on_corrupt: str = "raise",
) -> ImageFolder:
    """All pictures below `path`, shorter side resized to `size` (bicubic, antialiased), centre cropped.

    Args:
        path: the folder; sub-folders are searched, hidden files and folders are not.
        size: side in pixels.
        channels: 3 (RGB) or 1 (grey).
        labels: `folders`: the first sub-folder is the class; `metadata`: one JSON object a line in
            `metadata.jsonl`, with `file_name` and any of `label`, `text`, `caption`, `conditioning_image`; `none`;
            `auto`: metadata if the file is there, else folders if there are any.
        on_corrupt: `raise`: a file that cannot be decoded raises when it is asked for; `skip`: every file is
            decoded once now, bad ones are left out with a warning and listed in `.skipped`.

    Raises `InputError` for a folder without pictures, `ArtifactError` for a missing folder or broken metadata.
    """
    size, channels = check_size(size), check_channels(channels)
    check_choice("labels", labels, LABELS)
    check_choice("on_corrupt", on_corrupt, CORRUPT)
    root = Path(path)
    if not root.is_dir():
        raise ArtifactError(f"no folder at {root}" + (": it is a file" if root.exists() else ""))
    files = _pictures(root)
    if not files:
        raise InputError(f"no pictures in {root}: looked for {', '.join(SUFFIXES)} there and in its sub-folders")
    if labels == "auto":
        nested = any("/" in name for name in files)
        labels = "metadata" if (root / METADATA).is_file() else "folders" if nested else "none"
    if labels == "metadata":
        listed = _metadata(root, files)
    else:
        listed = Listed(files, _folders(root, files) if labels == "folders" else [], [""] * len(files), [])
    numbers, classes = number_classes(listed.labels, len(listed.files))
    shape = (channels, size, size)
    dataset = ImageFolder(root, listed.files, numbers, classes, listed.captions, shape, conditions=listed.conditions)
    if on_corrupt == "raise":
        return dataset
    bad = dataset.corrupt()
    if bad:
        warnings.warn("left out: " + _describe(root, bad), stacklevel=2)
        dataset = dataset.without(bad)
    if not len(dataset):
        raise InputError(f"none of the {len(bad)} pictures in {root} can be decoded")
    return dataset


def _pictures(root: Path) -> list[str]:
    """Relative POSIX paths, sorted by parts: independent of the file system's order and of the locale."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            Path(folder, name).relative_to(root)
            for name in names
            if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    return [path.as_posix() for path in sorted(found, key=lambda path: path.parts)]


def number_classes(names: Sequence[str | int], count: int) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Class numbers (N,) and class names: integers stand for themselves, words are numbered in sorted order."""
    if not names:
        return torch.zeros(count, dtype=torch.int64), ()
    if all(isinstance(name, int) and name >= 0 for name in names):
        numbers = torch.tensor(names, dtype=torch.int64)
        return numbers, tuple(str(i) for i in range(int(numbers.max()) + 1))
    classes = tuple(sorted({str(name) for name in names}))
    ranks = {name: i for i, name in enumerate(classes)}
    return torch.tensor([ranks[str(name)] for name in names], dtype=torch.int64), classes


def _folders(root: Path, files: Sequence[str]) -> list[str]:
    loose = [name for name in files if "/" not in name]
    if loose:
        raise InputError(
            f"{len(loose)} pictures of {root} lie in no class folder, e.g. {loose[0]}: move them, or use labels='none'"
        )
    return [name.partition("/")[0] for name in files]


class Listed(NamedTuple):
    """What is known of a folder's pictures, file by file; `labels` and `conditions` are empty when there are none."""

    files: Sequence[str]
    labels: Sequence[str | int]
    captions: Sequence[str]
    conditions: Sequence[str]


def _metadata(root: Path, files: Sequence[str]) -> Listed:
    """What metadata.jsonl says of each file."""
    path = root / METADATA
    if not path.is_file():
        raise ArtifactError(f"no {METADATA} in {root}: write one JSON object a line with file_name and label or text")
    entries: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            entries[str(Path(entry["file_name"]).as_posix())] = entry
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ArtifactError(f"{path} line {number} is no JSON object with a file_name: {error}") from None
    by_file = {name: _first_text(entry, CONDITION_FIELDS) for name, entry in entries.items()}
    listed = set(entries) | {name for name in by_file.values() if name}
    absent = sorted(listed - set(files))
    unlisted = sorted(set(files) - listed)
    if absent or unlisted:
        raise ArtifactError(
            f"{path} and the folder differ: {len(absent)} listed but missing {absent[:3]}, "
            f"{len(unlisted)} present but not listed {unlisted[:3]}"
        )
    files = [name for name in files if name in entries]
    unlabelled = [name for name in files if entries[name].get("label") is None]
    if unlabelled and len(unlabelled) < len(files):
        raise ArtifactError(f"{path}: {len(unlabelled)} of {len(files)} entries have no label, e.g. {unlabelled[0]}")
    names = [] if unlabelled else [entries[name]["label"] for name in files]
    captions = [_first_text(entries[name], CAPTION_FIELDS) for name in files]
    return Listed(files, names, captions, [by_file[name] for name in files] if any(by_file.values()) else [])


def _first_text(entry: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The first of `fields` that `entry` has, "" for none."""
    return str(next((entry[name] for name in fields if entry.get(name) is not None), ""))


def _describe(root: Path, failures: Mapping[str, str]) -> str:
    listed = "; ".join(f"{name} ({reason})" for name, reason in list(failures.items())[:10])
    more = f" and {len(failures) - 10} more" if len(failures) > 10 else ""
    return (
        f"{len(failures)} pictures in {root} cannot be decoded: {listed}{more}. "
        "Replace or remove them, or use on_corrupt='skip'"
    )
