"""Does p-diff beat a control? Two numbers decide, accuracy and novelty, each with its standard error.

Novelty is measured, not claimed: it is the similarity of mistakes with the nearest original, lower being newer. A worse
network is always newer, so only both together mean anything: p-diff beats a control that is no more accurate and no
newer, and is worse in one of the two, each by more than `SIGMAS` standard errors.
"""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from latentia.errors import InputError
from latentia.methods.pdiff.populations import Judged, Result
from latentia.methods.pdiff.similarity import jackknife_error

SIGMAS = 2.0
"""How many standard errors make a difference: about 19 in 20."""
SAME_SIMILARITY = 0.005
"""Similarities nearer than this are matched, however small their standard error: the bisection goes no further."""
ALLOWED_LOSS = 0.002
"""How far the generated mean may be below the originals' mean: 0.2 points."""

Outcome = Literal["beats", "ties", "loses", "trades", "unmeasured"]


class Gap(Result):
    """A difference, p-diff − control, and what could have caused it by chance.

    Attributes:
        value: the difference.
        se_images: standard error from the choice of test images, paired: both are judged on the same ones.
        se_networks: standard error from the draw of networks (and, over several runs, from run to run).
    """

    value: float
    se_images: float
    se_networks: float

    @property
    def se(self) -> float:
        """Both together."""
        return math.hypot(self.se_images, self.se_networks)

    @property
    def sign(self) -> int:
        """1, −1, or 0 within `SIGMAS` standard errors."""
        return 0 if abs(self.value) <= SIGMAS * self.se else (1 if self.value > 0 else -1)


class Comparison(Result):
    """p-diff against one control.

    Attributes:
        control: its name.
        accuracy: difference of mean held-out accuracies.
        selected: difference of the held-out accuracies of the networks that the selection set chooses.
        similarity: difference of mean nearest-original similarities; None where one of them cannot be measured.
        similarities: p-diff's and the control's.
        outcome: beats, ties (no difference in either), loses, or trades (better in one, worse in the other).
        sentence: the same in words.
    """

    control: str
    accuracy: Gap
    selected: Gap
    similarity: Gap | None
    similarities: tuple[float, float] | None
    outcome: Outcome
    sentence: str


class Target(Result):
    """A number that was to be reached: `value` ± `se` had to be at least `bound`."""

    name: str
    value: float
    se: float
    bound: float
    met: bool


def compare(generated: Judged, control: Judged) -> Comparison:
    """p-diff's networks `generated` against those of `control`, judged on the same images."""
    wrong = (control.wrong.double().mean(0), generated.wrong.double().mean(0))
    accuracy = Gap(
        value=float((wrong[0] - wrong[1]).mean()),
        se_images=_paired(wrong[0] - wrong[1]),
        se_networks=math.hypot(_over_networks(generated.accuracy), _over_networks(control.accuracy)),
    )
    best = control.wrong[control.chosen].double().mean(0) - generated.wrong[generated.chosen].double().mean(0)
    selected = Gap(value=float(best.mean()), se_images=_paired(best), se_networks=0.0)
    similarity = similarities = None
    if generated.nearest is not None and control.nearest is not None:
        assert generated.leave_out is not None
        assert control.leave_out is not None
        similarities = (float(generated.nearest.mean()), float(control.nearest.mean()))
        similarity = Gap(
            value=similarities[0] - similarities[1],
            se_images=jackknife_error(generated.leave_out - control.leave_out),
            se_networks=math.hypot(_over_networks(generated.nearest), _over_networks(control.nearest)),
        )
    return conclude(control.name, accuracy, selected, similarity, similarities)


def conclude(
    control: str,
    accuracy: Gap,
    selected: Gap,
    similarity: Gap | None,
    similarities: tuple[float, float] | None,
) -> Comparison:
    """The outcome and its sentence from the differences."""
    outcome, words = judgement(control, accuracy.sign, None if similarity is None else -_sign_of(similarity))
    numbers = f"mean accuracy {_points(accuracy)}, train-selected {_points(selected)}"
    if similarities is not None:
        numbers += f", similarity to the nearest original {similarities[0]:.3f} against {similarities[1]:.3f}"
    return Comparison(
        control=control,
        accuracy=accuracy,
        selected=selected,
        similarity=similarity,
        similarities=similarities,
        outcome=outcome,
        sentence=f"{words} ({numbers}).",
    )


