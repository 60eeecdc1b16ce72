"""What a run tells: metrics.jsonl, TensorBoard events, and a progress bar. One process writes."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from latentia.core.files import write_atomic
from latentia.core.images import grid
from latentia.errors import ArtifactError

LINE_EVERY = 10.0  # seconds between progress lines when the output is not a terminal
REFRESH = 0.1  # seconds between updates of the bar


class MetricsFile:
    """metrics.jsonl: one JSON object a line. `size` goes into a checkpoint; `cut` returns to that moment."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "ab")  # noqa: SIM115 - lives as long as the run

    def write(self, record: dict[str, Any]) -> None:
        """Append one line."""
        try:
            self._file.write((json.dumps(record) + "\n").encode())
            self._file.flush()
        except OSError as error:
            raise ArtifactError(f"could not write {self._file.name}: {error}. Free some space, then resume") from error

    def size(self) -> int:
        """Bytes written so far, on the disk for certain."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def cut(self, size: int) -> None:
        """Drop everything after the first `size` bytes."""
        if size < os.fstat(self._file.fileno()).st_size:
            self._file.truncate(size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RunLog:
    """The log of a run in `out`; every method does nothing where `writes` is False.

    Args:
        out: the run's folder.
        writes: whether this process is the one that writes.
        progress: show a bar, or lines where the output is not a terminal.
        tensorboard: write events into `out/tensorboard/<phase>`.
    """

    def __init__(
        self,
        out: Path,
        writes: bool = True,
        progress: bool = True,
        tensorboard: bool = True,
        stream: TextIO | None = None,
    ) -> None:
        self.out, self.writes, self.tensorboard = out, writes, tensorboard
        self.metrics = MetricsFile(out / "metrics.jsonl") if writes else None
        self.bar = ProgressLine(stream or sys.stderr) if writes and progress else None
        self._events: Any = None
        self._phase, self._first = "", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.metrics is not None:
            self.metrics.close()

    @contextmanager
    def phase(self, name: str, step: int, steps: int) -> Iterator[None]:
        """A phase starts, or goes on, at `step` of `steps`."""
        self._phase, self._first = name, step
        if self.bar is not None:
            self.bar.begin(name, step, steps)
        try:
            yield
        finally:
            if self.bar is not None:
                self.bar.end()
            if self._events is not None:
                self._events.close()
                self._events = None

    def events(self) -> Any:
        """TensorBoard's writer for this phase, opened when first used; None without TensorBoard."""
        if self._events is None and self.writes and self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # imported late: it takes a third of a second

            folder = str(self.out / "tensorboard" / self._phase)
            self._events = SummaryWriter(folder, purge_step=self._first + 1)
        return self._events

    def advance(self, step: int, loss: float) -> None:
        """`step` steps are done; moves the bar."""
        if self.bar is not None:
            self.bar.advance(step, loss)

    def record(self, step: int, values: dict[str, Any]) -> None:
        """One line of metrics.jsonl, and its numbers as TensorBoard scalars."""
        if self.metrics is not None:
            self.metrics.write({"phase": self._phase, "step": step, **values})
        events = self.events()
        if events is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    events.add_scalar(name, value, step)

    def picture(self, step: int, x: torch.Tensor) -> None:
        """A grid of x (B, C, H, W) in [-1, 1] → samples/<phase>-<step>.png and TensorBoard."""
        if not self.writes:
            return
        sheet = grid(x)
        path = self.out / "samples" / f"{self._phase}-{step:08d}.png"
        write_atomic(path, lambda beside: sheet.save(beside, format="PNG"))
        events = self.events()
        if events is not None:
            pixels = np.asarray(sheet)
            events.add_image("samples", pixels, step, dataformats="HWC" if pixels.ndim == 3 else "HW")

    def mark(self) -> int:
        """Where metrics.jsonl stands; events are on the disk as well."""
        if self._events is not None:
            self._events.flush()
        return 0 if self.metrics is None else self.metrics.size()

    def cut(self, size: int) -> None:
        """Return metrics.jsonl to an earlier `mark`."""
        if self.metrics is not None:
            self.metrics.cut(size)


class ProgressLine:
    """Loss, steps a second and remaining time: a bar on a terminal, elsewhere a line every ten seconds."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.console = Console(file=stream)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._loss: float | None = None

    def begin(self, phase: str, step: int, steps: int) -> None:
        """Start a bar at `step` of `steps`."""
        self.phase, self.first, self.steps = phase, step, steps
        self.started = self.shown = time.monotonic()
        self._loss = None
        if self.console.is_terminal:
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task(phase, completed=step, total=steps, note="")
            self._bar.start()

    def advance(self, step: int, loss: float) -> None:
        """`step` steps are done."""
        self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        now = time.monotonic()
        if now - self.shown < (REFRESH if self._bar is not None else LINE_EVERY) and step < self.steps:
            return
        self.shown = now
        rate = (step - self.first) / max(now - self.started, 1e-9)
        note = f"loss {self._loss:.4g}  {rate:.1f} it/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        else:
            left = (self.steps - step) / max(rate, 1e-9)
            print(f"{self.phase}: {step}/{self.steps}  {note}  {left:.0f} s left", file=self.stream, flush=True)

    def end(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
