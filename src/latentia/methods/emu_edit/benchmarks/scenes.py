"""The scenes as a benchmark: rows of the world, judged by the exact answer as well as by the papers' measures."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from latentia.methods.emu_edit.benchmarks.benchmark import Benchmark, Case, Pictures
from latentia.methods.emu_edit.datasets import SceneRows
from latentia.methods.emu_edit.measures.cosines import sized
from latentia.methods.emu_edit.tasks.judging import score

KEPT = 256
"""Rows that stay in memory; others are made anew."""


class Scenes(Benchmark):
    """Rows of `test` (held-out phrasings, pairs and backgrounds); means are also taken over each task.

    Args:
        count: rows; row i depends on (seed, split, i) alone.
        size: side of the pictures.
        split: `test`, `select` or `train`.
        tasks: names in `TASKS`; None: all.
        seed: of the rows.

    A result's file is `<split>/<i>` or `<i>`, i with five digits.
    """

    name = "scenes"

    def __init__(
        self, count: int = 512, size: int = 64, split: str = "test", tasks: Sequence[str] | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.split, self.seed = split, seed
        self.rows = SceneRows(split, count, size, seed, tasks)
        self._row = lru_cache(maxsize=KEPT)(self.rows.row)
        for i in range(count):
            row = self._row(i)
            captions = row.input_caption, row.output_caption
            names = (f"{split}/{i:05d}", f"{i:05d}")
            self.cases.append(Case(f"{split}/{i}", row.instruction, names, row.task, row.task, *captions, at=i))

    def pictures(self, case: Case) -> Pictures:
        """See the base."""
        row = self._row(case.at)
        return Pictures(row.image, row.target)

    def score(self, case: Case, result: np.ndarray) -> Mapping[str, float]:
        """True success and the measures of the row's task; a result of another size is resized first."""
        row = self._row(case.at)
        return score(row, sized(result, row.image))
