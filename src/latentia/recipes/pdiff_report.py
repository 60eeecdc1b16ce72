"""The page of `pdiff-digits`: the verdict first, then the protocol's table and the article's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentia.recipes import pdiff_figures as figures
from latentia.recipes.pdiff_figures import protocol_table
from latentia.recipes.pdiff_judging import Setting, goals, listed
from latentia.recipes.pdiff_paper import PAPER
from latentia.recipes.study import Figure, StudyPage
from latentia.recipes.svg import Axis, Plot
from latentia.recipes.training_section import tell_training

if TYPE_CHECKING:
    from latentia.methods.pdiff.novelty import Equal
    from latentia.recipes.pdiff_digits import PDiffDigits

SIMILARITIES = {"originals": "originals", "generated": "p-diff", "across": "originals × p-diff"}
SIMILARITIES |= {"nearest": "nearest original"}
EQUAL_COLUMNS = ["networks", "accuracy", "noise's accuracy", "novelty", "noise's novelty", "difference"]
EQUAL_COLUMNS += ["noise, spreads"]


def write_report(
    recipe: PDiffDigits, settings: Sequence[Setting], phases: Mapping[str, Mapping[str, float]], out: Path
) -> None:
    """Write report.html into `out`."""
    page = StudyPage("Networks that make networks, beside what needs no learning", lead(settings[0]))
    page.section(
        "What was done",
        f"Small networks learn {recipe.task.train} noisy digits; {recipe.originals.count} checkpoints of one training "
        "run are compressed by an autoencoder, a diffusion model learns their latents, and "
        f"{recipe.samples} new networks are drawn from noise. All of it was done {recipe.runs} times, from the "
        "checkpoints on, under other seeds. Networks are chosen on training images that none was fitted to, and "
        "reported on test images; only matched noise seeks its similarity, or its mean accuracy, there. The recipe's "
        "own settings were found under seed 0 with test accuracy in view; other seeds played no part in that.",
    )
    for setting in settings:
        tell_setting(page, setting)
    tell_training(page, out, {"autoencoder": ("mse",), "unet": ("loss",)}, phases)
    page.write(out / "report.html")


def lead(setting: Setting) -> str:
    """The result in two sentences."""
    means = {name: 100 * setting.summary.populations[name]["mean"].mean for name in ("originals", "p-diff")}
    return (
        f"Generated networks are right on {means['p-diff']:.2f} % of the test images, their originals on "
        f"{means['originals']:.2f} %. {setting.summary.overall}"
    )


def tell_setting(page: StudyPage, setting: Setting) -> None:
    """One choice of parameters: verdict, table, numbers to reach, pictures."""
    summary, drawn = setting.summary, setting.drawn
    page.section(f"{setting.name}: {setting.size:,} parameters", summary.overall)
    columns, rows = protocol_table(summary)
    page.table(columns, rows, best=[1], rules=[2])
    page.section(
        "Against each control",
        "A difference counts when it exceeds two standard errors, from the choice of test images and from the draw "
        "of networks together. Novelty is the IoU of mistakes with the nearest original: lower is newer.",
        *(each.sentence for each in summary.comparisons),
    )
    page.table(["number to reach", "reached", "standard error", "bound", ""], list(map(goal_row, goals(setting))))
    page.section(
        "Accuracy and similarity",
        f"The codec rebuilds {listed(setting.explained, '.1%')} of the variance between checkpoints; "
        f"generating took {listed(setting.seconds, '.1f')} seconds.",
    )
    page.figure(figures.accuracy_and_similarity(drawn["scatter"]))
    page.figure(figures.four_similarities({SIMILARITIES[name]: value for name, value in drawn["similarity"].items()}))
    curves = [run.curve.model_dump() for run in summary.runs if run.curve is not None]
    if curves:
        page.section(
            "Novelty at equal accuracy",
            summary.novelty,
            "A worse network is always newer. So the strength of noise on checkpoints is sought at which its networks "
            "are as accurate on average as those in question, and novelty is compared there.",
        )
        page.figure(figures.novelty_curve(curves))
        page.table(EQUAL_COLUMNS, list(map(equal_row, summary.equals)))
    page.section(
        "Where the networks lie, and how they get there",
        "White latents of pure noise decode to networks as far apart as the originals: generations wander among them "
        "and settle, rather than arrive from afar as in the article, whose latents are not whitened.",
    )
    page.figure(point_map(drawn["latents"]))
    page.figure(figures.trajectories(drawn["trajectories"]))


def equal_row(equal: Equal) -> list[str]:
    """One set of networks beside noise of equal accuracy."""
    numbers = [f"{100 * each.accuracy:.2f}" for each in (equal.found, equal.noise)]
    numbers += [f"{each.novelty:.3f}" for each in (equal.found, equal.noise)]
    strength = f"{equal.noise.scale or 0.0:.3f}" + ("" if equal.equal else " (any is less accurate)")
    return [equal.name, *numbers, f"{equal.novelty.value:+.3f} ± {equal.novelty.se:.3f}", strength]


def goal_row(goal: Mapping[str, Any]) -> list[str]:
    """One number to reach."""
    numbers = [f"{goal[name]:+.4f}" for name in ("value", "se", "bound")]
    return [goal["name"], *numbers, "reached" if goal["met"] else "missed"]


def point_map(points: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """t-SNE points by group, beside what the paper says of its own; the axes mean nothing and have no numbers."""
    x, y = (Axis.of([point[i] for group in points.values() for point in group]) for i in (0, 1))
    plot = Plot(Axis(x.low, x.high, ()), Axis(y.low, y.high, ()), width=460, height=360)
    for ink, (name, group) in enumerate(points.items()):
        plot.scatter(name, [(point[0], point[1]) for point in group], ink)
    words = "t-SNE of the latents, perplexity 30; distances between clusters mean little"
    return Figure(((plot.svg(), words),), PAPER["t-SNE"].caption())
