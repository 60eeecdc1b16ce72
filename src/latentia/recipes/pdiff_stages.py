"""The stages of `pdiff-study`: each takes the recipe and what was trained, and returns numbers that JSON holds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from latentia.methods.pdiff import controls
from latentia.methods.pdiff.collect import train_seeds
from latentia.methods.pdiff.many import Fit, train_together
from latentia.methods.pdiff.networks import build
from latentia.methods.pdiff.scoring import Scorer
from latentia.methods.pdiff.similarity import nearest_similarity
from latentia.recipes.pdiff_digits import NORMS
from latentia.recipes.pdiff_judging import as_json, drawing, fresh, judge_setting, scatter, scorers
from latentia.recipes.pdiff_seeds import SIZES, pdiff_seeds
from latentia.recipes.pdiff_seeds_judging import judge_runs

if TYPE_CHECKING:
    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.recipes.pdiff import ParameterDiffusion
    from latentia.recipes.pdiff_seeds import SeedDiffusion
    from latentia.recipes.pdiff_study import PDiffStudy
    from latentia.recipes.recipe import Bench

DEPTHS = ("layer1", "layer2", "layer3")
SMALL_STRIDES = (2, 2, 2, 2)
"""Of the codec where only tens of parameters are generated."""
NOISES = {"none": (False, False), "parameters": (True, False), "latents": (False, True), "both": (True, True)}
TUNED, TUNED_EPOCHS, TUNED_LR = 25, 2, 1e-3
SCALES = (0.5, 1.0, 2.0)
"""Strengths of the noise-added networks, in units of the checkpoints' own spread."""
PICTURED = 3
"""Seeds whose weights are shown."""
SEED_RATE = 5e-3
"""Learning rate of these."""
SEEDS = "seeds"
"""Subfolder of a study that holds what was found with networks from independent seeds, run by run."""


def protocol(recipe: PDiffStudy, bench: Bench) -> dict[str, Any]:
    """Both settings of `pdiff-digits`, all controls, all runs."""
    first = bench.parts["checkpoints"], bench.parts["pipeline"]
    settings = [judge_setting(recipe, f"{recipe.originals.network}, all parameters", first)]
    if recipe.norms:
        settings.append(judge_setting(recipe.norm_layers(), "ResNet, last two BatchNorm layers"))
    return {"settings": list(map(as_json, settings))}


def k_sweep(recipe: PDiffStudy, _: Bench) -> dict[str, Any]:
    """K originals spread evenly over one trajectory of the greatest K, so that only their number changes."""
    most = max(recipe.sweep)
    rows: dict[int, list[dict[str, float]]] = {k: [] for k in recipe.sweep}
    nearest: dict[int, list[float]] = {}
    means = []
    for i in range(recipe.runs):
        mine = recipe.model_copy(update={"seed": recipe.seed + i})
        long = mine.model_copy(update={"originals": recipe.originals.model_copy(update={"count": most})})
        everything = long.checkpoints(new_bench())
        test = scorers(mine, everything)[1]
        means.append(float(test.accuracies(everything.vectors).mean()))
        for k in recipe.sweep:
            some = everything.select(torch.linspace(0, most - 1, k).round().long())
            made = mine.regenerate(some.vectors, some) if k == 1 else mine.generate(mine.fit(some))
            rows[k].append(numbers(test, made))
            if not i:
                nearest[k] = nearest_similarity(test.wrong(made), test.wrong(some.vectors))[0].tolist()
    return {"by_k": {k: over_runs(found) for k, found in rows.items()}, "nearest": nearest} | {
        "originals": statistics.fmean(means)
    }


def depth(recipe: PDiffStudy, _: Bench) -> dict[str, Any]:
    """The BatchNorm layers of one stage of the ResNet at a time, from the first to the last."""
    found: dict[str, Any] = {}
    codec = recipe.codec.model_copy(update={"strides": SMALL_STRIDES})
    for stage in DEPTHS:
        names = tuple(f"{stage}.0.{norm}" for norm in ("bn1", "bn2"))
        chosen = NORMS.model_copy(update={"patterns": names, "count": recipe.originals.count})
        changed = recipe.model_copy(update={"originals": chosen, "codec": codec})
        found[stage] = trained(changed, recipe.runs)
    return found


def noise(recipe: PDiffStudy, _: Bench) -> dict[str, Any]:
    """The codec's training noise: none, on parameters, on latents, on both."""
    found = {}
    for name, (on_parameters, on_latents) in NOISES.items():
        sigmas = {
            "parameter_noise": recipe.codec.parameter_noise * on_parameters,
            "latent_noise": recipe.codec.latent_noise * on_latents,
        }
        changed = recipe.model_copy(update={"codec": recipe.codec.model_copy(update=sigmas)})
        found[name] = trained(changed, recipe.runs)["p-diff"]
    return found


