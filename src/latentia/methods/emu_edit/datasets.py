"""Rows as training batches: made when asked for, or read from shards."""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentia.core.arguments import check_count
from latentia.data.dataset import check_indices
from latentia.data.decode import to_unit
from latentia.errors import ArtifactError, check_choice
from latentia.methods.emu_edit.engine import Engine, scene_engine
from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.shards import read_manifest, read_shard
from latentia.methods.emu_edit.tasks.registry import task_number
from latentia.methods.emu_edit.world.render import World
from latentia.methods.emu_edit.world.vocabulary import SPLITS

Encode = Callable[[list[str]], Mapping[str, torch.Tensor]]
"""Instructions → tensors by name, such as a tokenizer's `input_ids` (B, L)."""

OPEN_SHARDS = 4


def batch_of(rows: Sequence[Row], encode: Encode | None = None, parsed: bool = False) -> dict[str, Any]:
    """Rows as a batch.

    `x` the target and `source` the input, both (B, 3, H, W) in [−1, 1]; `task` (B,) int64; `mask` (B, 1, H, W)
    bool; `instruction`, a list of B texts, or in its place what `encode` makes of them; and, if `parsed`, `things`
    (B, 12, H, W) int8, `World.things` of the input and of the scene after the edit.
    """
    instructions = [row.instruction for row in rows]
    batch: dict[str, Any] = {
        "x": _pixels([row.target for row in rows]),
        "source": _pixels([row.image for row in rows]),
        "task": torch.tensor([task_number(row.task) for row in rows], dtype=torch.int64),
        "mask": torch.from_numpy(np.stack([row.mask for row in rows])[:, None]),
    }
    if parsed:
        batch["things"] = torch.from_numpy(np.stack([things_in(row) for row in rows]))
    return batch | ({"instruction": instructions} if encode is None else dict(encode(instructions)))


def things_in(row: Row) -> np.ndarray:
    """What stands where before and after an edit, int8 (12, H, W); before is −1 where the input is a map."""
    world, scene = World.of(len(row.image)), row.meta["scene"]
    before, after = world.things(scene), world.things(row.meta.get("after", scene))
    return np.concatenate([np.full_like(before, -1) if row.meta["kind"].endswith("/from") else before, after])


def _pixels(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    return to_unit(torch.from_numpy(np.stack(pictures)).movedim(-1, 1).contiguous())


class EditRows(ABC):
    """Abstract base of both: rows by number, and batches of them."""

    parsed = False

    def __init__(self, length: int, encode: Encode | None = None) -> None:
        self.length, self.encode = length, encode

    @abstractmethod
    def row(self, index: int) -> Row:
        """Row `index`."""

    def __len__(self) -> int:
        return self.length

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, Any]:
        """The rows at `indices` as `batch_of` describes."""
        return batch_of([self.row(i) for i in check_indices(indices, self.length).tolist()], self.encode, self.parsed)


class SceneRows(EditRows):
    """Rows of the world, made when asked for: thousands a second, so that no epoch need repeat one.

    Args:
        split: `train`, `select` or `test`.
        length: how many rows count as the whole set.
        size: side of the pictures in pixels.
        seed: of the rows; row i depends on (seed, split, i) alone.
        tasks: names in `TASKS`; None: all.
        weights: how often each is drawn; None: equally.
        encode: what makes tensors of the instructions; None: they stay texts.
        parsed: whether batches tell `things`, what stands where.
    """

    def __init__(
        self,
        split: str = "train",
        length: int = 100_000,
        size: int = 64,
        seed: int = 0,
        tasks: Sequence[str] | None = None,
        weights: Sequence[float] | None = None,
        encode: Encode | None = None,
        parsed: bool = False,
    ) -> None:
        check_choice("split", split, SPLITS)
        super().__init__(check_count("length", length), encode)
        self.split, self.parsed = split, parsed
        self.engine: Engine = scene_engine(size, seed, tasks, weights)
        self.shape = (3, size, size)

    def row(self, index: int) -> Row:
        """Row `index`, made anew."""
        return self.engine.row(self.split, index)


class ShardedRows(EditRows):
    """Rows that `write_shards` wrote; the last `OPEN_SHARDS` shards read stay in memory.

    Raises `ArtifactError` for a folder that holds no rows, or a shard that is missing or broken.
    """

    def __init__(self, folder: Path, encode: Encode | None = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        super().__init__(int(self.manifest["total"]), encode)
        self.split: str = self.manifest["split"]
        self._per_shard = int(self.manifest["rows_per_shard"])
        self._open: OrderedDict[int, list[Row]] = OrderedDict()

    def row(self, index: int) -> Row:
        """Row `index`, from its shard."""
        number, at = divmod(index, self._per_shard)
        rows = self._shard(number)
        if at >= len(rows):
            raise ArtifactError(f"shard {number} of {self.folder} ends before row {index}: write the rows again")
        return rows[at]

    def _shard(self, number: int) -> list[Row]:
        if number not in self._open:
            self._open[number] = read_shard(self.folder, number)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return self._open[number]
