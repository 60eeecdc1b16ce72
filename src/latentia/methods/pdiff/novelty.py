"""Novelty at equal accuracy: is p-diff newer than noise that costs as much?

Novelty is 1 − IoU of mistakes with the nearest original. Any network becomes newer by becoming worse, so noise on a
checkpoint draws a curve of novelty against accuracy, and only what lies beyond that curve has more than noise gives.
`protocol` matches noise in similarity and compares accuracies; here it is matched in accuracy and novelty is compared:
the noise's scale is bisected until its networks' mean accuracy is that of the networks in question.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from latentia.errors import InputError
from latentia.methods.pdiff.populations import Judged, Result
from latentia.methods.pdiff.verdict import Gap, combine_gaps, compare

SCALES = tuple(2.0 ** (i / 2) for i in range(-8, 5))
"""Of the curve: from a sixteenth of the checkpoints' own spread to four times."""
NEARLY = 0.001
"""What noise may cost where p-diff is more accurate than noise can be: 0.1 points below unchanged checkpoints."""
STEPS, FACTOR, REACH = 14, 2.0, 12

Make = Callable[[float], Tensor]
"""Scale → networks (n, D), along one line: the same checkpoints and the same ε at every scale."""
Judge = Callable[[Tensor], Judged]


class Place(Result):
    """A set of networks as a point: mean accuracy and mean novelty; `scale` of noise."""

    accuracy: float
    novelty: float
    scale: float | None = None


class Equal(Result):
    """One set of networks beside noise of equal accuracy.

    Attributes:
        name: of the set.
        found: where it lies.
        noise: where the noise lies.
        equal: whether their accuracies are equal; else the set is more accurate than noise of any strength, and the
            noise is the strongest that costs no more than `NEARLY`.
        accuracy, novelty: differences from the noise, with standard errors from images (paired) and from networks.
    """

    name: str
    found: Place
    noise: Place
    equal: bool
    accuracy: Gap
    novelty: Gap

    @property
    def beyond(self) -> bool:
        """Whether it is better than noise in one of the two and worse in neither."""
        signs = self.accuracy.sign, self.novelty.sign
        return min(signs) >= 0 < max(signs)


class Curve(Result):
    """Noise over scales, sets of networks, and each of some sets beside noise of equal accuracy."""

    noise: list[Place]
    places: dict[str, Place]
    equals: list[Equal]


def equal_accuracy(sets: Sequence[Judged], questions: Sequence[str], make: Make, judge: Judge) -> Curve:
    """The curve of noise, where all `sets` lie, and the noise of equal accuracy for those named in `questions`.

    Raises `InputError` for a set without a nearest original among the questions.
    """
    known = {each.name: each for each in sets if each.nearest is not None}
    missing = [name for name in questions if name not in known]
    if missing:
        raise InputError(f"no novelty of {', '.join(missing)}: there is no nearest original; there are {list(known)}")
    curve = [_place(judge(make(scale)), scale) for scale in SCALES]
    unchanged = float(judge(make(0.0)).accuracy.mean())
    return Curve(
        noise=curve,
        places={name: _place(each) for name, each in known.items()},
        equals=[_beside(known[name], unchanged, make, judge) for name in questions],
    )


def strongest(make: Make, judge: Judge, accuracy: float) -> tuple[float, Judged]:
    """The greatest scale at which the noise's mean accuracy is at least `accuracy`, and the networks there.

    By bisection on a logarithmic axis, between a scale that still has the accuracy and one that has not.
    """
    low = high = 0.25
    found = judge(make(low))
    up = float(found.accuracy.mean()) >= accuracy
    for _ in range(REACH):
        low, high = (high, high * FACTOR) if up else (low / FACTOR, low)
        tried = judge(make(high if up else low))
        held = float(tried.accuracy.mean()) >= accuracy
        if held:
            found = tried
        if held != up:
            break
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        tried = judge(make(middle))
        if float(tried.accuracy.mean()) >= accuracy:
            low, found = middle, tried
        else:
            high = middle
    return low, found


def combine_equals(runs: Sequence[Curve]) -> list[Equal]:
    """The same questions over several runs, each as one."""
    return [_combined(column) for column in zip(*(run.equals for run in runs), strict=True)]


def _combined(column: Sequence[Equal]) -> Equal:
    return Equal(
        name=column[0].name,
        found=_middle([each.found for each in column]),
        noise=_middle([each.noise for each in column]),
        equal=all(each.equal for each in column),
        accuracy=combine_gaps([each.accuracy for each in column]),
        novelty=combine_gaps([each.novelty for each in column]),
    )


def _middle(places: Sequence[Place]) -> Place:
    scales = [each.scale for each in places if each.scale is not None]
    return Place(
        accuracy=_mean([each.accuracy for each in places]),
        novelty=_mean([each.novelty for each in places]),
        scale=_mean(scales) if scales else None,
    )


def finding(equals: Sequence[Equal], generated: str) -> str:
    """One sentence: is there novelty above noise at equal accuracy, and does it take p-diff to have it?"""
    asked = next((each for each in equals if each.name == generated), None)
    if asked is None:
        return "Novelty at equal accuracy was not measured."
    numbers = (
        f"novelty {asked.found.novelty:.3f} against {asked.noise.novelty:.3f}, a difference of "
        f"{asked.novelty.value:+.3f} ± {asked.novelty.se:.3f}; accuracy {asked.found.accuracy:.2%} against "
        f"{asked.noise.accuracy:.2%}, noise of {asked.noise.scale:.2f} spreads"
    )
    how = {1: "is newer than", 0: "is no newer than", -1: "is less new than"}[asked.novelty.sign]
    where = "At equal accuracy" if asked.equal else "Not every run has noise as accurate; at the nearest accuracy"
    rest = [each for each in equals if each.name != generated]
    beyond = [each for each in rest if each.beyond]
    if not rest:
        return f"{where} p-diff {how} noise ({numbers})."
    if not beyond:
        return f"{where} p-diff {how} noise ({numbers}). Nothing that needs no learning lies beyond the noise."
    listed = "; ".join(
        f"{each.name}, {each.found.accuracy:.2%}, {each.novelty.value:+.3f} ± {each.novelty.se:.3f}" for each in beyond
    )
    learnt = " So this takes no learning." if asked.beyond else ""
    return f"{where} p-diff {how} noise ({numbers}). Beyond the noise without learning: {listed}.{learnt}"


def _beside(asked: Judged, unchanged: float, make: Make, judge: Judge) -> Equal:
    accuracy = float(asked.accuracy.mean())
    equal = accuracy <= unchanged
    scale, noise = strongest(make, judge, accuracy if equal else unchanged - NEARLY)
    found = compare(asked, noise)
    assert found.similarity is not None
    return Equal(
        name=asked.name,
        found=_place(asked),
        noise=_place(noise, scale),
        equal=equal,
        accuracy=found.accuracy,
        novelty=found.similarity.model_copy(update={"value": -found.similarity.value}),
    )


def _place(judged: Judged, scale: float | None = None) -> Place:
    assert judged.nearest is not None
    return Place(accuracy=float(judged.accuracy.mean()), novelty=1 - float(judged.nearest.mean()), scale=scale)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
