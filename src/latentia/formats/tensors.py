"""Tensors of a checkpoint file one at a time: no second copy in memory, and nothing read that is not asked for."""

from pathlib import Path
from typing import Protocol

import torch

from latentia.core.artifacts import read_pickle
from latentia.core.weight_files import PICKLES, Entry, read_header
from latentia.errors import ArtifactError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""The safetensors format's dtype names that occur in checkpoints."""


class TensorFile(Protocol):
    """A file of named tensors: `entries` from its header, `metadata`, and `read` for one of them."""

    path: Path
    entries: dict[str, Entry]
    metadata: dict[str, str]

    def read(self, name: str) -> torch.Tensor:
        """The tensor called `name`, on the CPU, in the file's dtype."""
        ...


def open_tensors(path: Path | str) -> TensorFile:
    """A safetensors file, of which only the header is read now; or a pickle of tensors, read whole.

    Raises `ArtifactError` for a file that is missing, truncated, foreign or unsafe.
    """
    path = Path(path)
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder: from_pretrained reads folders, this reads single checkpoint files")
    return PickledTensors(path) if path.suffix in PICKLES else SafeTensors(path)


class SafeTensors:
    """A safetensors file; each `read` goes straight from the disk into a new tensor."""

    def __init__(self, path: Path) -> None:
        header = read_header(path)
        self.path, self.metadata, self.entries = path, header.metadata, dict(header.tensors)
        self._start = 8 + header.length
        for name, kept in header.metadata.items():  # second names of tied tensors
            if kept in header.tensors:
                self.entries.setdefault(name, header.tensors[kept])

    def read(self, name: str) -> torch.Tensor:
        """The tensor called `name`; `ArtifactError` when the file ends early or the dtype is unknown."""
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            raise ArtifactError(f"{self.path}: {name!r} has the dtype {entry.dtype}, which checkpoints do not use")
        tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
        if entry.end == entry.begin:
            return tensor
        rest = tensor.reshape(-1).view(torch.uint8).numpy().data
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(self._start + entry.begin)
                while rest:  # one system call reads at most 2 GiB
                    count = file.readinto(rest)
                    if not count:
                        raise ArtifactError(f"{self.path} became shorter while it was read: copy it again")
                    rest = rest[count:]
        except ArtifactError:
            raise
        except OSError as error:
            raise ArtifactError(f"could not read {self.path}: {error.strerror or error}") from error
        return tensor


class PickledTensors:
    """A pickle of tensors (`.ckpt`, `.pt`, `.bin`), read with `weights_only`: nothing in it can run."""

    def __init__(self, path: Path) -> None:
        self.path, self.metadata = path, dict[str, str]()
        self._state = read_pickle(path)
        names = {dtype: name for name, dtype in DTYPES.items()}
        self.entries = {
            name: Entry(names.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape), 0, 0)
            for name, tensor in self._state.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """The tensor called `name`."""
        return self._state[name]
