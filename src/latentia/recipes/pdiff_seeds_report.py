"""The page of `pdiff-seeds`: what was reached first, then the table of everything that was judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentia.core.files import write_text_atomic
from latentia.recipes import pdiff_figures as figures
from latentia.recipes.pdiff_seeds_judging import OURS, PLAIN, SeedSummary, judge_runs
from latentia.recipes.study import StudyPage
from latentia.recipes.training_section import tell_training, trained

if TYPE_CHECKING:
    from latentia.recipes.pdiff_seeds import SeedDiffusion
    from latentia.recipes.recipe import Bench
    from latentia.training.phase import PhaseResult

NAMES = {"convnet3": "ConvNet-3", "mlp3": "MLP-3", "resnet": "ResNet"}
RUNS = "runs"
"""Subfolder of a run that holds what was found in each repetition."""
SEED_COLUMNS = ["networks", "n", "mean, %", "best, %", "train-selected, %", "maximum similarity", "among themselves"]


def tell(recipe: SeedDiffusion, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> SeedSummary:
    """Do the runs that are missing; write report.html and report.json into `out`."""
    summary = judge_runs(recipe, recipe.plain_recipe(), bench, out / RUNS)
    record = {"recipe": recipe.model_dump(mode="json"), "training": trained(results)}
    record["summary"] = summary.model_dump(mode="json")
    write_text_atomic(out / "report.json", json.dumps(record, indent=1) + "\n")
    page = StudyPage("Whole networks from independent seeds", lead(summary))
    page.section(
        "What was done",
        f"{recipe.seeds} networks ({NAMES[recipe.network]}, all {summary.parameters:,} parameters) learnt "
        f"{recipe.task.train} noisy digits, each from its own seed. Their units were brought into one order and scale; "
        "principal components became their codes; a transformer over tokens of their weights, told "
        f"{recipe.codec.told} of them, learnt to decode codes into networks that predict what the originals predict; "
        f"a diffusion model learnt the codes, and {recipe.samples} networks were drawn from noise. All of it was done "
        f"{recipe.runs} times, from the originals on, under other seeds. The train-selected network is chosen on "
        "training images that no network was fitted to; the matched noise seeks its similarity on test images. How "
        "much of what the decoder is not told stays in the weights was sought on the same selection images: more is "
        "newer and less accurate. The other settings were found on networks of other seeds, with their test numbers "
        "in view; the table is of test images.",
    )
    tell_network(page, summary)
    tell_training(page, out, {"codec": ("behaviour",), "unet": ("loss",)})
    page.write(out / "report.html")
    return summary


def lead(summary: SeedSummary) -> str:
    """The result in two sentences."""
    mean = {name: 100 * numbers["mean"].mean for name, numbers in summary.populations.items()}
    return (
        f"Generated {NAMES[summary.network]}s are right on {mean[OURS]:.2f} % of the test images, their originals on "
        f"{mean['originals']:.2f} %, plain p-diff's on {mean[PLAIN]:.2f} %. {summary.overall}"
    )


def tell_network(page: StudyPage, summary: SeedSummary) -> None:
    """One architecture: verdict, table, numbers to reach, picture."""
    page.section(f"{NAMES[summary.network]}: {summary.parameters:,} parameters, {summary.seeds} seeds", summary.overall)
    page.table(SEED_COLUMNS, seed_rows(summary), best=[1], rules=[2])
    page.table(
        ["number to reach", "reached", "standard error", "bound", ""],
        [
            [
                each.name,
                f"{each.value:+.4f}",
                f"{each.se:.4f}",
                f"{each.bound:+.4f}",
                "reached" if each.met else "missed",
            ]
            for each in summary.targets
        ],
    )
    scatter = {name: pairs for name, pairs in summary.runs[0].scatter.items() if len(pairs) > 1}
    page.figure(figures.accuracy_and_similarity(scatter, critics=False))


def seed_rows(summary: SeedSummary) -> list[list[str]]:
    """The table's rows: accuracies in per cent and similarities, mean ± spread over runs."""
    return [[name, *seed_cells(numbers)] for name, numbers in summary.populations.items()]


def seed_cells(numbers: Mapping[str, Any]) -> list[str]:
    """One population: n, mean, best, train-selected, similarity to the nearest original, similarity among them."""
    cells = [f"{numbers['n'].mean:.0f}"]
    fields = [("mean", 100.0, ".2f"), ("best", 100.0, ".2f"), ("selected", 100.0, ".2f")]
    for name, factor, form in [*fields, ("nearest", 1.0, ".3f"), ("among", 1.0, ".3f")]:
        if name not in numbers:
            cells.append("")
            continue
        mean, spread = (format(factor * value, form) for value in (numbers[name].mean, numbers[name].spread))
        cells.append(mean if float(spread) == 0 else f"{mean} ± {spread}")
    return cells
