"""`make bench`: every benchmark in turn, or those named: `python -m benchmarks ema imports`.

Those of minutes run only by name: `python -m benchmarks full_size`.
"""

import importlib
import sys

ALL = (
    "imports",
    "scheduler_step",
    "forward",
    "ema",
    "training_step",
    "pipeline_start",
    "pipeline_load",
    "pipeline_call",
    "parameters",
    "tokens",
    "quantizer",
    "scenes",
    "gpu",
)
BY_NAME = ("full_size", "parameter_size")

if __name__ == "__main__":
    chosen = sys.argv[1:] or ALL
    known = ALL + BY_NAME
    unknown = [name for name in chosen if name not in known]
    if unknown:
        sys.exit(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(known)}")
    for name in chosen:
        print(f"\n== {name} ==", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()
