"""What `pdiff-seeds` reports: whole networks from independent seeds, beside plain p-diff and every step on the way.

    plain p-diff          the article's recipe on the same networks, as they were trained
    matched average       the mean of the matched networks
    matched PCA-Gaussian  mean and covariance of the matched networks
    distilled centre      the decoder's one network at code 0
    Gaussian codes        the decoder on normal codes, spread as ours are: all but the diffusion
    rebuilt originals     the decoder on the originals' own codes
    matched noise         originals plus noise, as unlike the originals as ours are

BatchNorm's statistics are measured anew for all of them, originals included, on the images that networks were fitted
to. A network is chosen on the selection set and reported on the test set, as in the protocol.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.files import read_json, write_text_atomic
from latentia.core.rng import derive_seed
from latentia.methods.pdiff import controls
from latentia.methods.pdiff.populations import Judged, Population, Result, judge, judge_ensemble, population
from latentia.methods.pdiff.protocol import ENSEMBLE, NOISE, ORIGINALS, Over, over
from latentia.methods.pdiff.scoring import Scorer
from latentia.methods.pdiff.similarity import nearest_similarity
from latentia.methods.pdiff.verdict import Comparison, Gap, Target, combine, compare
from latentia.recipes.recipe import Bench, Recipe

if TYPE_CHECKING:
    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline
    from latentia.methods.pdiff.token_codec import ParameterTokenCodec
    from latentia.recipes.pdiff import ParameterDiffusion
    from latentia.recipes.pdiff_seeds import SeedDiffusion

OURS, PLAIN, AVERAGE, PCA = "matched p-diff", "plain p-diff", "matched average", "matched PCA-Gaussian"
CENTRE, CODES, REBUILT = "distilled centre", "Gaussian codes", "rebuilt originals"
ALLOWED = 0.01
"""How far the generated mean may be below the originals': one point."""


class SeedRun(Result):
    """One run: its networks, matched, learnt and generated anew.

    Attributes:
        seed: of the run; its networks' seeds follow from it.
        images: size of the test set.
        explained: share of the variance between matched networks that the decoder is told.
        populations: originals, ours, plain p-diff, the controls, the ensemble.
        comparisons: ours against each of the others.
        scatter: name → (similarity to the nearest original, accuracy) of each network.
    """

    seed: int
    images: int
    explained: float
    populations: list[Population]
    comparisons: list[Comparison]
    scatter: dict[str, list[tuple[float, float]]]


class SeedSummary(Result):
    """One architecture over several runs.

    Attributes:
        network, parameters, seeds: the architecture, D and K.
        runs: each run in full.
        populations: every number, mean ± spread over the runs.
        comparisons: ours against each of the others, over all runs.
        targets: what was to be reached.
        overall: what the controls say, in a sentence.
    """

    network: str
    parameters: int
    seeds: int
    runs: list[SeedRun]
    populations: dict[str, dict[str, Over]]
    comparisons: list[Comparison]
    targets: list[Target]
    overall: str


def judge_runs(
    recipe: SeedDiffusion, plain: ParameterDiffusion, first: Bench | None = None, folder: Path | None = None
) -> SeedSummary:
    """All runs; run i is the whole recipe under seed + i, and `first` holds what is trained of run 0.

    A run that stands in `folder`, done with the same recipes, is read from there.
    """
    runs = []
    for i in range(recipe.runs):
        mine = recipe.model_copy(update={"seed": recipe.seed + i})
        theirs = plain.model_copy(update={"seed": recipe.seed + i})
        done = {name: made_by(each) for name, each in (("recipe", mine), ("plain", theirs))}
        path = None if folder is None else folder / f"{recipe.network}-{i}.json"
        if path is not None and path.is_file() and (found := read_json(path))["made by"] == done:
            runs.append(SeedRun.model_validate(found["run"]))
            continue
        bench = first if first is not None and not i else Bench()
        pipe = mine.pipeline(bench) if bench is first else mine.fit(bench)
        runs.append(judge_run(mine, theirs, bench, pipe))
        if path is not None:
            record = {"made by": done, "run": runs[-1].model_dump(mode="json")}
            write_text_atomic(path, json.dumps(record) + "\n")
    return summarise(recipe, runs)


def made_by(recipe: Recipe) -> dict[str, Any]:
    """All fields that change the numbers of one run."""
    return recipe.model_dump(mode="json", exclude={*recipe.runtime, "runs"})


