"""How the paper recipes judge what they generated: the protocol over data sets, and its page beside the paper's row."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from latentia.core.files import write_text_atomic
from latentia.methods.pdiff.dataset_scoring import DatasetScorer
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.objectives import explained_variance
from latentia.methods.pdiff.protocol import Protocol, verdict
from latentia.recipes.pdiff_figures import protocol_table
from latentia.recipes.pdiff_judging import Setting, as_json
from latentia.recipes.pdiff_tables import FIRST, SOURCES, THIRD, Triple
from latentia.recipes.plan import FusedAttention
from latentia.recipes.sources import resolve_device
from latentia.recipes.study import StudyPage

if TYPE_CHECKING:
    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.recipes.pdiff_classifiers import PDiffPaper
    from latentia.recipes.recipe import Bench

DRAWN, SEARCHED = 6, 100
"""Sets of networks that are judged beside the originals, and those that the searches for matched noise judge on the
test set (107 in all were counted on digits)."""


def tell(recipe: PDiffPaper, bench: Bench, out: Path) -> Setting:
    """Generate `recipe.samples` networks, judge them beside every control; writes report.html and report.json."""
    originals, pipe = recipe.gathered(bench), recipe.pipeline(bench)
    started = time.perf_counter()
    generated = recipe.generate(pipe)
    seconds = time.perf_counter() - started
    explained = explained_variance(originals.vectors, pipe.decode(pipe.encode(originals.vectors)).cpu())
    select, test = (scorer(recipe, originals, use) for use in ("select", "test"))
    run = Protocol(select, test, samples=recipe.samples).run(originals, generated, seed=recipe.seed)
    name = f"{recipe.architecture} on {recipe.dataset}"
    setting = Setting(name, originals.layout.size, verdict([run]), [explained], [seconds])
    paper = published(recipe)
    record: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "paper": paper, "setting": as_json(setting)}
    write_text_atomic(out / "report.json", json.dumps(record, indent=2) + "\n")
    write_page(recipe, setting, paper, out)
    return setting


def scorer(recipe: PDiffPaper, originals: Checkpoints, use: Any) -> DatasetScorer:
    """What judges on the images of this use."""
    network = recipe.model_copy(update={"pretrained": None}).build()
    return DatasetScorer(
        network,
        originals.layout,
        originals.base,
        recipe.images(use),
        batch_size=recipe.judge_batch,
        device=resolve_device(recipe.device),
        workers=recipe.workers,
    )


def published(recipe: PDiffPaper) -> dict[str, Triple]:
    """The paper's numbers for this network and data set, by edition."""
    found: dict[str, Triple] = {}
    for edition, table in (("first edition", FIRST), ("third edition", THIRD)):
        if row := table.get(recipe.architecture, {}).get(recipe.dataset):
            found[edition] = row
    return found


def write_page(recipe: PDiffPaper, setting: Setting, paper: dict[str, Triple], out: Path) -> None:
    """report.html: verdict, table, and the paper's row."""
    page = StudyPage(f"p-diff: {setting.name}", setting.summary.overall)
    page.section(
        "What was done",
        f"{recipe.count} checkpoints of {setting.size:,} parameters; {recipe.samples} networks were generated in "
        f"{setting.seconds[0]:.1f} seconds. The codec rebuilds {setting.explained[0]:.1%} of the variance between "
        "checkpoints.",
    )
    columns, rows = protocol_table(setting.summary)
    page.table(columns, rows, best=[1], rules=[2])
    page.section("Against each control", *(each.sentence for each in setting.summary.comparisons))
    if paper:
        page.section("The paper's numbers", "Per cent, all chosen on the test set.")
        page.table(
            ["edition", "best original", "average of the weights", "best generated"],
            [[edition, *(f"{value:.1f}" for value in row)] for edition, row in paper.items()],
        )
    page.write(out / "report.html")


def judged_images(recipe: PDiffPaper, share: float) -> int:
    """Forward passes that judging costs: one trunk for each image, one tail (`share` of a pass) for each network."""
    source, k, n = SOURCES[recipe.dataset], recipe.count, recipe.samples
    chosen = min(source.train, recipe.choosing) * (1 + share * (k + DRAWN * n))
    return round(source.test * (1 + share * (k + (DRAWN + SEARCHED) * n)) + chosen)


def tail_share(network: nn.Module, layout: ParameterLayout, inputs: tuple[torch.Tensor, ...]) -> float:
    """Share of a forward pass, in FLOPs, that comes after the first generated parameter is used."""
    first: list[int] = []
    paths = {name.rpartition(".")[0] for name in layout.names}
    with FlopCounterMode(display=False) as counter, FusedAttention(), torch.no_grad():
        handles = [
            network.get_submodule(path).register_forward_pre_hook(lambda *_: first.append(counter.get_total_flops()))
            for path in paths
        ]
        network(*inputs)
        for handle in handles:
            handle.remove()
    return 1 - first[0] / max(counter.get_total_flops(), 1)
