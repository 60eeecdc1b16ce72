"""CPU seconds of importing, each in a fresh interpreter: Latentia, torch, Diffusers.

The statements take turns, so that noise of the machine hits all; medians of RUNS.
"""

import os
import statistics
import subprocess
import sys

RUNS = 5
STATEMENTS = (
    "pass",
    "import latentia",
    "import torch",
    "from latentia import DDIMScheduler",
    "from latentia import UNet2DModel",
    "from latentia import LatentDiffusionPipeline",
    "from diffusers import DDIMScheduler",
    "from diffusers import UNet2DModel",
    "from diffusers import LDMPipeline",
)


def cpu_seconds(statement: str) -> float:
    """User and system time of a fresh interpreter that runs `statement`."""
    before = os.times()
    subprocess.run([sys.executable, "-c", statement], check=True, capture_output=True)
    after = os.times()
    return (after.children_user + after.children_system) - (before.children_user + before.children_system)


def main() -> None:
    """Print the table."""
    seconds: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for _ in range(RUNS):
        for statement in STATEMENTS:
            seconds[statement].append(cpu_seconds(statement))
    found = {statement: statistics.median(values) for statement, values in seconds.items()}
    print(f"{'CPU seconds, median of ' + str(RUNS):46s}{'total':>8s}{'over python':>13s}{'over torch':>12s}")
    for statement, value in found.items():
        over_torch = f"{value - found['import torch']:+12.2f}" if statement.startswith("from") else ""
        print(f"{statement:46s}{value:8.2f}{value - found['pass']:13.2f}{over_torch}")


if __name__ == "__main__":
    main()
