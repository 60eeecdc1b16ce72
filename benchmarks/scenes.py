"""Rows a second of the world `scenes` on one core: all tasks together, each alone, as batches, and onto disk.

The floor is 2,000 rows a second at 64×64, all sixteen tasks in equal shares. CPU seconds of this process;
the caches of sprites are filled first, and what that costs is told too. Run: `python -m benchmarks scenes`.
"""

import tempfile
import time
from pathlib import Path

import torch

from latentia.methods.emu_edit.datasets import SceneRows
from latentia.methods.emu_edit.engine import scene_engine
from latentia.methods.emu_edit.shards import write_shards
from latentia.methods.emu_edit.tasks.registry import TASKS

ROWS = 4000


def rate(engine, start: int, count: int) -> float:
    """Rows a CPU second, rows `start` to `start + count`."""
    began = time.process_time()
    for _ in engine.rows("train", start, start + count):
        pass
    return count / (time.process_time() - began)


def main() -> None:
    torch.set_num_threads(1)
    for size in (32, 64, 128):
        engine = scene_engine(size)
        cold = rate(engine, 0, ROWS)
        warm = sorted(rate(engine, (i + 1) * ROWS, ROWS) for i in range(3))[1]
        kept = engine.counts["kept"] / sum(engine.counts.values())
        print(f"{size:4}×{size:<4} {warm:7.0f} rows/s (first {ROWS}: {cold:.0f}); {kept:.1%} of the attempts kept")
    for name in TASKS:
        engine = scene_engine(64, tasks=[name])
        rate(engine, 0, 300)
        print(f"  {name:12} {rate(engine, 300, 700):7.0f} rows/s")
    data = SceneRows("train", 10 * ROWS, 64)
    data.batch(range(ROWS))
    began = time.process_time()
    for start in range(ROWS, 2 * ROWS, 32):
        data.batch(range(start, start + 32))
    print(f"batches of 32 at 64×64: {ROWS / (time.process_time() - began):.0f} rows/s")
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        write_shards(scene_engine(64), Path(folder), "train", ROWS)
        spent = time.process_time() - began
        volume = sum(path.stat().st_size for path in Path(folder).iterdir()) / ROWS
        print(f"shards at 64×64: {ROWS / spent:.0f} rows/s, {volume / 1024:.1f} KiB a row")