def judgement(control: str, accuracy: int, novelty: int | None) -> tuple[Outcome, str]:
    """What follows from p-diff being better (1), alike (0) or worse (−1) in accuracy and in novelty."""
    if novelty is None:
        return "unmeasured", f"p-diff and {control} cannot be compared: one of them has no nearest original"
    if accuracy == novelty == 0:
        return "ties", f"p-diff does not beat {control}: at matched novelty the two cannot be told apart"
    if accuracy * novelty < 0:
        trade = "more accurate but less novel" if accuracy > 0 else "more novel but less accurate"
        return "trades", f"p-diff does not beat {control} at matched novelty: it is {trade}"
    if accuracy + novelty > 0:
        if accuracy == 0:
            return "beats", f"p-diff is newer than {control} at equal accuracy"
        return "beats", f"p-diff beats {control} {'in accuracy and novelty' if novelty else 'at matched novelty'}"
    how = {
        (-1, 0): "at matched novelty it is less accurate",
        (0, -1): "equally accurate, it is closer to the originals",
        (-1, -1): "it is less accurate and closer to the originals",
    }
    return "loses", f"p-diff does not beat {control}: {how[accuracy, novelty]}"


def combine(comparisons: Sequence[Comparison]) -> Comparison:
    """The same comparison over several runs, as one."""
    names = {each.control for each in comparisons}
    if len(names) != 1:
        raise InputError(f"comparisons with one control make one, got {sorted(names) or 'none'}")
    similarities = [each.similarities for each in comparisons if each.similarities is not None]
    gaps = [each.similarity for each in comparisons if each.similarity is not None]
    measured = len(gaps) == len(comparisons)
    return conclude(
        names.pop(),
        combine_gaps([each.accuracy for each in comparisons]),
        combine_gaps([each.selected for each in comparisons]),
        combine_gaps(gaps) if measured else None,
        (_mean([a for a, _ in similarities]), _mean([b for _, b in similarities])) if measured else None,
    )


def combine_gaps(gaps: Sequence[Gap]) -> Gap:
    """Mean difference over R runs.

    The test images are the same in every run, so their share does not shrink with R. The networks' share does; it is
    taken from the spread of the runs where that is larger, since a run's training varies too.
    """
    runs = len(gaps)
    value = _mean([gap.value for gap in gaps])
    drawn = math.sqrt(sum(gap.se_networks**2 for gap in gaps)) / runs
    seen = math.sqrt(sum((gap.value - value) ** 2 for gap in gaps) / (runs - 1) / runs) if runs > 1 else 0.0
    images = math.sqrt(_mean([gap.se_images**2 for gap in gaps]))
    return Gap(value=value, se_images=images, se_networks=max(drawn, seen))


def overall(comparisons: Sequence[Comparison], trivial: Sequence[str]) -> str:
    """One sentence over all controls; those of `trivial` learn nothing but means and spreads."""
    of: dict[Outcome, list[str]] = {"beats": [], "ties": [], "loses": [], "trades": [], "unmeasured": []}
    for each in comparisons:
        of[each.outcome].append(each.control)
    if not comparisons:
        return "There is no control to compare p-diff with."
    if len(of["beats"]) == len(comparisons):
        return f"p-diff beats every control at matched novelty, by more than {SIGMAS:g} standard errors."
    words = {
        "beats": "beats",
        "ties": "cannot be told apart from",
        "loses": "loses to",
        "trades": "trades accuracy against novelty with",
        "unmeasured": "could not be compared with",
    }
    parts = [f"{words[outcome]} {_listed(names)}" for outcome, names in of.items() if names]
    unbeaten = [each.control for each in comparisons if each.control in trivial and each.outcome != "beats"]
    end = ""
    if unbeaten:
        end = f"; as {_listed(unbeaten)} learn{'s' if len(unbeaten) == 1 else ''} nothing but averages and spreads, "
        end += "this is no evidence that p-diff learnt more"
    return f"At matched novelty p-diff does not beat every control: it {'; it '.join(parts)}{end}."


def targets(against_originals: Comparison) -> list[Target]:
    """The two numbers that p-diff is to reach against its originals, with their standard errors."""
    accuracy, selected = against_originals.accuracy, against_originals.selected
    rows = [
        ("mean generated − mean original", accuracy, -ALLOWED_LOSS),
        ("train-selected generated − train-selected original", selected, -selected.se),
    ]
    return [
        Target(name=name, value=gap.value, se=gap.se, bound=bound, met=gap.value >= bound - 1e-12)
        for name, gap, bound in rows
    ]


def _sign_of(similarity: Gap) -> int:
    return 0 if abs(similarity.value) <= SAME_SIMILARITY else similarity.sign


def _points(gap: Gap) -> str:
    return f"{100 * gap.value:+.2f} ± {100 * gap.se:.2f} points"


def _paired(difference: Tensor) -> float:
    return float(difference.std()) / math.sqrt(len(difference))


def _over_networks(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
