"""Recipes and plans as Rich tables; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from latentia.recipes.overrides import keys
from latentia.recipes.registry import prose, stated

if TYPE_CHECKING:
    from latentia.core.inspect_path import Description
    from latentia.metrics.measurement import Measurement
    from latentia.recipes.plan import Plan, Row
    from latentia.recipes.recipe import Recipe


WIDEST = 8
"""Columns of a dry run; more phases than that become lines."""
IN_LINES = ("network", "parameters", "samples × batch", "whole phase", "time here")
"""What such a line says."""


def count(value: float, unit: str = "") -> str:
    """3.57e7 → `35.7 M`: three digits and a decimal prefix."""
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z"]
    index = 0
    while abs(value) >= 999.5 and index < len(prefixes) - 1:
        value, index = value / 1000, index + 1
    return f"{value:.3g} {prefixes[index]}{unit}".rstrip()


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them: `4.2 s`, `12 min`, `3.1 h`, `24 days`."""
    if seconds is None:
        return "not measured"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.2g} {unit}" if seconds / size < 10 else f"{seconds / size:.0f} {unit}"
    days = seconds / 86400
    return f"{days:.2g} days" if days < 10 else f"{days:,.0f} days"


def plan_table(plan: Plan) -> Group:
    """The dry run: one column for each network of each phase, totals and assumptions below."""
    table = Table(title=f"{plan.recipe}: dry run", title_justify="left", pad_edge=False)
    table.add_column("phase", no_wrap=True)
    for row in plan.rows:
        table.add_column(row.phase, justify="right")
    lines: tuple[tuple[str, Callable[[Row], str]], ...] = (
        ("network", lambda row: row.network + ("" if row.trained else " (frozen)")),
        ("input, one sample", lambda row: _shape(row.input_shape)),
        ("output", lambda row: _shape(row.output_shape)),
        ("parameters", lambda row: f"{row.parameters:,}"),
        ("of these trained", lambda row: f"{row.trained_parameters:,}"),
        ("forward, one sample", lambda row: count(row.forward_flops, "FLOP")),
        ("samples × batch", lambda row: f"{count(row.samples)} × {row.batch_size}"),
        ("whole phase", lambda row: count(row.total_flops, "FLOP")),
        ("weights and optimizer", lambda row: count(row.state_bytes, "B")),
        ("activations", lambda row: count(row.activation_bytes, "B")),
        ("time here", lambda row: duration(row.seconds_here) + ("" if row.measured or not row.seconds_here else " *")),
        ("time on one A100", lambda row: duration(row.seconds_a100)),
    )
    if len(plan.rows) > WIDEST:  # a study of many runs: a line each, and what fits
        table = long_table(plan, dict(lines))
    else:
        for label, cell in lines:
            table.add_row(label, *(cell(row) for row in plan.rows))
    total = (
        f"total: {count(plan.parameters)} parameters trained, {count(plan.total_flops, 'FLOP')}, "
        f"{count(plan.memory_bytes, 'B')} of memory, {duration(plan.seconds_here)} here ({plan.machine}), "
        f"{duration(plan.seconds_a100)} on one A100"
    )
    return Group(table, Text(total), Text("\n".join(_assumptions(plan)), style="dim"))


def long_table(plan: Plan, lines: Mapping[str, Callable[[Row], str]]) -> Table:
    """A dry run's phases from top to bottom."""
    table = Table(title=f"{plan.recipe}: dry run", title_justify="left", box=None, pad_edge=False)
    table.add_column("phase")
    for label in IN_LINES:
        table.add_column(label, justify="left" if label == "network" else "right")
    for row in plan.rows:
        table.add_row(row.phase, *(lines[label](row) for label in IN_LINES))
    return table


def _assumptions(plan: Plan) -> list[str]:
    peak = 156 if plan.precision == "no" else 312
    notes = [f"A100: 30 % of {peak} TFLOP/s ({'TF32' if plan.precision == 'no' else plan.precision})."]
    if any(row.seconds_here is not None and not row.measured for row in plan.rows):
        speed = count(plan.block_flops_per_second or 0, "FLOP/s")
        notes.append(f"* from this machine's speed in norm, SiLU and 3×3 convolution, {speed}.")
    if any(row.measured for row in plan.rows):
        notes.append("Times without * are from a few real steps.")
    return notes


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in shape) or "scalar"


def list_table(recipes: dict[str, str]) -> Table:
    """Names and first lines of all recipes."""
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", style="bold", no_wrap=True)
    table.add_column("what it trains")
    for name, line in recipes.items():
        table.add_row(name, line)
    return table


def recipe_page(build: Callable[[], Recipe]) -> Group:
    """What a recipe is, its command, cost and expected number, and every key that `key=value` can set."""
    recipe = build()
    first, *rest = prose(build)
    facts = Table(box=None, pad_edge=False, show_header=False)
    for label, text in stated(build).items():
        facts.add_row(Text(label, style="bold"), Text(text))
    table = Table(box=None, pad_edge=False)
    for title in ("key", "default", "meaning"):
        table.add_column(title, style="bold" if title == "key" else None, no_wrap=title == "key")
    for key in keys(recipe):
        table.add_row(
            key.name, Text(_default(key.value)), Text(key.description).append(f" ({key.type_name})", style="dim")
        )
    lines = [Text(f"{paragraph}\n") for paragraph in rest]
    return Group(Text.assemble((recipe.name, "bold"), f"  {first}\n"), facts, Text(), *lines, table)


def _default(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(_default(item) for item in value) or "()"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def measurement_table(numbers: Sequence[Measurement]) -> Table:
    """Numbers with what they were measured on."""
    table = Table(box=None, pad_edge=False)
    for title in ("measured", "value", "n", "real", "seed"):
        table.add_column(title, justify="left" if title == "measured" else "right", no_wrap=True)
    for each in numbers:
        seed = "" if each.seed is None else str(each.seed)
        table.add_row(each.name, f"{each.value:.4g}", str(each.n_generated), str(each.n_real or ""), seed)
    return table


def description_tree(found: Description) -> Tree:
    """What lies at a path, its parts below it, problems in red."""
    return _grow(Tree(_branch(str(found.path), found)), found)


def _branch(name: str, found: Description) -> Text:
    text = Text(name, style="bold")
    size = [f"{count(found.parameters)} parameters"] if found.parameters else []
    kinds = [" + ".join(sorted(found.dtypes))] if found.dtypes else []
    tags = [f"variants {', '.join(found.variants)}"] if found.variants not in ((), ("default",)) else []
    facts = [found.class_name or found.kind, *size, *kinds, *tags, *([count(found.bytes, "B")] if found.bytes else [])]
    return text.append(f"  {', '.join(facts)}", style="not bold")


def _grow(tree: Tree, found: Description) -> Tree:
    for problem in found.problems:
        tree.add(Text(problem, style="red"))
    for name, part in found.parts.items():
        _grow(tree.add(_branch(name, part)), part)
    return tree
