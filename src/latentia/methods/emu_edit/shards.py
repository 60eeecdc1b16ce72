"""Rows on disk: shards of pixels (safetensors) and words (JSON), written whole or not at all, resumable.

    manifest.json            what the rows are: seed, split, size, tasks, total, rows a shard, the world's fingerprint
    shard-00000.json         instructions, captions, tasks, meta of its rows; how many attempts were dropped, and why
    shard-00000.safetensors  image, target (N, H, W, 3) uint8 and mask (N, H, W) uint8

A shard exists when its safetensors does, which is written last. Writing again makes what is missing, nothing else.
"""

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentia.core.arguments import check_count
from latentia.core.artifacts import read_safetensors, write_safetensors
from latentia.core.files import read_json, write_atomic, write_text_atomic
from latentia.errors import ArtifactError, Cancelled, InputError, check_choice
from latentia.methods.emu_edit.engine import Engine, SceneSource
from latentia.methods.emu_edit.rows import Row, check_row
from latentia.methods.emu_edit.tasks.registry import TASKS
from latentia.methods.emu_edit.world.backgrounds import photos_of
from latentia.methods.emu_edit.world.grammar import frames, kinds
from latentia.methods.emu_edit.world.vocabulary import SPLITS
from latentia.methods.emu_edit.world.writing import fonts

FORMAT = "latentia-edit-rows"
VERSION = 1
_PIXELS = ("image", "target", "mask")
_WORDS = ("instruction", "task", "input_caption", "output_caption", "meta")


def write_shards(
    engine: Engine,
    folder: Path,
    split: str,
    total: int,
    rows_per_shard: int = 1000,
    tell: Callable[[int, int], None] | None = None,
    stop: threading.Event | None = None,
) -> dict[str, Any]:
    """Write rows 0 … `total` − 1 of a split, shard by shard; shards that are there already are left alone.

    `tell(done, total)` is called after every shard; `stop` ends between two shards with `Cancelled`. Returns the
    manifest with the `counts` of all shards. Raises `InputError` when the folder holds other rows.
    """
    check_choice("split", split, SPLITS)
    total, rows_per_shard = check_count("total", total), check_count("rows_per_shard", rows_per_shard)
    folder = Path(folder)
    manifest = _describe(engine, split, total, rows_per_shard)
    _agree(folder, manifest)
    write_text_atomic(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    for number, start in enumerate(range(0, total, rows_per_shard)):
        if stop is not None and stop.is_set():
            raise Cancelled(f"stopped after {start} of {total} rows; write again to go on")
        end = min(start + rows_per_shard, total)
        if not _whole(folder, number, end - start):
            _write_shard(engine, folder, split, number, start, end)
        if tell is not None:
            tell(end, total)
    return {**manifest, "counts": counts(folder)}


def counts(folder: Path) -> dict[str, int]:
    """Kept rows and dropped attempts by reason, over the shards of a folder."""
    found: Counter[str] = Counter()
    for path in sorted(Path(folder).glob("shard-*.json")):
        found.update(read_json(path).get("counts", {}))
    return dict(found)


def world_fingerprint() -> str:
    """16 hexadecimal digits over what rows depend on beside their numbers: tasks, phrasings, fonts, photographs."""
    parts = [list(TASKS), {kind: frames(kind, "train") for kind in kinds()}, fonts(), [photos_of(s) for s in SPLITS]]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def read_shard(folder: Path, number: int) -> list[Row]:
    """The rows of one shard. Raises `ArtifactError` for a missing column or picture, or parts that do not fit."""
    stem = Path(folder) / f"shard-{number:05d}"
    pixels = read_safetensors(stem.with_suffix(".safetensors"))
    absent = [name for name in _PIXELS if name not in pixels]
    if absent:
        raise ArtifactError(f"{stem.name}.safetensors has no {', '.join(absent)}: expected {', '.join(_PIXELS)}")
    words = read_json(stem.with_suffix(".json")).get("rows")
    if not isinstance(words, list) or any(len(tensor) != len(words) for tensor in pixels.values()):
        raise ArtifactError(f"{stem.name}.json does not list one entry for each of the {len(pixels['image'])} pictures")
    image, target, mask = (pixels[name].numpy() for name in _PIXELS)
    return [_row(stem.name, i, entry, image[i], target[i], mask[i] > 0) for i, entry in enumerate(words)]


def _row(name: str, i: int, entry: Any, image: np.ndarray, target: np.ndarray, mask: np.ndarray) -> Row:
    missing = [key for key in _WORDS if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise ArtifactError(f"row {i} of {name}.json has no {', '.join(missing)}: expected {', '.join(_WORDS)}")
    row = Row(image, entry["instruction"], target, entry["task"], entry["input_caption"], entry["output_caption"], mask)
    row.meta = entry["meta"]
    try:
        check_row(row)
    except InputError as error:
        raise ArtifactError(f"row {i} of {name} is broken: {error}") from None
    return row


def _write_shard(engine: Engine, folder: Path, split: str, number: int, start: int, end: int) -> None:
    before = Counter(engine.counts)
    rows = list(engine.rows(split, start, end))
    words = [{key: getattr(row, key) for key in _WORDS} for row in rows]
    pixels = {name: torch.from_numpy(np.stack([getattr(row, name) for row in rows])) for name in ("image", "target")}
    pixels["mask"] = torch.from_numpy(np.stack([row.mask for row in rows]).astype(np.uint8))
    stem = folder / f"shard-{number:05d}"
    listed = {"rows": words, "counts": dict(engine.counts - before)}
    write_text_atomic(stem.with_suffix(".json"), json.dumps(listed, separators=(",", ":")) + "\n")
    write_atomic(stem.with_suffix(".safetensors"), lambda beside: write_safetensors(beside, pixels, {"format": FORMAT}))


def _whole(folder: Path, number: int, rows: int) -> bool:
    stem = folder / f"shard-{number:05d}"
    if not stem.with_suffix(".safetensors").is_file():
        return False
    listed = read_json(stem.with_suffix(".json")).get("rows", [])
    return len(listed) == rows  # the last shard of a smaller total is made again


def _describe(engine: Engine, split: str, total: int, rows_per_shard: int) -> dict[str, Any]:
    manifest: dict[str, Any] = {"format": FORMAT, "version": VERSION, "seed": engine.seed, "split": split}
    manifest |= {"total": total, "rows_per_shard": rows_per_shard, "world": world_fingerprint()}
    if isinstance(engine.source, SceneSource):
        source = engine.source
        manifest |= {"source": "scenes", "size": source.world.size, "tasks": list(source.tasks)}
        manifest["weights"] = None if source.weights is None else list(source.weights)
    return manifest


def _agree(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise `InputError` when the folder's rows are not the beginning of those asked for."""
    if not (folder / "manifest.json").is_file():
        return
    there = read_manifest(folder)
    other = [key for key in manifest if key != "total" and there.get(key) != manifest[key]]
    if other:
        told = ", ".join(f"{key} {there.get(key)!r} instead of {manifest[key]!r}" for key in other)
        raise InputError(f"{folder} holds other rows ({told}): choose another folder")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of rows; raises `ArtifactError` for any other folder."""
    manifest = read_json(Path(folder) / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise ArtifactError(f"{folder} holds no edit rows: its manifest has format {manifest.get('format')!r}")
    if manifest.get("version") != VERSION:
        raise ArtifactError(
            f"{folder} has version {manifest.get('version')!r} of {FORMAT}, this Latentia reads {VERSION}"
        )
    return manifest
