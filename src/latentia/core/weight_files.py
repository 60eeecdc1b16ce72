"""Names and headers of weight files, read without torch.

A model folder holds, for each variant (a tag in the file name, `fp16` say), either one file

    diffusion_pytorch_model[.variant].safetensors

or shards and the index that tells which tensor lies in which shard

    diffusion_pytorch_model[.variant]-00001-of-00002.safetensors
    diffusion_pytorch_model.safetensors.index[.variant].json

A safetensors file is: 8 bytes little-endian header length, a JSON header, the bytes of the tensors without gaps.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentia.core import transaction
from latentia.core.files import read_json
from latentia.errors import ArtifactError, InputError

STEM = "diffusion_pytorch_model"
"""First part of the weight files' names (transformers' models: `model`)."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
"""Endings of files that may hold pickles."""

DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
}
"""Bytes of one element by the format's dtype name."""

MAX_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a header: the format's dtype name, its shape, and where its bytes begin and end."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a safetensors file: its tensors by name, its string metadata, its own length in bytes."""

    tensors: dict[str, Entry]
    metadata: dict[str, str]
    length: int


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """Where one variant's tensors lie: the files, and for shards the index and its key → file map."""

    files: tuple[Path, ...]
    index: Path | None = None
    weight_map: Mapping[str, str] | None = None


def check_variant(variant: str | None) -> None:
    """Raise `InputError` unless `variant` is None or a tag of letters, digits, `_` and `-`."""
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[A-Za-z0-9_-]+", variant)):
        raise InputError(f"variant must be a tag of letters, digits, '_' and '-' such as 'fp16', got {variant!r}")


def single_name(variant: str | None = None, stem: str = STEM) -> str:
    """Name of a variant's only file."""
    return f"{_tagged(stem, variant)}.safetensors"


def shard_name(number: int, count: int, variant: str | None = None, stem: str = STEM) -> str:
    """Name of shard `number` (from 1) of `count`."""
    return f"{_tagged(stem, variant)}-{number:05d}-of-{count:05d}.safetensors"


def index_name(variant: str | None = None, stem: str = STEM) -> str:
    """Name of a sharded variant's index."""
    return f"{_tagged(f'{stem}.safetensors.index', variant)}.json"


def _tagged(name: str, variant: str | None) -> str:
    return f"{name}.{variant}" if variant else name


def variants(names: Iterable[str], stem: str = STEM) -> dict[str | None, list[str]]:
    """The files that belong to each variant (None: the default), by their exact names."""
    weights = re.compile(rf"{re.escape(stem)}(?:\.([A-Za-z0-9_-]+?))?(?:-\d{{5}}-of-\d{{5}})?\.safetensors")
    index = re.compile(rf"{re.escape(stem)}\.safetensors\.index(?:\.([A-Za-z0-9_-]+))?\.json")
    found: dict[str | None, list[str]] = {}
    for name in sorted(names):
        match = weights.fullmatch(name) or index.fullmatch(name)
        if match:
            found.setdefault(match[1], []).append(name)
    return found


def own_files(folder: Path, variant: str | None, stem: str = STEM) -> set[str]:
    """Every file in `folder` that only this variant uses: its single file, shards and index."""
    present = transaction.names(folder)
    mine = set(variants(present, stem).get(variant, ()))
    others: set[str] = set()
    for other, files in variants(present, stem).items():
        name = index_name(other, stem)
        if name not in files:
            continue
        try:
            listed = set(read_index(folder / name).values())
        except ArtifactError:  # a broken index protects and owns nothing but itself
            continue
        if other == variant:
            mine |= listed & present
        else:
            others |= listed
    return mine - others


