"""A report of edits as Rich tables: the editor beside its baselines, task by task, and beside published numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from latentia.recipes.edit_evaluation import EditReport

EXACT = ("success", "gain", "psnr_outside", "mask_iou", "box_iou")
"""Measures of exact scoring that the table shows, where a task has them; the JSON file holds all."""


def edit_tables(report: EditReport) -> Group:
    """Everything that fits a screen."""
    parts: list[Table | Text] = [_numbers(report)]
    if any(judged.exact for judged in report.editors.values()):
        parts += [Text(), _exact(report)]
    if report.published:
        parts += [Text(), _published(report)]
    lines = [f"skipped, {reason}: {count}" for reason, count in sorted(report.skipped.items())]
    return Group(*parts, *(Text(line, style="dim") for line in [*lines, *report.notes]))


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if title == titles[0] else "right", no_wrap=True)
    return table


def _numbers(report: EditReport) -> Table:
    """One line a measure: each editor's value, and n."""
    table = _table("measured", *report.editors, "n")
    columns = {editor: {each.name: each for each in judged.numbers} for editor, judged in report.editors.items()}
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        cells = [f"{column[name].value:.4g}" if name in column else "" for column in columns.values()]
        n = next(column[name].n_generated for column in columns.values() if name in column)
        table.add_row(Text(name), *cells, str(n))  # as text: [ViT-B/32] is no markup
    return table


def _exact(report: EditReport) -> Table:
    """One line a task: true success and its like, the baselines' success beside it."""
    judged = report.editors["edited"].exact
    others = {name: each.exact for name, each in report.editors.items() if name != "edited"}
    shown = [name for name in EXACT if any(name in measures for measures in judged.values())]
    table = _table("task", *shown, *(f"success of {name}" for name in others), "n")
    for task, measures in judged.items():
        own = [f"{measures[name]:.3g}" if name in measures else "" for name in shown]
        beside = [f"{exact[task]['success']:.3g}" for exact in others.values()]
        table.add_row(task, *own, *beside, f"{measures['n']:.0f}")
    return table


def _published(report: EditReport) -> Table:
    """Rows of papers on this scale."""
    names = list(dict.fromkeys(name for row in report.published for name in row.numbers))
    table = _table(f"published, scale {report.what['scale']}", "by", *names)
    for row in report.published:
        table.add_row(
            Text(row.method), row.source, *(f"{row.numbers[n]:.4g}" if n in row.numbers else "" for n in names)
        )
    return table
