"""What studies have in common: stages that are kept in OUT/stages, and a page with figures."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentia.core.files import read_json, write_text_atomic
from latentia.errors import nearest
from latentia.recipes.report import Report

FOLDER = "stages"

Stage = Callable[[Any, Any], Any]
"""(recipe, bench) → numbers that JSON holds."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One experiment on the page.

    Attributes:
        panels: drawings and what stands below each: ours first, the paper's after it.
        note: what the paper reports, with its source.
    """

    panels: tuple[tuple[str, str], ...]
    note: str


class StudyPage(Report):
    """A report that shows figures too."""

    def figure(self, figure: Figure) -> None:
        """The panels of a figure side by side, its note below."""
        panels = "".join(
            f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>" for svg, caption in figure.panels
        )
        note = f"<p>{html.escape(figure.note)}</p>" if figure.note else ""
        self._parts.append(f'<div class="row">{panels}</div>{note}')


def check_stages(chosen: Sequence[str], known: Sequence[str]) -> None:
    """Raise `ValueError` for a stage that there is not, with the nearest."""
    for name in chosen:
        if name not in known:
            match = nearest(name, known)
            hint = f"did you mean {match!r}? " if match else ""
            raise ValueError(f"there is no stage {name!r}: {hint}choose from {', '.join(known)}")


def missing_stages(order: Sequence[str], chosen: Sequence[str], out: Path) -> list[str]:
    """The chosen stages that `out` does not hold yet, in order."""
    return [name for name in order if name in chosen and not (out / FOLDER / f"{name}.json").is_file()]


def carry_out(
    order: Sequence[str],
    chosen: Sequence[str],
    stages: Mapping[str, Stage],
    recipe: Any,
    bench: Any,
    out: Path,
    progress: bool = True,
) -> dict[str, Any]:
    """Do the chosen stages that are missing, keep each as OUT/stages/NAME.json; returns all that there are, in order.

    `progress`: show a bar of stages; off where stages show bars of their own.
    """
    from rich.progress import Progress

    missing = missing_stages(order, chosen, out)
    with Progress(disable=not progress) as bar:
        task = bar.add_task("stages", total=len(missing))
        for name in missing:
            bar.update(task, description=name)
            found = stages[name](recipe, bench)
            write_text_atomic(out / FOLDER / f"{name}.json", json.dumps(found, indent=1) + "\n")
            bar.advance(task)
    return {name: read_json(path) for name in order if (path := out / FOLDER / f"{name}.json").is_file()}