def judge_run(
    recipe: SeedDiffusion, plain: ParameterDiffusion, bench: Bench, pipe: ParameterDiffusionPipeline
) -> SeedRun:
    """Generate, and judge beside the originals and the controls."""
    originals, matched = recipe.checkpoints(bench), recipe.matched(bench)
    select, test = scorers(recipe, originals)
    codec, codes = pipe.autoencoder, pipe.autoencoder.encode_all(matched)
    drawn = torch.randn(recipe.samples, *codes.shape[1:], generator=drawing(CODES, recipe.seed))
    base = judge(ORIGINALS, matched, select, test)
    networks = {
        OURS: recipe.generate(pipe),
        PLAIN: plain.generate(plain.fit(originals)),
        AVERAGE: controls.uniform_average(matched),
        PCA: controls.pca_gaussian(matched, recipe.samples, drawing(PCA, recipe.seed)),
        CENTRE: codec.decode_all(torch.zeros_like(codes[:1])),
        CODES: pipe.decode(drawn),
        REBUILT: codec.decode_all(codes),
    }
    ours, *others = [judge(name, each, select, test, base.wrong) for name, each in networks.items()]
    others.append(judge(NOISE, noisy(recipe, matched, test, base, ours), select, test, base.wrong))
    others.append(judge_ensemble(ENSEMBLE, matched, select, test, base.wrong))
    return SeedRun(
        seed=recipe.seed,
        images=base.wrong.shape[1],
        explained=share_told(codec, matched, codes),
        populations=[population(each, base) for each in (base, ours, *others)],
        comparisons=[compare(ours, each) for each in (base, *others)],
        scatter={each.name: points(each) for each in (base, ours, *others)},
    )


def noisy(recipe: SeedDiffusion, matched: torch.Tensor, test: Scorer, base: Judged, ours: Judged) -> torch.Tensor:
    """Originals with noise that makes them as unlike the originals as ours are."""
    assert ours.nearest is not None

    def similarity(vectors: torch.Tensor) -> float:
        return float(nearest_similarity(test.wrong(vectors), base.wrong)[0].mean())

    target, generator = float(ours.nearest.mean()), drawing(NOISE, recipe.seed)
    return controls.matched_noise(matched, recipe.samples, target, similarity, generator).vectors


def scorers(recipe: SeedDiffusion, originals: Checkpoints) -> tuple[Scorer, Scorer]:
    """What chooses and what reports, with BatchNorm's statistics measured anew."""
    task, network, images = recipe.task.build(), recipe.build(), recipe.measuring_images()
    select, test = (
        Scorer(network, originals.layout, originals.base, x, y, reestimate=images) for x, y in (task.select, task.test)
    )
    return select, test


def share_told(codec: ParameterTokenCodec, matched: torch.Tensor, codes: torch.Tensor) -> float:
    """Share of the standardised variance between networks that lies in the components which the decoder is told."""
    told = codes * (torch.arange(codes.shape[1]) < codec.told)[:, None]
    missed = (codec.decode_linear(told) - matched) / codec.scale
    return float(1 - missed.square().sum() / ((matched - codec.mean) / codec.scale).square().sum())


def points(judged: Judged) -> list[tuple[float, float]]:
    """Each network as (similarity to the nearest original, accuracy); none for predictions without a network."""
    near = judged.nearest
    return [] if near is None else list(zip(near.tolist(), judged.accuracy.tolist()))


def drawing(name: str, seed: int) -> torch.Generator:
    """The generator of a control's draws."""
    return torch.Generator().manual_seed(derive_seed("control", name, seed))


def summarise(recipe: SeedDiffusion, runs: Sequence[SeedRun]) -> SeedSummary:
    """What the runs say together."""
    names = [each.name for each in runs[0].populations]
    columns = {name: [each for run in runs for each in run.populations if each.name == name] for name in names}
    compared = [combine(column) for column in zip(*(run.comparisons for run in runs))]
    return SeedSummary(
        network=recipe.network,
        parameters=recipe.layout().size,
        seeds=recipe.seeds,
        runs=list(runs),
        populations={name: over(column) for name, column in columns.items()},
        comparisons=compared,
        targets=goals(compared[0]),
        overall=honest(compared[1:]),
    )


def goals(against_originals: Comparison) -> list[Target]:
    """The numbers to reach: as good as the originals within a point, and less like them than they are."""
    accuracy, similarity = against_originals.accuracy, against_originals.similarity
    assert similarity is not None
    newer = Gap(value=-similarity.value, se_images=similarity.se_images, se_networks=similarity.se_networks)
    rows = [
        ("mean generated − mean original", accuracy, -ALLOWED),
        ("originals' similarity to their nearest other − generated to the nearest original", newer, 0.0),
    ]
    return [
        Target(name=name, value=gap.value, se=gap.se, bound=bound, met=gap.value >= bound) for name, gap, bound in rows
    ]


def honest(comparisons: Sequence[Comparison]) -> str:
    """Which controls do as well, in a sentence or two."""
    alike = [each.control for each in comparisons if each.outcome in ("ties", "loses", "trades")]
    beaten = [each.control for each in comparisons if each.outcome == "beats"]
    words = f"It beats {listed(beaten)} at matched novelty" if beaten else "It beats no control at matched novelty"
    if not alike:
        return f"{words}."
    words += f"; it does not beat {listed(alike)}."
    if CODES in alike:
        words += (
            " Gaussian codes share the matching and the distilled decoder, and leave out only the diffusion: "
            "it is these two that make the networks work, and the diffusion over codes adds nothing that shows."
        )
    return words


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
