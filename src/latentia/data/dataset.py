"""TensorDataset: named tensors of equal length, the whole set in memory, a batch is one index operation."""

from collections.abc import Mapping, Sequence

import torch

from latentia.errors import InputError


class TensorDataset:
    """Samples held as named tensors, `{"x": (N, C, H, W) in [-1, 1], "label": (N,) int64, ...}`.

    `batch(indices)` gathers rows; `select(indices)` is a smaller dataset; `shapes` are the rows' shapes.
    Raises `InputError` when there is no tensor, when lengths differ, or when an index is out of range.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        if not tensors:
            raise InputError("a TensorDataset needs at least one tensor, got none")
        flat = [name for name, tensor in tensors.items() if tensor.ndim == 0]
        if flat:
            raise InputError(f"tensors {flat} have no sample dimension: give (N, ...)")
        lengths = {name: len(tensor) for name, tensor in tensors.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(f"all tensors need the same length, got {lengths}")
        self.tensors = dict(tensors)
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample by name, without the sample dimension."""
        return {name: tuple(tensor.shape[1:]) for name, tensor in self.tensors.items()}

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one `x`, (C, H, W) for images."""
        if "x" not in self.tensors:
            raise InputError(f"this dataset has no 'x'; it has: {', '.join(self.tensors)}")
        return self.shapes["x"]

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, torch.Tensor]:
        """The samples at `indices`, stacked in that order."""
        rows = check_indices(indices, self._length)
        return {name: tensor[rows] for name, tensor in self.tensors.items()}

    def select(self, indices: Sequence[int] | torch.Tensor) -> "TensorDataset":
        """A dataset of the samples at `indices`."""
        return TensorDataset(self.batch(indices))

    def __repr__(self) -> str:
        return f"TensorDataset({self._length} samples: {self.shapes})"


def check_indices(indices: Sequence[int] | torch.Tensor, length: int) -> torch.Tensor:
    """Sample indices as a 1-D int64 tensor; raises `InputError` unless each lies in [0, length)."""
    try:
        rows = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"indices must be a flat sequence of integers, got {indices!r}") from None
    if rows.numel() == 0:
        rows = rows.long()
    if rows.ndim != 1 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise InputError(f"indices must be a flat sequence of integers, got {tuple(rows.shape)} of {rows.dtype}")
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < length:
        raise InputError(f"indices must lie in [0, {length}), got {int(rows.min())} to {int(rows.max())}")
    return rows.long()


def check_size(size: object, name: str = "size") -> int:
    """`size` as a positive int; raises `InputError` for anything else."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InputError(f"{name} must be a whole number of pixels, at least 1, got {size!r}")
    return size


def check_channels(channels: object) -> int:
    """`channels` as 1 or 3; raises `InputError` for anything else."""
    if channels not in (1, 3):
        raise InputError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
    return 1 if channels == 1 else 3
