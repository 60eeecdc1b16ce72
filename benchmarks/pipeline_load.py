"""Loading Stable Diffusion, ours and Diffusers': time and memory. Run: `python -m benchmarks pipeline_load`.

`tiny` alternates in one warm process. `half width` (276 million weights, 1.1 GB, in the page cache) is loaded once per
new process, after a tiny one has paid for what is imported on the way. `load` ends when `from_pretrained` returns. By
then Diffusers has mapped the file and read nothing, whereas Latentia has its own copy, which no change of the file can
touch; so `+ read` goes on until every weight was looked at, as the first step does. `peak` is the most memory beyond
what the process held before, over the size of the weights; the mapped file counts.
"""

import importlib
import json
import statistics
import subprocess
import sys
import time
import warnings
from typing import Any

from benchmarks.folders import QUIET, half, tiny

LIBRARIES = ("latentia", "diffusers")
CODE = """
import gc, json, time, warnings
warnings.simplefilter("ignore")
from full_size_sd import forget_peak, memory
from {library} import StableDiffusionPipeline
import torch
StableDiffusionPipeline.from_pretrained({tiny!r})
gc.collect()
forget_peak()
held, start = memory("VmRSS"), time.perf_counter()
pipe = StableDiffusionPipeline.from_pretrained({folder!r})
load = time.perf_counter() - start
weights = [p.detach() for part in (pipe.unet, pipe.vae, pipe.text_encoder) for p in part.parameters()]
total = sum(float(w.flatten()[::1024].sum()) for w in weights)
read = time.perf_counter() - start
print(json.dumps([load, read, (memory("VmHWM") - held) / sum(w.nbytes for w in weights)]))
"""


def warm(pairs: int = 20) -> tuple[list[float], float]:
    """Median milliseconds of loading the tiny folder, ours and Diffusers', and the median ratio of the pairs."""
    classes = [importlib.import_module(library).StableDiffusionPipeline for library in LIBRARIES]
    rows: list[list[float]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import diffusers

        diffusers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.set_verbosity_error()
        for turn in range(pairs + 3):
            row = [0.0, 0.0]
            for i in (0, 1) if turn % 2 else (1, 0):
                start = time.perf_counter()
                classes[i].from_pretrained(tiny())
                row[i] = 1e3 * (time.perf_counter() - start)
            rows.append(row)
    rows = rows[3:]
    return [statistics.median(column) for column in zip(*rows)], statistics.median(b / a for a, b in rows)


def fresh(library: str) -> list[float]:
    """Seconds to load, seconds until every weight was read, and peak memory over the weights, in a new process."""
    code = CODE.format(library=library, tiny=str(tiny()), folder=str(half()))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=QUIET)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(runs: int = 5) -> dict[str, Any]:
    """Print the table and return it."""
    (ours, theirs), tiny_ratio = warm()
    print("loading a pipeline; ratio is Diffusers' time over ours")
    print(f"{'':24}{'latentia':>10}{'diffusers':>11}{'ratio':>8}")
    print(f"{'tiny, ms':24}{ours:10.1f}{theirs:11.1f}{tiny_ratio:7.2f}x")
    rows: dict[str, list[list[float]]] = {library: [] for library in LIBRARIES}
    for turn in range(runs):
        for library in LIBRARIES if turn % 2 else LIBRARIES[::-1]:
            rows[library].append(fresh(library))
    medians = {library: [statistics.median(column) for column in zip(*rows[library])] for library in LIBRARIES}
    table = {"tiny": tiny_ratio}
    for i, name in enumerate(("half width, load, s", "half width, + read, s", "half width, peak")):
        a, b = medians["latentia"][i], medians["diffusers"][i]
        table[name] = statistics.median(y[i] / x[i] for x, y in zip(rows["latentia"], rows["diffusers"]))
        print(f"{name:24}{a:10.2f}{b:11.2f}{table[name]:7.2f}x")
    return table


if __name__ == "__main__":
    main()
