"""Stable Diffusion folders to measure with, made by Diffusers with random weights; removed with the process."""

import atexit
import functools
import os
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.insert(0, str(TESTS))
QUIET = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONWARNINGS": "ignore"}
"""Environment of processes that are measured."""


@functools.cache
def root() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="latentia_bench_")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def tiny() -> Path:
    """80,000 weights."""
    from tiny_sd import tiny_sd

    return tiny_sd("sd1")


@functools.cache
def half() -> Path:
    """Stable Diffusion 1.5 at half its width: 276 million weights, 1.1 GB."""
    from full_size_sd import HALF_WIDTH, save_full_size_sd

    return save_full_size_sd(root() / "half", HALF_WIDTH)


@functools.cache
def full() -> Path:
    """Stable Diffusion 1.5 at its own size: 1.07 billion weights, 4.3 GB."""
    from full_size_sd import save_full_size_sd

    return save_full_size_sd(root() / "full")
