"""Two data sets as one: side by side, or every sample of one with every sample of the other."""

from collections.abc import Sequence

from latentia.core.protocols import Batch, Dataset
from latentia.data.dataset import check_indices
from latentia.errors import InputError


class JoinedDataset:
    """Several data sets of the same samples as one: the entries of all. Raises `InputError` for unequal lengths."""

    def __init__(self, *parts: Dataset) -> None:
        if len({len(part) for part in parts}) != 1:
            raise InputError(f"joined data sets must be equally long, got {[len(part) for part in parts]}")
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts[0])

    def batch(self, indices: Sequence[int]) -> Batch:
        """The samples at `indices`, from every part."""
        return {name: value for part in self.parts for name, value in part.batch(indices).items()}


class PairedDataset:
    """Every sample of one data set beside every one of another, whose entries are called `<prefix><name>`.

    Index i shows sample i mod N and sample i // N of N and M: in N·M indices each pair comes once, so a shuffled
    pass shows all of both equally often.
    """

    def __init__(self, first: Dataset, second: Dataset, prefix: str) -> None:
        self.first, self.second, self.prefix = first, second, prefix

    def __len__(self) -> int:
        return len(self.first) * len(self.second)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The pairs at `indices`."""
        rows = check_indices(indices, len(self))
        mine = self.first.batch((rows % len(self.first)).tolist())
        theirs = self.second.batch((rows // len(self.first)).tolist())
        return {**mine, **{f"{self.prefix}{name}": value for name, value in theirs.items()}}
