"""The protocol: what was generated, judged beside its originals and beside everything that needs no learning.

protocol = Protocol(Scorer(net, layout, base, *select_set), Scorer(net, layout, base, *test_set))
runs = [protocol.run(originals, pipe(100, seed=s).vectors, seed=s, single=regenerate) for s in range(3)]
summary = verdict(runs)
print(summary.overall)

The training images are split into *fit* and *select*: networks are trained on the first and chosen on the second. The
test set is looked at once, for the report, and by the noise controls: one seeks p-diff's similarity on it, the other
p-diff's mean accuracy (`novelty`), which makes the comparison fair and chooses no network.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from latentia.core.rng import derive_seed
from latentia.errors import InputError
from latentia.methods.pdiff import controls
from latentia.methods.pdiff.novelty import Curve, Equal, combine_equals, equal_accuracy, finding
from latentia.methods.pdiff.populations import Judged, Population, Result, Scores, judge, judge_ensemble, population
from latentia.methods.pdiff.similarity import four_comparisons, nearest_similarity
from latentia.methods.pdiff.verdict import Comparison, Target, combine, compare, overall, targets

if TYPE_CHECKING:
    from latentia.methods.pdiff.checkpoints import Checkpoints

    Networks = Tensor | Checkpoints

ORIGINALS, GENERATED = "originals", "p-diff"
AVERAGE, AVERAGES, GAUSSIAN, PCA = "uniform average", "average of 16", "Gaussian", "PCA-Gaussian"
NOISE, ENSEMBLE, SINGLE, SOUP = "matched noise", "prediction ensemble", "K = 1", "greedy soup"
CURVE = "noise"
TRIVIAL = (AVERAGE, AVERAGES, GAUSSIAN, PCA, NOISE)
"""The controls that know nothing but means and spreads."""
SAMPLES = 100


class Noise(Result):
    """How strong the matched noise had to be.

    Attributes:
        scale: in units of the checkpoints' own spread (`unit`).
        unit: as in `controls.spread`.
        similarity, target: what it gives and what it had to match.
        reached: whether they agree within the tolerance.
    """

    scale: float
    unit: str
    similarity: float
    target: float
    reached: bool


class Iou(Result):
    """The article's four mean similarities (see `similarity.Comparisons`)."""

    originals: float | None
    generated: float | None
    across: float
    nearest: float


class Run(Result):
    """One generation, judged.

    Attributes:
        seed: of the controls' draws.
        images, select_images: size of the test and of the selection set.
        populations: originals, p-diff, the controls and whatever else was given, in this order.
        comparisons: p-diff against each of the others.
        iou: the four comparisons.
        noise: how the noise was matched.
        curve: novelty at equal accuracy; None for a single original, which has no spread to give noise its strength.
    """

    seed: int
    images: int
    select_images: int
    populations: list[Population]
    comparisons: list[Comparison]
    iou: Iou
    noise: Noise
    curve: Curve | None = None

    def population(self, name: str) -> Population:
        """The population `name`. Raises `InputError` listing those there are."""
        for each in self.populations:
            if each.name == name:
                return each
        raise InputError(f"no population {name!r} in this run; it has: {', '.join(p.name for p in self.populations)}")


class Over(Result):
    """A number over runs: mean and standard deviation (unbiased; 0 for one run)."""

    mean: float
    spread: float


class Summary(Result):
    """Several runs and what follows from them; `model_dump_json()` is a report.json's content.

    Attributes:
        runs: each run in full.
        populations: every number of every population, mean ± spread over the runs.
        comparisons: p-diff against the originals and every control, over all runs.
        against_others: against whatever else was given, which is no control.
        targets: the numbers to reach against the originals.
        overall: the verdict in a sentence.
        equals: p-diff, and controls, beside noise of equal accuracy, over all runs; empty where not measured.
        novelty: what follows from that, in a sentence.
    """

    runs: list[Run]
    populations: dict[str, dict[str, Over]]
    comparisons: list[Comparison]
    against_others: list[Comparison]
    targets: list[Target]
    overall: str
    equals: list[Equal] = Field(default_factory=list)
    novelty: str = ""