def read_index(path: Path) -> dict[str, str]:
    """The key → file map of an index; `ArtifactError` when broken or when it names a file outside its folder."""
    weight_map = read_json(transaction.current(path)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ArtifactError(f"{path} has no weight_map from tensor names to file names: save or copy the model again")
    for file in set(weight_map.values()):
        if not transaction.is_plain_name(file) or not file.endswith(".safetensors"):
            raise ArtifactError(
                f"{path} points at {file!r}: an index may name safetensors files of its own folder only; "
                "do not use this folder unless you trust where it comes from"
            )
    return weight_map


def locate(folder: Path, variant: str | None = None, stem: str = STEM) -> WeightFiles:
    """The files of one variant in `folder`, by exact name.

    Raises `ArtifactError` when the variant is not there (naming those that are), when shards are missing,
    or when there are only pickles.
    """
    check_variant(variant)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder: give the folder of a saved model")
    present = transaction.names(folder)
    single, index = single_name(variant, stem), index_name(variant, stem)
    if index in present:
        weight_map = read_index(folder / index)
        files = sorted(set(weight_map.values()))
        missing = [file for file in files if file not in present]
        if not missing:
            paths = tuple(transaction.current(folder / file) for file in files)
            return WeightFiles(paths, transaction.current(folder / index), weight_map)
        if single not in present:  # else: a stale index beside a newer single file, as Diffusers leaves it
            raise ArtifactError(
                f"{folder} lacks {', '.join(missing)}, which {index} lists: copy the folder again, whole"
            )
    if single in present:
        return WeightFiles((transaction.current(folder / single),))
    raise ArtifactError(_nothing_found(folder, present, variant, stem))


def _nothing_found(folder: Path, present: set[str], variant: str | None, stem: str) -> str:
    others = sorted("the default (variant=None)" if v is None else repr(v) for v in variants(present, stem))
    wanted = f"variant {variant!r}" if variant else "default weights"
    if others:
        return f"{folder} has no {wanted}; variants there: {', '.join(others)}"
    pickles = sorted(name for name in present if name.endswith(PICKLES))
    if pickles:
        return (
            f"{folder} holds only pickles ({', '.join(pickles)}), which can run code when read. Convert once: "
            "state = latentia.core.artifacts.load_state_dict(FILE) reads tensors and nothing else; then "
            "model.load_state_dict(state) and model.save_pretrained(FOLDER)"
        )
    return f"{folder} has no {single_name(variant, stem)}: is this the folder of a saved model?"


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; `ArtifactError` says what is wrong with it."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size == 0:
                raise ArtifactError(f"{path} is empty: copy or download it again")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise ArtifactError(f"{path} {_not_safetensors(path)}")
            raw = file.read(length)
    except FileNotFoundError:
        raise ArtifactError(f"no file {path}") from None
    except ArtifactError:
        raise
    except OSError as error:
        raise ArtifactError(f"could not read {path}: {error.strerror or error}") from error
    try:
        loaded = json.loads(raw.decode())
        metadata = dict(loaded.pop("__metadata__", None) or {})
        tensors = {name: _entry(value) for name, value in loaded.items()}
    except (ValueError, AttributeError, KeyError, TypeError, OverflowError, RecursionError):
        raise ArtifactError(f"{path} {_not_safetensors(path)}") from None
    _check_layout(path, tensors, size - 8 - length)
    return Header(tensors, {str(k): str(v) for k, v in metadata.items()}, length)


def _entry(value: Any) -> Entry:
    begin, end = value["data_offsets"]
    shape = tuple(value["shape"])
    if not all(type(n) is int and abs(n) < 2**63 for n in (*shape, begin, end)) or any(n < 0 for n in shape):
        raise ValueError("sizes and offsets are whole numbers")
    return Entry(str(value["dtype"]), shape, begin, end)


def _check_layout(path: Path, tensors: Mapping[str, Entry], size: int) -> None:
    at = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        unit = DTYPE_BYTES.get(entry.dtype)
        wrong = unit is not None and entry.end - entry.begin != unit * math.prod(entry.shape)
        if entry.begin != at or entry.end < entry.begin or wrong:
            raise ArtifactError(f"{path}: the bytes of {name!r} are misplaced in the header; copy or save it again")
        at = entry.end
    if at > size:
        raise ArtifactError(f"{path} is truncated: {size:,} of {at:,} bytes of tensors; copy or download it again")
    if at < size:
        raise ArtifactError(f"{path} has {size - at:,} bytes after its last tensor; copy or download it again")


def _not_safetensors(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "is a pickle under a wrong name: convert it to safetensors where it comes from"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights: run `git lfs pull` in its repository"
    return "is not a safetensors file, or was cut off inside its header: copy or download it again"
