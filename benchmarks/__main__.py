"""`make bench`: every benchmark in turn, or those named: `python -m benchmarks ema imports`."""

import importlib
import sys

ALL = ("imports", "scheduler_step", "forward", "ema", "training_step")

if __name__ == "__main__":
    chosen = sys.argv[1:] or ALL
    unknown = [name for name in chosen if name not in ALL]
    if unknown:
        sys.exit(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(ALL)}")
    for name in chosen:
        print(f"\n== {name} ==", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()
