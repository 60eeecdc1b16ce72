"""Tensors on disk: safetensors written whole or not at all, sharded with an index, read without pickle."""

import json
import os
import re
import threading
from collections.abc import Mapping
from functools import partial
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

import safetensors
import torch

from latentia.core import transaction
from latentia.core.files import write_text
from latentia.core.weight_files import (
    PICKLES,
    STEM,
    Header,
    check_variant,
    index_name,
    locate,
    own_files,
    read_header,
    shard_name,
    single_name,
)
from latentia.errors import ArtifactError, InputError

StateDict = dict[str, torch.Tensor]

_DTYPES = {
    torch.uint64: "U64", torch.int64: "I64", torch.float64: "F64", torch.complex64: "C64",
    torch.float32: "F32", torch.uint32: "U32", torch.int32: "I32",
    torch.bfloat16: "BF16", torch.float16: "F16", torch.uint16: "U16", torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The format's dtype names, in the order of the reference writer: wide ones first, so that all are aligned."""

_LEFTOVERS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    *("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype"),
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32")),
)
"""What published training checkpoints (Stable Diffusion 1's first among them) hold beside tensors; never run."""
_one_reader = threading.Lock()
"""What torch lets pass in a pickle is a setting of the whole process."""

MAP_FROM = 64 * 2**20
"""Bytes from which on a file is mapped where that is allowed; smaller ones are read at once, as quickly."""

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def save_state_dict(
    state_dict: Mapping[str, torch.Tensor],
    folder: Path,
    *,
    variant: str | None = None,
    max_shard_size: int | str = "10GB",
    stem: str = STEM,
    texts: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write one variant's tensors, and `texts` (file name → content) with them, all or nothing.

    More than `max_shard_size` bytes ("10GB", or an integer) go into several shards and an index. Files of this
    variant from an earlier save disappear with the change; files of other variants stay. Tied tensors are
    written once; the metadata maps the other name to the one written. Returns the weight files.
    Raises `ArtifactError` when the disk refuses, `InputError` for a tensor or size that cannot be written.
    """
    check_variant(variant)
    tensors, ties = untie(state_dict)
    shards = split(tensors, parse_size(max_shard_size))
    count = len(shards)
    names = [single_name(variant, stem)]
    if folder.is_dir():
        transaction.finish(folder)
    texts = {name: text for name, text in (texts or {}).items() if not _holds(folder / name, text)}
    if count > 1:
        names = [shard_name(i + 1, count, variant, stem) for i in range(count)]
        weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        total = sum(_nbytes(t) for t in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        texts = {index_name(variant, stem): json.dumps(index, indent=2, sort_keys=True) + "\n", **texts}
    writes = {
        name: partial(write_safetensors, tensors=shard, metadata={k: v for k, v in ties.items() if v in shard})
        for name, shard in zip(names, shards, strict=True)
    } | {name: partial(write_text, text=text) for name, text in texts.items()}
    stale = own_files(folder, variant, stem) if folder.is_dir() else set()
    transaction.write_together(folder, writes, sorted(stale - set(writes)))
    return [folder / name for name in names]


def load_state_dict(
    path: Path | str,
    *,
    variant: str | None = None,
    stem: str = STEM,
    mapped: bool = False,
    dtype: torch.dtype | None = None,
) -> StateDict:
    """Read tensors from a model folder, a safetensors file, or a pickle of tensors.

    With `mapped` the tensors of a large safetensors file are views of it, mapped privately: nothing is read before it
    is used, and writing to one never reaches the file; but whoever keeps one crashes when the file is cut short in
    place. With `dtype` floats are cast as they are read, so that those of the file are never in memory together.
    A pickle (.bin, .pt, .ckpt) is read with `weights_only=True`, so that nothing in it can run; a checkpoint's
    `state_dict` entry is unwrapped.
    Raises `ArtifactError` for anything missing, truncated, foreign or unsafe.
    """
    path = Path(path)
    if path.is_dir():
        found = locate(path, variant, stem)
        state: StateDict = {}
        for file in found.files:
            state |= read_safetensors(file, mapped, dtype)
        if found.weight_map is not None:
            lost = sorted(set(found.weight_map) - set(state))
            if lost:
                raise ArtifactError(f"the shards in {path} lack {', '.join(lost)}: copy the folder again, whole")
        return state
    return read_pickle(path) if path.suffix in PICKLES else read_safetensors(path, mapped, dtype)


def read_safetensors(path: Path, mapped: bool = False, dtype: torch.dtype | None = None) -> StateDict:
    """Tensors of one safetensors file, tied names restored; `ArtifactError` when it is not a whole one."""
    header = read_header(path)
    try:
        large = mapped and os.name != "nt" and path.stat().st_size >= MAP_FROM  # Windows cannot replace a mapped file
        casts = dtype is not None and any(entry.dtype != _DTYPES[dtype] for entry in header.tensors.values())
        state = _map_tensors(path, header) if large and not casts else _read_tensors(path, header, dtype)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): copy or download it again") from error
    for name, kept in header.metadata.items():
        if kept in state:
            state.setdefault(name, state[kept])
    return state


def _map_tensors(path: Path, header: Header) -> StateDict:
    with safetensors.safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in header.tensors}


def _read_tensors(path: Path, header: Header, dtype: torch.dtype | None = None) -> StateDict:
    """Read the bytes straight into new tensors: one copy in memory, floats cast as they come, none tied to the file."""
    dtypes = {name: dtype for dtype, name in _DTYPES.items()}
    state: StateDict = {}
    with open(path, "rb", buffering=0) as file:
        file.seek(8 + header.length)
        for name, entry in sorted(header.tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.dtype not in dtypes:
                raise ArtifactError(f"{path}: {name!r} cannot be read: PyTorch has no dtype {entry.dtype!r}")
            tensor = torch.empty(entry.shape, dtype=dtypes[entry.dtype])
            if entry.end > entry.begin:
                _fill(tensor, file)
            state[name] = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return state


def _fill(tensor: torch.Tensor, file: RawIOBase) -> None:
    rest = tensor.reshape(-1).view(torch.uint8).numpy().data
    while rest:  # one system call reads at most 2 GiB
        count = file.readinto(rest)
        if not count:
            raise OSError("it became shorter while it was read")
        rest = rest[count:]


def read_pickle(path: Path) -> StateDict:
    """Tensors of a pickle, read with `weights_only=True`: a file that asks for code is refused with `ArtifactError`."""
    if not path.is_file():
        raise ArtifactError(f"no file {path}")
    try:
        with _one_reader, torch.serialization.safe_globals([(_Inert, name) for name in _LEFTOVERS]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError, KeyError, ... by what is wrong
        raise ArtifactError(
            f"{path} is broken, or asks for more than tensors, which is refused ({_reason(error)}): "
            "ask its author for a safetensors file"
        ) from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    state = {k: v for k, v in loaded.items() if isinstance(v, torch.Tensor)} if isinstance(loaded, dict) else {}
    if not state:
        raise ArtifactError(f"{path} holds no state dict (a {type(loaded).__name__} without tensors)")
    return state


def _reason(error: Exception) -> str:
    """Why torch refused a pickle; its own advice, to read it with code running, is left out."""
    asked = re.search(r"GLOBAL ([\w.]+)|(?:class|global|function|call) ([\w.]+\.[\w.]+)", str(error))
    if asked:
        return f"it asks for {asked[1] or asked[2]}"
    if "weights_only" in str(error):
        return "it is no archive of tensors"
    return (str(error) or type(error).__name__).splitlines()[0]


class _Inert:
    """Stands in for an object of a checkpoint that is no tensor: whatever it is made with is dropped."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def parse_size(size: int | str) -> int:
    """Bytes of `"10GB"`, `"512MiB"` or an integer; units are decimal unless they carry an `i`."""
    if isinstance(size, int) and not isinstance(size, bool) and size > 0:
        return size
    match = (
        re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B|[KMG]IB|)", size.strip().upper()) if isinstance(size, str) else None
    )
    if match is None or float(match[1]) <= 0:
        raise InputError(f"max_shard_size must be a positive number of bytes or a text such as '10GB', got {size!r}")
    return max(1, int(float(match[1]) * _UNITS[match[2]]))


