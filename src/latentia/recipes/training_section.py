"""How training went: the same section of every page, and the same entry of every report.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from latentia.recipes.report import Point, Report

if TYPE_CHECKING:
    from latentia.training.phase import PhaseResult

COLUMNS = {"parameters": "parameters", "steps": "steps", "samples": "samples seen", "seconds": "seconds"}
"""Key → heading, in the table's order; what no phase has is left out."""


def trained(results: Mapping[str, PhaseResult]) -> dict[str, dict[str, float]]:
    """Phase → its steps, samples, parameters and seconds."""
    return {
        name: {
            "steps": result.steps,
            "samples": result.samples,
            "parameters": sum(p.numel() for module in result.modules.values() for p in module.parameters()),
            "seconds": round(result.seconds, 1),
        }
        for name, result in results.items()
    }


def curves(out: Path, phase: str, parts: tuple[str, ...]) -> dict[str, list[Point]]:
    """Loss parts over steps, from the run's own metrics.jsonl."""
    found: dict[str, list[Point]] = {part: [] for part in parts}
    for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["phase"] == phase:
            for part in parts:
                found[part].append((record["step"], record[part]))
    return found


def tell_training(
    page: Report,
    out: Path,
    parts: Mapping[str, tuple[str, ...]],
    phases: Mapping[str, Mapping[str, float]] | None = None,
    *paragraphs: str,
) -> None:
    """A chart for each phase in `parts`, of the loss parts named there, and a table of `phases` as `trained` makes it.

    Phases of `parts` that `phases` has not are left out.
    """
    page.section("How training went", *paragraphs)
    there = [phase for phase in parts if phases is None or phase in phases]
    charts = [{f"{p}: {name}": line for name, line in curves(out, p, parts[p]).items()} for p in there]
    page.charts([chart for chart in charts if all(chart.values())], "step", "", log=True)
    if phases:
        columns = {key: heading for key, heading in COLUMNS.items() if any(key in each for each in phases.values())}
        rows = [[name, *(f"{values[key]:,.0f}" for key in columns)] for name, values in phases.items()]
        page.table(["phase", *columns.values()], rows)
