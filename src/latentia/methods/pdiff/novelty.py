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
from latentia.methods.pdiff.similarity import jackknife_error
from latentia.methods.pdiff.verdict import Gap, combine_gaps

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
        novelty: difference of novelties, with standard errors from images (paired) and from networks.
    """

    name: str
    found: Place
    noise: Place
    equal: bool
    novelty: Gap


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
    combined = []
    for column in zip(*(run.equals for run in runs), strict=True):
        places = {
            which: Place(
                accuracy=_mean([getattr(each, which).accuracy for each in column]),
                novelty=_mean([getattr(each, which).novelty for each in column]),
                scale=_mean([each.noise.scale or 0.0 for each in column]) if which == "noise" else None,
            )
            for which in ("found", "noise")
        }
        gap = combine_gaps([each.novelty for each in column])
        combined.append(Equal(name=column[0].name, equal=all(each.equal for each in column), novelty=gap, **places))
    return combined


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
    where = "At equal accuracy" if asked.equal else "Noise is not as accurate in every run; near the same accuracy"
    others = [each for each in equals if each.name != generated]
    above = [each for each in others if each.novelty.sign > 0]
    end = ""
    if above:
        listed = ", ".join(f"{each.name} ({each.novelty.value:+.3f} ± {each.novelty.se:.3f})" for each in above)
        end = f" Above the noise, too: {listed}"
        end += ": that takes no learning." if asked.novelty.sign > 0 else "."
    elif others and asked.novelty.sign > 0:
        end = f" {' and '.join(each.name for each in others)} {'are' if len(others) > 1 else 'is'} not."
    return f"{where} p-diff {how} noise ({numbers}).{end}"


def _beside(asked: Judged, unchanged: float, make: Make, judge: Judge) -> Equal:
    accuracy = float(asked.accuracy.mean())
    equal = accuracy <= unchanged
    scale, noise = strongest(make, judge, accuracy if equal else unchanged - NEARLY)
    assert asked.nearest is not None
    assert noise.nearest is not None
    assert asked.leave_out is not None
    assert noise.leave_out is not None
    gap = Gap(
        value=float(noise.nearest.mean() - asked.nearest.mean()),
        se_images=jackknife_error(noise.leave_out - asked.leave_out),
        se_networks=math.hypot(_over_networks(asked.nearest), _over_networks(noise.nearest)),
    )
    return Equal(name=asked.name, found=_place(asked), noise=_place(noise, scale), equal=equal, novelty=gap)


def _place(judged: Judged, scale: float | None = None) -> Place:
    assert judged.nearest is not None
    return Place(accuracy=float(judged.accuracy.mean()), novelty=1 - float(judged.nearest.mean()), scale=scale)


def _over_networks(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