def split(tensors: Mapping[str, torch.Tensor], limit: int) -> list[StateDict]:
    """Consecutive groups of at most `limit` bytes each; a larger tensor gets a group of its own."""
    groups: list[StateDict] = [{}]
    used = 0
    for name, tensor in tensors.items():
        size = _nbytes(tensor)
        if groups[-1] and used + size > limit:
            groups.append({})
            used = 0
        groups[-1][name] = tensor
        used += size
    return groups


def untie(state_dict: Mapping[str, torch.Tensor]) -> tuple[StateDict, dict[str, str]]:
    """Separate tensors that are written from second names of the same tensor (second name → first)."""
    tensors: StateDict = {}
    ties: dict[str, str] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in state_dict.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _DTYPES or tensor.layout != torch.strided:
            what = f"{tensor.dtype} {tensor.layout}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise InputError(f"{name!r} ({what}) cannot be written to safetensors: pass dense tensors of a plain dtype")
        if name == "__metadata__":
            raise InputError("a tensor cannot be named '__metadata__': the safetensors format uses that name itself")
        if tensor.is_meta:
            raise InputError(f"{name!r} lies on the meta device and has no values: load or initialise the model first")
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in seen:
            ties[name] = seen[place]
        else:
            seen[place] = name
            tensors[name] = tensor.detach()
    return tensors, ties


def _holds(path: Path, text: str) -> bool:
    """Whether `path` has this content already: leaving it alone makes the save of one weight file a single rename."""
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def write_safetensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Stream tensors into a safetensors file: one at a time in host memory, the same bytes for the same tensors."""
    rank = {dtype: i for i, dtype in enumerate(_DTYPES)}
    order = sorted(tensors.items(), key=lambda item: (rank[item[1].dtype], item[0]))
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    at = 0
    for name, tensor in order:
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + _nbytes(tensor)],
        }
        at += _nbytes(tensor)
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for _, tensor in order:
            _write_tensor(file, tensor)


def _write_tensor(file: BinaryIO, tensor: torch.Tensor) -> None:
    if tensor.numel():
        whole = tensor.resolve_conj().resolve_neg().cpu().contiguous()
        flat = whole.as_strided((whole.numel(),), (1,))  # a lone element may keep an odd stride through reshape
        file.write(flat.view(torch.uint8).numpy().data)
