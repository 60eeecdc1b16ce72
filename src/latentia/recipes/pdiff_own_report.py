"""The page of `pdiff`: the verdict, the tables, and plainly what could not be judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentia.recipes.pdiff_figures import protocol_table
from latentia.recipes.pdiff_judging import goals
from latentia.recipes.pdiff_report import goal_row
from latentia.recipes.study import StudyPage
from latentia.recipes.training_section import tell_training

if TYPE_CHECKING:
    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.recipes.pdiff_judging import Setting
    from latentia.recipes.pdiff_own import OwnNetworks
    from latentia.recipes.pdiff_own_judging import WeightReport

UNJUDGED = (
    "There are no data with classes and no score, so nothing here says whether a generated network works: there are "
    "distances between weights alone. Name data=mynets:data for accuracies beside every control, or "
    "score=mynets:score for a number of your own."
)
ONLY_SCORED = (
    "Networks are judged by your score. Scores of all networks are shown, and the best is the best of all of them: "
    "optimistic, never a result."
)


def write_report(
    recipe: OwnNetworks,
    originals: Checkpoints,
    weights: WeightReport,
    judged: Setting | None,
    phases: Mapping[str, Mapping[str, float]],
    out: Path,
) -> None:
    """Write report.html into `out`."""
    page = StudyPage(f"Networks like those of {recipe.module}", lead(recipe, weights, judged))
    told = f"{len(originals)} checkpoints of {originals.layout.size:,} parameters ({', '.join(recipe.patterns)}) "
    page.section(
        "What was done",
        f"{told}were compressed by an autoencoder, a diffusion model learnt their latents, and {recipe.samples} new "
        f"networks were drawn from noise in {weights.seconds:.1f} seconds.",
        *few(recipe, originals),
    )
    if judged is not None:
        tell_data(page, recipe, judged)
    tell_weights(page, weights)
    tell_training(page, out, {"autoencoder": ("mse",), "unet": ("loss",)}, phases)
    page.write(out / "report.html")


def lead(recipe: OwnNetworks, weights: WeightReport, judged: Setting | None) -> str:
    """The result in a sentence or two."""
    if judged is not None:
        means = {name: 100 * judged.summary.populations[name]["mean"].mean for name in ("originals", "p-diff")}
        return (
            f"Generated networks are right on {means['p-diff']:.2f} % of the held-out data, their originals on "
            f"{means['originals']:.2f} %. {judged.summary.overall}"
        )
    return ONLY_SCORED if recipe.score else UNJUDGED


def few(recipe: OwnNetworks, originals: Checkpoints) -> list[str]:
    """What a reader should know of originals that are few."""
    if len(originals) == 1:
        return ["One checkpoint has no spread: whatever is generated is that checkpoint, and no control can be drawn."]
    if len(originals) < recipe.codec.batch_size:
        return [f"They are fewer than a batch of {recipe.codec.batch_size}: each batch holds some of them repeatedly."]
    return []


def tell_data(page: StudyPage, recipe: OwnNetworks, judged: Setting) -> None:
    """Accuracies beside every control."""
    summary = judged.summary
    run = summary.runs[0]
    fitted = "none of them was trained on" if not (recipe.checkpoints or recipe.trainer) else "taken as not trained on"
    page.section(
        "On your data",
        summary.overall,
        f"{run.select_images} samples choose, {run.images} others report; {fitted}. One run: its standard errors hold "
        "the choice of samples and the draw of networks, not another training.",
    )
    columns, rows = protocol_table(summary)
    page.table(columns, rows, best=[1], rules=[2])
    page.section(
        "Against each control",
        "A difference counts when it exceeds two standard errors. Novelty is the IoU of mistakes with the nearest "
        "original: lower is newer.",
        *(each.sentence for each in summary.comparisons),
    )
    page.table(["number to reach", "reached", "standard error", "bound", ""], list(map(goal_row, goals(judged))))


def tell_weights(page: StudyPage, weights: WeightReport) -> None:
    """Distances, and scores where there are some."""
    page.section("In weight space", *weights.sentences)
    columns = ["networks", "n", "L2 nearest original", "L2 to the average", "L2 among them"]
    scored = weights.populations[0].scored is not None
    columns += ["scored", "best", "mean", "std"] if scored else []
    rows = []
    for each in weights.populations:
        numbers: list[Any] = [each.nearest, each.centre, each.among]
        row = [each.name, str(each.n), *map(cell, numbers)]
        rows.append([*row, str(each.scored), *map(cell, (each.best, each.mean, each.std))] if scored else row)
    page.table(columns, rows, best=[1], rules=[2])


def cell(value: float | None) -> str:
    """A number of the table; nothing where there is none."""
    return "" if value is None else f"{value:.4g}"
