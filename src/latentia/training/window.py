"""Window: what the next log line is the mean of."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator


class Window:
    """Sums of every loss part since the last log line; nothing is fetched from the device before a line is due."""

    def __init__(
        self, saved: Mapping[str, tuple[float, int]] | None = None, device: torch.device | None = None
    ) -> None:
        saved = saved or {}
        self.sums = {name: torch.tensor(total, device=device) for name, (total, _) in saved.items()}
        self.counts = {name: count for name, (_, count) in saved.items()}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Add one value to each of these parts."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def share(self, accelerator: Accelerator) -> None:
        """Replace every process's sums by their mean over processes."""
        if accelerator.num_processes > 1 and self.sums:
            joined = torch.stack([value.float() for value in self.sums.values()])
            self.sums = dict(zip(self.sums, accelerator.reduce(joined, "mean")))

    def totals(self) -> dict[str, tuple[float, int]]:
        """(sum, count) of every part, in one transfer."""
        if not self.sums:
            return {}
        joined = torch.stack([value.float() for value in self.sums.values()]).tolist()
        return {name: (total, self.counts[name]) for name, total in zip(self.sums, joined)}

    def means(self) -> dict[str, float]:
        """The mean of every part."""
        return {name: total / count for name, (total, count) in self.totals().items()}