def baselines(recipe: PDiffStudy, bench: Bench) -> dict[str, Any]:
    """Fine-tuned and noise-added originals beside generated networks: accuracy and similarity of each."""
    originals = bench.parts["checkpoints"]
    v, spread = originals.vectors, controls.spread(originals.vectors)
    groups = {"originals": v, "p-diff": recipe.generate(bench.parts["pipeline"])}
    groups["fine-tuned"] = fine_tuned(recipe, originals)
    for scale in SCALES:
        generator = drawing(f"noise {scale}", recipe.seed)
        groups[f"noise {scale:g}"] = controls.noise(v, TUNED, scale, spread, generator)
    return scatter(scorers(recipe, originals)[1], groups)


def fine_tuned(recipe: ParameterDiffusion, originals: Checkpoints) -> torch.Tensor:
    """Originals, spread evenly, trained on: all of their parameters, on the same images."""
    rows = torch.linspace(0, len(originals) - 1, min(TUNED, len(originals))).round().long()
    network = recipe.originals.build()()
    batch = min(recipe.originals.main.batch_size, recipe.task.train)
    fit = Fit("adamw", lr=TUNED_LR, epochs=TUNED_EPOCHS, batch_size=batch)
    starts = [originals.state_dict(int(row)) for row in rows]
    stacked = train_together(network, starts, rows.tolist(), recipe.task.build().fit, fit)
    return torch.cat([stacked[name].flatten(1).float() for name in originals.layout.names], 1)


def patterns(recipe: PDiffStudy, _: Bench) -> dict[str, Any]:
    """Weights of the ConvNet's layers from independent seeds."""
    found = from_seeds(recipe, PICTURED)
    layers = ("conv1.weight", "conv2.weight", "conv3.weight", "linear.weight")
    tensors = found.layout.unflatten(found.vectors)
    return {name: tensors[name].flatten(2).tolist() for name in layers}


def seeds(recipe: PDiffStudy, bench: Bench) -> dict[str, Any]:
    """Whole networks, all from independent seeds: where plain p-diff collapses, beside `pdiff-seeds`."""
    folder = bench.out / SEEDS if bench.out else None
    found = {each: judge_runs(seed_recipe(recipe, each), recipe, folder=folder) for each in SIZES}
    return {name: summary.model_dump(mode="json") for name, summary in found.items()}


def seed_recipe(recipe: PDiffStudy, network: str) -> SeedDiffusion:
    """`pdiff-seeds` with the study's task and numbers."""
    published = pdiff_seeds()
    numbers = {name: getattr(recipe, name) for name in ("task", "seeds", "seed", "runs", "samples", "sampling_steps")}
    fitting = published.fitting.model_copy(update={"epochs": recipe.seed_epochs})
    given = {**numbers, "network": network, "fitting": fitting, "codec": recipe.seed_codec, "steps": recipe.seed_steps}
    return published.model_copy(update={**given, "batch_size": min(published.batch_size, recipe.seeds)})


def from_seeds(recipe: PDiffStudy, count: int) -> Checkpoints:
    """ConvNets trained from independent seeds, all of their parameters."""
    fit = Fit("adamw", lr=SEED_RATE, epochs=recipe.seed_epochs, batch_size=min(32, recipe.task.train))
    chosen = range(recipe.seed, recipe.seed + count)
    return train_seeds(partial(build, "convnet3"), recipe.task.build().fit, "*", chosen, fit)


def trained(recipe: ParameterDiffusion, runs: int) -> dict[str, dict[str, float]]:
    """Originals' and generated networks' numbers over runs of the whole recipe under seeds that follow each other."""
    rows: dict[str, list[dict[str, float]]] = {"originals": [], "p-diff": []}
    for i in range(runs):
        mine = recipe.model_copy(update={"seed": recipe.seed + i})
        originals, pipe = fresh(mine)
        test = scorers(mine, originals)[1]
        rows["originals"].append(numbers(test, originals.vectors))
        rows["p-diff"].append(numbers(test, mine.generate(pipe)))
    return {name: over_runs(found) for name, found in rows.items()}


def numbers(test: Scorer, vectors: torch.Tensor) -> dict[str, float]:
    """Best, mean and median held-out accuracy of networks (N, D)."""
    accuracy = test.accuracies(vectors).double()
    return {
        "best": float(accuracy.max()),
        "mean": float(accuracy.mean()),
        "median": float(accuracy.quantile(0.5)),
    }


def over_runs(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over runs, and `spread`: the standard deviation of the mean accuracy from run to run (0 for one run)."""
    found = {name: statistics.fmean(row[name] for row in rows) for name in rows[0]}
    means = [row["mean"] for row in rows]
    return found | {"spread": statistics.stdev(means) if len(means) > 1 else 0.0}


def new_bench() -> Bench:
    """A bench that leaves nothing on disk."""
    from latentia.recipes.recipe import Bench

    return Bench()


STAGES: Mapping[str, Callable[[Any, Any], Any]] = {
    "protocol": protocol,
    "k_sweep": k_sweep,
    "depth": depth,
    "noise": noise,
    "baselines": baselines,
    "patterns": patterns,
    "seeds": seeds,
}
