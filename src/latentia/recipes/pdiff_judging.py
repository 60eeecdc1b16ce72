"""The second half of `pdiff-digits`: the protocol over several runs, and what the article's pictures need."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.files import write_text_atomic
from latentia.core.rng import derive_seed
from latentia.methods.pdiff import controls
from latentia.methods.pdiff.objectives import explained_variance
from latentia.methods.pdiff.protocol import AVERAGES, GAUSSIAN, NOISE, Protocol, Run, verdict
from latentia.methods.pdiff.scoring import Scorer
from latentia.methods.pdiff.similarity import nearest_similarity, own_nearest_similarity
from latentia.recipes.recipe import Bench
from latentia.recipes.training_section import trained

if TYPE_CHECKING:
    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline
    from latentia.methods.pdiff.protocol import Summary
    from latentia.recipes.pdiff import ParameterDiffusion
    from latentia.recipes.pdiff_digits import PDiffDigits
    from latentia.training.phase import PhaseResult

PATHS, SEEN = 5, 50
"""Generations that are followed, and points kept of each."""
EXPLAINED, SECONDS = 0.9, 10.0
"""Numbers to reach: share of the variance between checkpoints that is rebuilt, and time of the generation."""


@dataclass
class Setting:
    """One choice of parameters to generate, judged.

    Attributes:
        name, size: what is generated, and D.
        summary: of all runs.
        explained: share of the variance between checkpoints that the codec rebuilds, each run.
        seconds: of generating the networks, each run.
        drawn: plain numbers for the figures, of the first run.
    """

    name: str
    size: int
    summary: Summary
    explained: list[float]
    seconds: list[float]
    drawn: dict[str, Any] = field(default_factory=dict)


def tell(recipe: PDiffDigits, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> list[Setting]:
    """Run the protocol `recipe.runs` times; writes report.html and report.json into `out`."""
    from latentia.recipes.pdiff_report import write_report

    first = bench.parts["checkpoints"], recipe.pipeline(bench)
    settings = [judge_setting(recipe, f"{recipe.originals.network}, all parameters", first)]
    if recipe.norms:
        settings.append(judge_setting(recipe.norm_layers(), "ResNet, last two BatchNorm layers"))
    phases = trained(results)
    record = {"recipe": recipe.model_dump(mode="json"), "training": phases, "settings": list(map(as_json, settings))}
    write_text_atomic(out / "report.json", json.dumps(record, indent=2) + "\n")
    write_report(recipe, settings, phases, out)
    return settings


def judge_setting(
    recipe: PDiffDigits, name: str, first: tuple[Checkpoints, ParameterDiffusionPipeline] | None = None
) -> Setting:
    """All runs of one setting; run i is the whole recipe under seed + i, and `first` is run 0 where it is done."""
    runs: list[Run] = []
    explained, seconds, drawn, size = [], [], {}, 0
    for i in range(recipe.runs):
        mine = recipe.model_copy(update={"seed": recipe.seed + i})
        originals, pipe = first if first and not i else fresh(mine)
        started = time.perf_counter()
        generated = mine.generate(pipe)
        seconds.append(time.perf_counter() - started)
        explained.append(explained_variance(originals.vectors, pipe.decode(pipe.encode(originals.vectors)).cpu()))
        runs.append(judged(mine, originals, generated))
        if not i:
            size = originals.layout.size
            drawn = pictured(mine, originals, pipe, generated, runs[0])
    return Setting(name, size, verdict(runs), explained, seconds, drawn)


def fresh(recipe: ParameterDiffusion) -> tuple[Checkpoints, ParameterDiffusionPipeline]:
    """Checkpoints and a generator under the recipe's seed, from nothing."""
    originals = recipe.checkpoints(Bench())
    return originals, recipe.fit(originals)


def scorers(recipe: ParameterDiffusion, originals: Checkpoints) -> tuple[Scorer, Scorer]:
    """What chooses (training images that no network was fitted to) and what reports (the test set)."""
    task, network = recipe.task.build(), recipe.originals.build()()
    select, test = (Scorer(network, originals.layout, originals.base, x, y) for x, y in (task.select, task.test))
    return select, test


def judged(
    recipe: ParameterDiffusion,
    originals: Checkpoints,
    generated: torch.Tensor,
    others: Mapping[str, torch.Tensor | Checkpoints] | None = None,
) -> Run:
    """One run of the protocol, with the K = 1 control."""
    protocol = Protocol(*scorers(recipe, originals), samples=recipe.samples)
    return protocol.run(
        originals,
        generated,
        seed=recipe.seed,
        single=lambda one: recipe.regenerate(one, originals),
        others=others,
    )


