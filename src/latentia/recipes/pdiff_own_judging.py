"""What can be said of the networks that `pdiff` generated: everything with data, and the weights' distances without."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from latentia.core.files import write_text_atomic
from latentia.core.rng import derive_seed
from latentia.methods.pdiff import controls
from latentia.methods.pdiff.objectives import explained_variance
from latentia.methods.pdiff.populations import Result
from latentia.methods.pdiff.protocol import (
    AVERAGE,
    AVERAGES,
    GAUSSIAN,
    GENERATED,
    NOISE,
    ORIGINALS,
    PCA,
    SINGLE,
    Protocol,
    verdict,
)
from latentia.methods.pdiff.scoring import Scorer
from latentia.methods.pdiff.similarity import l2_matrix
from latentia.recipes.pdiff_judging import Setting, as_json
from latentia.recipes.pdiff_own_source import judging_images
from latentia.recipes.training_section import trained
from latentia.recipes.user_code import score_of

if TYPE_CHECKING:
    from torch import nn

    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.recipes.pdiff_own import OwnNetworks
    from latentia.recipes.recipe import Bench
    from latentia.recipes.user_code import Images
    from latentia.training.phase import PhaseResult


class Weights(Result):
    """One set of n networks as far as their weights, and the user's score, tell.

    Attributes:
        nearest: mean L2 distance to the nearest original (for an original: another one); None for an only one.
        centre: mean L2 distance to the originals' average.
        among: mean L2 distance between two of them; None for one network.
        scored: how many have a finite score; None without a score.
        best, mean, std: of these scores (std unbiased, 0 for one network).
    """

    name: str
    n: int
    nearest: float | None
    centre: float
    among: float | None
    scored: int | None = None
    best: float | None = None
    mean: float | None = None
    std: float | None = None


class WeightReport(Result):
    """All sets of networks, and what follows from them in sentences."""

    explained: float | None
    seconds: float
    populations: list[Weights]
    sentences: list[str]


def tell(recipe: OwnNetworks, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
    """Generate `recipe.samples` networks and judge them; writes report.html and report.json into `out`."""
    from latentia.recipes.pdiff_own_report import write_report

    originals, pipe = recipe.gathered(bench), recipe.pipeline(bench)
    started = time.perf_counter()
    generated = recipe.generate(pipe)
    seconds = time.perf_counter() - started
    rebuilt = pipe.decode(pipe.encode(originals.vectors)).cpu()
    explained = explained_variance(originals.vectors, rebuilt) if differ(originals.vectors) else None
    weights = judge_weights(recipe, originals, generated, explained, seconds)
    images = judging_images(recipe)
    judged = None if images is None else judge_data(recipe, originals, generated, images, explained, seconds)
    phases = trained(results)
    record: dict[str, Any] = {"recipe": recipe.model_dump(mode="json"), "training": phases}
    record |= {"originals": {"count": len(originals), "parameters": originals.layout.size, "meta": originals.meta}}
    record |= {"weights": weights.model_dump(mode="json"), "data": None if judged is None else as_json(judged)}
    write_text_atomic(out / "report.json", json.dumps(record, indent=2) + "\n")
    write_report(recipe, originals, weights, judged, phases, out)


def judge_data(
    recipe: OwnNetworks,
    originals: Checkpoints,
    generated: Tensor,
    images: tuple[Images, Images],
    explained: float | None,
    seconds: float,
) -> Setting:
    """The whole protocol: accuracies on the user's data, beside every control."""
    select, test = (scorer(recipe, originals, *each) for each in images)
    single = (lambda one: recipe.regenerate(one, originals)) if len(originals) > 1 else None
    run = Protocol(select, test, samples=recipe.samples).run(originals, generated, seed=recipe.seed, single=single)
    shares = [] if explained is None else [explained]
    return Setting(recipe.module, originals.layout.size, verdict([run]), shares, [seconds])


def scorer(recipe: OwnNetworks, originals: Checkpoints, x: Tensor, y: Tensor) -> Scorer:
    """Many networks at once where `torch.func` can trace this one and agrees with the plain loop, else the loop."""
    network = recipe.build()
    loop = Scorer(network, originals.layout, originals.base, x, y, vectorised=False)
    first = originals.vectors[:1]
    try:
        fast = Scorer(network, originals.layout, originals.base, x, y)
        same = torch.allclose(fast.probabilities(first), loop.probabilities(first), rtol=1e-3, atol=1e-4)
    except Exception:  # whatever tracing a stranger's code raises
        return loop
    return fast if same else loop


def judge_weights(
    recipe: OwnNetworks, originals: Checkpoints, generated: Tensor, explained: float | None, seconds: float
) -> WeightReport:
    """Distances, and the user's score, of every set of networks."""
    sets = drawn(recipe, originals, generated)
    scored = {name: None if not recipe.score else scores(recipe, originals, each) for name, each in sets.items()}
    found = [weights(name, each, originals.vectors, scored[name]) for name, each in sets.items()]
    lines = [*distance_sentences(found, explained), *score_sentences(found)]
    return WeightReport(explained=explained, seconds=seconds, populations=found, sentences=lines)


