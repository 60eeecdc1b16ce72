"""Data order: which samples step k sees, as a function of (seed, phase, k), and fetching them ahead."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import torch

from latentia.core.protocols import Batch, Dataset
from latentia.core.rng import derive_seed


class DataOrder:
    """An endless stream of sample indices: one fresh permutation of the dataset after another.

    The stream's position i lies in pass i // n; batch k is positions k·B … (k+1)·B − 1, so a batch may
    straddle two passes, no sample is ever dropped, and a resumed run goes on exactly where it was.

    Args:
        length: samples in the dataset, n.
        batch_size: B, over all processes and accumulated batches.
        seed, phase: what the permutations are derived from.
    """

    def __init__(self, length: int, batch_size: int, seed: int, phase: str) -> None:
        self.length, self.batch_size = length, batch_size
        self.seed, self.phase = seed, phase
        self._recent: dict[int, torch.Tensor] = {}

    def permutation(self, epoch: int) -> torch.Tensor:
        """The order of pass `epoch`, int64 (n,)."""
        if epoch not in self._recent:
            generator = torch.Generator().manual_seed(derive_seed("order", self.seed, self.phase, epoch))
            kept = {e: p for e, p in self._recent.items() if e == epoch - 1}
            self._recent = {**kept, epoch: torch.randperm(self.length, generator=generator)}
        return self._recent[epoch]

    def batch(self, step: int) -> torch.Tensor:
        """The indices that step `step` sees, int64 (B,)."""
        parts = []
        position, left = step * self.batch_size, self.batch_size
        while left:
            epoch, offset = divmod(position, self.length)
            part = self.permutation(epoch)[offset : offset + left]
            parts.append(part)
            position, left = position + len(part), left - len(part)
        return torch.cat(parts)

    def share(self, step: int, rank: int, processes: int, accumulate: int) -> list[list[int]]:
        """This process's `accumulate` micro-batches of step `step`; all processes together see the batch once."""
        micro = self.batch(step).chunk(processes * accumulate)
        return [micro[a * processes + rank].tolist() for a in range(accumulate)]


def batches(data: Dataset, plan: Iterator[Sequence[Sequence[int]]], workers: int) -> Iterator[list[Batch]]:
    """Each step's micro-batches, in order; with `workers` threads they are fetched two steps a thread ahead.

    An error in a thread is raised where its batch would have come.
    """
    if workers == 0:
        for step in plan:
            yield [data.batch(indices) for indices in step]
        return
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="latentia-data")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        ahead: deque[list[Future[Batch]]] = deque()
        for step in plan:
            ahead.append([pool.submit(data.batch, indices) for indices in step])
            if len(ahead) > 2 * workers:
                yield [future.result() for future in ahead.popleft()]
        while ahead:
            yield [future.result() for future in ahead.popleft()]