class Protocol:
    """Judges generated networks beside their originals and every control.

    Args:
        select: judge on images of the training set that no network was fitted to: it chooses.
        test: judge on held-out images: it reports.
        samples: networks that each control draws, as many as p-diff is asked for.
        noise_unit: unit of the noise control, see `controls.spread`; of one checkpoint it is "tensor".
        components: directions of the PCA-Gaussian; None for all.
        soup: also cook a greedy soup (one evaluation on the selection set a checkpoint).
    """

    def __init__(
        self,
        select: Scores,
        test: Scores,
        *,
        samples: int = SAMPLES,
        noise_unit: controls.SpreadUnit = "coordinate",
        components: int | None = None,
        soup: bool = False,
    ) -> None:
        if samples < 1:
            raise InputError(f"samples must be at least 1, got {samples}")
        self.select, self.test = select, test
        self.samples, self.noise_unit, self.components, self.soup = samples, noise_unit, components, soup

    def run(
        self,
        originals: Checkpoints,
        generated: Networks,
        *,
        seed: int = 0,
        single: Callable[[Tensor], Tensor] | None = None,
        others: Mapping[str, Networks] | None = None,
    ) -> Run:
        """Judge `generated` (N, D) beside `originals` (K, D) and the controls.

        Networks given as `Checkpoints` are judged with the tensors that they have for themselves (`own`); controls have
        none, so BatchNorm statistics that differ between originals want scorers that measure them anew.

        Args:
            originals: the checkpoints that the generator was trained on.
            generated: its networks, as vectors or as `Checkpoints`.
            seed: of the controls' draws; each has its own generator, so leaving one out changes no other.
            single: reruns the generator from its beginning on one checkpoint, (1, D) → (N, D), for the K = 1 control.
            others: further networks to judge, e.g. fine-tuned or plain p-diff's, by name.

        Raises `InputError` for vectors of another length and names that are taken, `NonFiniteError` for a NaN.
        """
        vectors = controls.checked(originals.vectors)
        size = _vectors(generated).shape[-1]
        if size != vectors.shape[1]:
            raise InputError(f"originals have {vectors.shape[1]} parameters, generated ones {size}")
        base = judge(ORIGINALS, vectors, self.select, self.test, own=originals.own)
        made = self._judge(GENERATED, generated, base, "generated network")
        judged, noise = self._controls(originals, base, made, seed, single)
        for name, each in (others or {}).items():
            if name in {ORIGINALS, GENERATED, *(j.name for j in judged)}:
                raise InputError(f"there is a population {name!r} already: give the other one another name")
            judged.append(self._judge(name, each, base, f"{name} network"))
        iou = four_comparisons(base.wrong, made.wrong)
        return Run(
            seed=seed,
            images=base.wrong.shape[1],
            select_images=len(self.select.y),
            populations=[population(each, base) for each in (base, made, *judged)],
            comparisons=[compare(made, each) for each in (base, *judged)],
            iou=Iou(originals=iou.originals, generated=iou.generated, across=iou.across, nearest=iou.nearest),
            noise=noise,
            curve=self._curve(originals, base, [made, *judged], seed),
        )

    def _judge(self, name: str, networks: Networks, base: Judged, kind: str) -> Judged:
        own = None if isinstance(networks, Tensor) else networks.own
        return judge(name, controls.checked(_vectors(networks), kind), self.select, self.test, base.wrong, own)

    def _controls(
        self, originals: Checkpoints, base: Judged, made: Judged, seed: int, single: Callable[[Tensor], Tensor] | None
    ) -> tuple[list[Judged], Noise]:
        """Every control, judged, and how the noise was matched."""
        vectors, n = originals.vectors, self.samples

        def rng(name: str) -> torch.Generator:
            return torch.Generator().manual_seed(derive_seed("control", name, seed))

        matched, noise = self._noise(originals, base, made, rng(NOISE))
        drawn = {
            AVERAGE: controls.uniform_average(vectors),
            AVERAGES: controls.average_draws(vectors, n, rng(AVERAGES)),
            GAUSSIAN: controls.gaussian(vectors, n, rng(GAUSSIAN)),
            PCA: controls.pca_gaussian(vectors, n, rng(PCA), self.components),
            NOISE: matched,
        }
        if single is not None:
            drawn[SINGLE] = controls.one_checkpoint(vectors, single, rng(SINGLE))
        if self.soup:
            drawn[SOUP] = controls.greedy_soup(vectors, base.select, self.select.accuracies)
        judged = [self._judge(name, networks, base, f"{name} network") for name, networks in drawn.items()]
        judged.append(judge_ensemble(ENSEMBLE, vectors, self.select, self.test, base.wrong, originals.own))
        return judged, noise

    def _curve(self, originals: Checkpoints, base: Judged, sets: Sequence[Judged], seed: int) -> Curve | None:
        """Noise over scales, and noise of equal accuracy beside p-diff and what needs no learning."""
        if len(originals.vectors) == 1:
            return None
        lengths = controls.spread(originals.vectors, self.noise_unit, originals.layout.slices)
        line = derive_seed("control", CURVE, seed)

        def make(scale: float) -> Tensor:
            generator = torch.Generator().manual_seed(line)
            return controls.noise(originals.vectors, self.samples, scale, lengths, generator)

        def judge_noise(vectors: Tensor) -> Judged:
            wrong = self.test.wrong(vectors)
            return Judged(CURVE, 1 - wrong.double().mean(1), wrong, base.wrong)

        shown = [each for each in sets if each.name in (GENERATED, AVERAGES, GAUSSIAN, PCA)]
        return equal_accuracy(shown, [each.name for each in shown], make, judge_noise)

    def _noise(
        self, originals: Checkpoints, base: Judged, made: Judged, generator: torch.Generator
    ) -> tuple[Tensor, Noise]:
        """Originals with noise that makes them as unlike the originals as the generated networks are."""
        assert made.nearest is not None
        unit = self.noise_unit if len(originals.vectors) > 1 or self.noise_unit == "one" else "tensor"
        lengths = controls.spread(originals.vectors, unit, originals.layout.slices)
        target = float(made.nearest.mean())
        found = controls.matched_noise(
            originals.vectors,
            self.samples,
            target,
            lambda vectors: float(nearest_similarity(self.test.wrong(vectors), base.wrong)[0].mean()),
            generator,
            lengths,
        )
        noise = Noise(scale=found.scale, unit=unit, similarity=found.similarity, target=target, reached=found.reached)
        return found.vectors, noise