def drawn(recipe: OwnNetworks, originals: Checkpoints, generated: Tensor) -> dict[str, Tensor]:
    """Every set of networks by name: originals, p-diff's, and the controls, drawn as the protocol draws them."""
    v, n = originals.vectors, recipe.samples

    def rng(name: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed("control", name, recipe.seed))

    found = {ORIGINALS: v, GENERATED: generated}
    if len(v) == 1:
        return found
    found |= {
        AVERAGE: controls.uniform_average(v),
        AVERAGES: controls.average_draws(v, n, rng(AVERAGES)),
        GAUSSIAN: controls.gaussian(v, n, rng(GAUSSIAN)),
        PCA: controls.pca_gaussian(v, n, rng(PCA)),
    }
    target = nearest(generated, v)
    if differ(v) and target > 0:
        lengths = controls.spread(v, "coordinate", originals.layout.slices)
        noisy = controls.matched_noise(v, n, 0.5, lambda w: 1 / (1 + nearest(w, v) / target), rng(NOISE), lengths)
        found[NOISE] = noisy.vectors  # 0.5: at p-diff's own distance
    found[SINGLE] = controls.one_checkpoint(v, lambda one: recipe.regenerate(one, originals), rng(SINGLE))
    return found


def weights(name: str, vectors: Tensor, originals: Tensor, scored: Tensor | None) -> Weights:
    """The numbers of one set of networks (N, D); `scored` (N,) holds NaN where a network has no score."""
    n = len(vectors)
    between = l2_matrix(vectors, vectors)
    off = ~torch.eye(n, dtype=torch.bool)
    if name == ORIGINALS:
        near = float(between.masked_fill(~off, math.inf).amin(1).mean()) if n > 1 else None
    else:
        near = nearest(vectors, originals)
    found = Weights(
        name=name,
        n=n,
        nearest=near,
        centre=float(l2_matrix(vectors, originals.mean(0, keepdim=True)).mean()),
        among=float(between[off].mean()) if n > 1 else None,
    )
    if scored is None:
        return found
    finite = scored[scored.isfinite()]
    numbers: dict[str, Any] = {"scored": len(finite)}
    if len(finite):
        spread = float(finite.std()) if len(finite) > 1 else 0.0
        numbers |= {"best": float(finite.max()), "mean": float(finite.mean()), "std": spread}
    return found.model_copy(update=numbers)


def scores(recipe: OwnNetworks, originals: Checkpoints, vectors: Tensor) -> Tensor:
    """The user's score of each network (N, D), (N,) float64; an original has all that is its own."""
    network = recipe.build()
    own = originals.own if vectors is originals.vectors else {}
    found = []
    for i, vector in enumerate(vectors):
        state = originals.overlay(vector, {name: stacked[i] for name, stacked in own.items()})
        found.append(score_of(recipe.score, loaded(network, state)))
    return torch.tensor(found, dtype=torch.float64)


def loaded(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the network with these tensors."""
    made = copy.deepcopy(network)
    made.load_state_dict(dict(state))
    return made.eval()


def distance_sentences(found: Sequence[Weights], explained: float | None) -> list[str]:
    """What distances between weights tell, and what they do not."""
    by_name = {each.name: each for each in found}
    originals, made = by_name[ORIGINALS], by_name[GENERATED]
    lines = []
    if explained is None:
        lines.append("The originals do not differ from each other, so there is no variance for the codec to rebuild.")
    else:
        lines.append(f"The codec rebuilds {explained:.1%} of the variance between checkpoints.")
    if originals.nearest is not None and made.nearest is not None:
        lines.append(
            f"A generated network lies {made.nearest:.3g} from its nearest original, where an original lies "
            f"{originals.nearest:.3g} from its nearest other one; from the originals' average they lie "
            f"{made.centre:.3g} and {originals.centre:.3g} away."
        )
    lines.append("Distance is not merit: noise is as far away as one likes, and only its accuracy shows it for noise.")
    return lines


def score_sentences(found: Sequence[Weights]) -> list[str]:
    """p-diff's mean score against that of each other set, where there is a score."""
    made = next(each for each in found if each.name == GENERATED)
    if made.scored is None:
        return []
    lines = []
    for each in found:
        if each is made:
            continue
        if made.mean is None or each.mean is None:
            lines.append(f"{each.name}: {each.scored} of {each.n} have a score, p-diff's {made.scored} of {made.n}.")
            continue
        gap = made.mean - each.mean
        error = math.hypot(*(_error(one) for one in (made, each)))
        word = "is not told apart from" if abs(gap) <= 2 * error else ("is above" if gap > 0 else "is below")
        lines.append(f"p-diff's mean score {word} that of {each.name}: {gap:+.4g} ± {error:.2g} (networks alone).")
    return lines


def nearest(vectors: Tensor, originals: Tensor) -> float:
    """Mean L2 distance of networks (N, D) to the nearest of the originals (K, D)."""
    return float(l2_matrix(vectors, originals).amin(1).mean())


def differ(vectors: Tensor) -> bool:
    """Whether the checkpoints (K, D) are not all the same."""
    return len(vectors) > 1 and bool((vectors != vectors[0]).any())


def _error(each: Weights) -> float:
    return (each.std or 0.0) / math.sqrt(max(each.scored or 1, 1))