def pictured(
    recipe: ParameterDiffusion,
    originals: Checkpoints,
    pipe: ParameterDiffusionPipeline,
    generated: torch.Tensor,
    run: Run,
) -> dict[str, Any]:
    """What the article's figures show of one run, as plain numbers."""
    from latentia.recipes.pdiff_figures import trajectory_planes, tsne

    v, n = originals.vectors, recipe.samples
    noisy = controls.noise(v, n, run.noise.scale, controls.spread(v), drawing(NOISE, recipe.seed))
    groups = {
        "originals": v,
        "p-diff": generated,
        "matched noise": noisy,
        "average of 16": controls.average_draws(v, n, drawing(AVERAGES, recipe.seed)),
        "Gaussian": controls.gaussian(v, n, drawing(GAUSSIAN, recipe.seed)),
    }
    latents = {"originals": v, "noise-added": noisy, "generated": generated}
    steps, paths = follow(pipe, recipe)
    return {
        "similarity": run.iou.model_dump(),
        "scatter": scatter(scorers(recipe, originals)[1], groups),
        "latents": tsne({name: pipe.encode(each).cpu().numpy() for name, each in latents.items()}, recipe.seed),
        "trajectories": trajectory_planes(paths.numpy(), v.numpy(), steps),
    }


def scatter(test: Scorer, groups: Mapping[str, torch.Tensor]) -> dict[str, list[tuple[float, float]]]:
    """Each network as (similarity to the nearest original, accuracy); `groups` begins with the originals."""
    found, base = {}, None
    for name, vectors in groups.items():
        wrong = test.wrong(vectors)
        near = own_nearest_similarity(wrong) if base is None else nearest_similarity(wrong, base)[0]
        base = wrong if base is None else base
        found[name] = list(zip(near.tolist(), (1 - wrong.double().mean(1)).tolist()))
    return found


def follow(pipe: ParameterDiffusionPipeline, recipe: ParameterDiffusion) -> tuple[list[int], torch.Tensor]:
    """Five generations decoded on their way: the steps that are kept, and vectors (5, T, D)."""
    every = max(1, recipe.sampling_steps // SEEN)
    kept: list[torch.Tensor] = []
    steps: list[int] = []

    def look(_: Any, step: int, __: torch.Tensor, tensors: Mapping[str, Any]) -> dict[str, Any]:
        if (step + 1) % every == 0 or step + 1 == recipe.sampling_steps:
            kept.append(pipe.decode(tensors["latents"]).cpu())
            steps.append(step + 1)
        return {}

    pipe(
        num_samples=PATHS,
        seed=recipe.seed,
        num_inference_steps=recipe.sampling_steps,
        callback_on_step_end=look,
    )
    return steps, torch.stack(kept, 1)


def drawing(name: str, seed: int) -> torch.Generator:
    """The generator of a control's draws in the figures: the protocol's own."""
    return torch.Generator().manual_seed(derive_seed("control", name, seed))


def as_json(setting: Setting) -> dict[str, Any]:
    """One setting for report.json."""
    return {
        "name": setting.name,
        "parameters": setting.size,
        "explained_variance": setting.explained,
        "generation_seconds": setting.seconds,
        "targets": goals(setting),
        "summary": setting.summary.model_dump(mode="json"),
        "figures": setting.drawn,
    }


def goals(setting: Setting) -> list[dict[str, Any]]:
    """The numbers to reach, with what was reached."""
    rows = [each.model_dump() for each in setting.summary.targets]
    slow = max(setting.seconds)
    if setting.explained:  # checkpoints that do not differ have no variance to rebuild
        low = min(setting.explained)
        rows.append({"name": "variance between checkpoints that the codec rebuilds", "value": low, "se": 0.0})
        rows[-1] |= {"bound": EXPLAINED, "met": low >= EXPLAINED}
    rows.append({"name": "seconds to generate the networks, at most", "value": slow, "se": 0.0})
    rows[-1] |= {"bound": SECONDS, "met": slow <= SECONDS}
    return rows


def listed(values: Sequence[float], form: str) -> str:
    """Numbers of the runs, one after the other."""
    return ", ".join(format(value, form) for value in values)
