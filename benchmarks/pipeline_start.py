"""Process start to the first picture of a tiny Stable Diffusion. Run: `python -m benchmarks pipeline_start`.

Each run is a new interpreter that imports, loads the same folder, makes one picture in two steps and writes it. The
libraries take turns; medians. `wall` is what a user waits for, `CPU` what the machine spends.
"""

import json
import os
import statistics
import subprocess
import sys
import time

from benchmarks.folders import QUIET, root, tiny

RUNS = 5
CODE = """
import json, sys, time
start = time.perf_counter()
from {library} import StableDiffusionPipeline
imported = time.perf_counter()
pipe = StableDiffusionPipeline.from_pretrained({folder!r})
loaded = time.perf_counter()
pipe("a photograph of an astronaut riding a horse", num_inference_steps=2).images[0].save({out!r})
print(json.dumps([imported - start, loaded - imported, time.perf_counter() - loaded]))
"""
COLUMNS = ("wall", "CPU", "import", "load", "picture")


def first_picture(library: str) -> list[float]:
    """Seconds of one run: wall and CPU of the whole process, then of its three parts."""
    code = CODE.format(library=library, folder=str(tiny()), out=str(root() / f"{library}.png"))
    before, start = os.times(), time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=QUIET)
    wall, after = time.perf_counter() - start, os.times()
    cpu = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    return [wall, cpu, *json.loads(done.stdout.splitlines()[-1])]


def main(runs: int = RUNS) -> dict[str, float]:
    """Print the table and return the ratios."""
    libraries = ("latentia", "diffusers")
    rows: dict[str, list[list[float]]] = {library: [] for library in libraries}
    for turn in range(runs + 1):
        for library in libraries if turn % 2 else libraries[::-1]:
            row = first_picture(library)
            if turn:  # the first warms the page cache and writes bytecode
                rows[library].append(row)
    medians = {library: [statistics.median(column) for column in zip(*rows[library])] for library in libraries}
    ratios = [
        statistics.median(b[i] / a[i] for a, b in zip(rows["latentia"], rows["diffusers"])) for i in range(len(COLUMNS))
    ]
    print(f"process start to first picture, seconds, median of {runs} interleaved processes")
    print(f"{'':12}" + "".join(f"{name:>10}" for name in COLUMNS))
    for library in libraries:
        print(f"{library:12}" + "".join(f"{value:10.2f}" for value in medians[library]))
    print(f"{'ratio':12}" + "".join(f"{ratio:9.2f}x" for ratio in ratios))
    return dict(zip(COLUMNS, ratios))


if __name__ == "__main__":
    main()
