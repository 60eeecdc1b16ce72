"""The page of `pdiff-study`: every experiment as ours beside the paper's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentia.methods.pdiff.protocol import ENSEMBLE, Summary
from latentia.recipes import pdiff_figures as figures
from latentia.recipes.pdiff_judging import Setting
from latentia.recipes.pdiff_report import tell_setting
from latentia.recipes.pdiff_seeds_judging import OURS, PLAIN, SeedSummary
from latentia.recipes.pdiff_seeds_report import NAMES, tell_network
from latentia.recipes.study import StudyPage

if TYPE_CHECKING:
    from latentia.recipes.pdiff_study import PDiffStudy

SEED_GOALS = ["originals, %", "plain p-diff, %", "matched p-diff, %", "matched − originals, points"]
SEED_GOALS += ["originals' similarity", "matched p-diff's similarity"]


def write_study(recipe: PDiffStudy, stages: Mapping[str, Any], out: Path) -> None:
    """Write report.html into `out` from the stages that there are."""
    runs = f"{recipe.runs} runs" if recipe.runs > 1 else "one run"
    page = StudyPage(
        "Neural network diffusion, experiment by experiment",
        f"Every experiment of the article, repeated on digits ({runs} each, from the checkpoints on), beside the "
        "paper's own numbers. The networks and the data differ, so shapes can be compared and heights cannot.",
    )
    for name, stage in stages.items():
        PAGES[name](page, stage)
    page.write(out / "report.html")


def protocol(page: StudyPage, stage: Any) -> None:
    """Both settings in full."""
    for each in stage["settings"]:
        tell_setting(
            page,
            Setting(
                each["name"],
                each["parameters"],
                Summary.model_validate(each["summary"]),
                each["explained_variance"],
                each["generation_seconds"],
                each["figures"],
            ),
        )


def k_sweep(page: StudyPage, stage: Any) -> None:
    """Accuracy and greatest similarity against K."""
    by_k = {int(k): numbers for k, numbers in stage["by_k"].items()}
    page.section(
        "Number of originals", "One checkpoint comes back as it is; the more there are, the more room between."
    )
    page.figure(figures.k_sweep(by_k, stage["originals"]))
    page.section("Similarity to the nearest original, against their number")
    page.figure(figures.maximum_similarity({int(k): values for k, values in stage["nearest"].items()}))


def depth(page: StudyPage, stage: Any) -> None:
    """Which layers."""
    page.section(
        "Which layers",
        "The BatchNorm layers of one stage of the ResNet at a time (1 to 3, from the image on), each beside its own "
        "originals: training on other layers gives other checkpoints. The paper shows the originals of one depth.",
    )
    page.figure(figures.layer_depths(stage))


def noise(page: StudyPage, stage: Any) -> None:
    """Where the codec's noise is."""
    page.section("Noise in the codec's training", "With whitened latents and a mean that is taken off first.")
    page.figure(figures.noise_augmentation(stage))


def baselines(page: StudyPage, stage: Any) -> None:
    """Fine-tuned and noise-added."""
    page.section(
        "Fine-tuned and noise-added networks",
        "Originals trained a little further, and originals with noise of 0.5, 1 and 2 times the spread of all of them.",
    )
    page.figure(figures.accuracy_and_similarity(stage, critics=False))


def patterns(page: StudyPage, stage: Any) -> None:
    """Heat maps."""
    page.section("Patterns of parameters", "Weights of the ConvNet from independent seeds, a row for each filter.")
    page.figure(figures.parameter_patterns(stage))


def seeds(page: StudyPage, stage: Any) -> None:
    """Independent seeds."""
    summaries = [SeedSummary.model_validate(each) for each in stage.values()]
    page.section(
        "Whole networks from independent seeds",
        "Hidden units can be permuted without changing a network, and every seed permutes them otherwise: what lies "
        "between two such networks is none, and plain p-diff collapses. Matched p-diff brings the units into one order "
        "first, learns codes that decode into what the networks do, and measures BatchNorm's statistics anew.",
    )
    shown = ("originals", ENSEMBLE, PLAIN, OURS)
    page.figure(
        figures.whole_networks(
            {NAMES[each.network]: [each.populations[name]["mean"].mean for name in shown] for each in summaries}
        )
    )
    page.table(["network", "D", "seeds", *SEED_GOALS], [seed_row(each) for each in summaries])
    for each in summaries:
        tell_network(page, each)


def seed_row(summary: SeedSummary) -> list[str]:
    """One kind of network: means of accuracy in per cent, and similarities to the nearest original."""
    numbers = summary.populations
    means = [f"{100 * numbers[name]['mean'].mean:.2f}" for name in ("originals", PLAIN, OURS)]
    near = [f"{numbers[name]['nearest'].mean:.3f}" for name in ("originals", OURS)]
    reached = [f"{100 * goal.value:+.2f} ± {100 * goal.se:.2f}" for goal in summary.targets[:1]]
    return [NAMES[summary.network], f"{summary.parameters:,}", f"{summary.seeds}", *means, *reached, *near]


PAGES: Mapping[str, Callable[[StudyPage, Any], None]] = {
    "protocol": protocol,
    "k_sweep": k_sweep,
    "depth": depth,
    "noise": noise,
    "baselines": baselines,
    "patterns": patterns,
    "seeds": seeds,
}