def _vectors(networks: Networks) -> Tensor:
    return networks if isinstance(networks, Tensor) else networks.vectors


def verdict(runs: Sequence[Run]) -> Summary:
    """What several runs say together. Raises `InputError` when they did not judge the same populations."""
    names = [[each.name for each in run.populations] for run in runs]
    if not runs or any(each != names[0] for each in names):
        raise InputError(f"a verdict needs runs with the same populations, got {names}")
    known = {ORIGINALS, AVERAGE, AVERAGES, GAUSSIAN, PCA, NOISE, ENSEMBLE, SINGLE, SOUP}
    combined = [combine(column) for column in zip(*(run.comparisons for run in runs))]
    compared = [each for each in combined if each.control in known]
    curves = [run.curve for run in runs if run.curve is not None]
    equals = combine_equals(curves) if len(curves) == len(runs) else []
    return Summary(
        runs=list(runs),
        populations={name: over([run.population(name) for run in runs]) for name in names[0]},
        comparisons=compared,
        against_others=[each for each in combined if each.control not in known],
        targets=targets(compared[0]),
        overall=overall([each for each in compared if each.control != ORIGINALS], TRIVIAL),
        equals=equals,
        novelty=finding(equals, GENERATED),
    )


def over(populations: Sequence[Population]) -> dict[str, Over]:
    """Mean ± spread of every number that all of `populations` have."""
    columns: dict[str, list[float]] = {}
    for each in populations:
        for field, value in each.model_dump(exclude={"name"}).items():
            if value is not None:
                columns.setdefault(field, []).append(float(value))
    return {
        field: Over(mean=statistics.fmean(values), spread=statistics.stdev(values) if len(values) > 1 else 0.0)
        for field, values in columns.items()
        if len(values) == len(populations)
    }
