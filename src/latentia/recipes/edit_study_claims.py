"""What the Emu Edit article says, and the targets of this world, each beside what `edit-study` found."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Stages = Mapping[str, Any]
HOLDS, NOT, OPEN = "holds", "does not hold", "undecided"
CLOSE = 0.02
"""Success rates that differ by less count as equal."""
ABLE = 0.05
"""Success or gain from which on something was learned that can be compared."""
INVERTED, HALVED = 0.9, 0.5
"""Least share of an expert's score by inversion; greatest growth of the error outside, of that without the rule."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim.

    Attributes:
        claim: what is said.
        article: the article's numbers, or whose target it is.
        here: what was found, in numbers.
        verdict: `holds`, `does not hold`, or `undecided` where seeds differ by more than what is to be shown.
    """

    claim: str
    article: str
    here: str
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def claims(stages: Stages) -> list[Claim]:
    """Every claim that these stages say something about."""
    return [claim for name, tell in BY_STAGE.items() if name in stages for claim in tell(stages[name])]


@dataclass(frozen=True, slots=True)
class Difference:
    """Paired differences over seeds: their mean, its standard error (0 for one seed), and how many there are."""

    mean: float
    error: float
    seeds: int

    @classmethod
    def of(cls, more: Sequence[float], less: Sequence[float]) -> Difference:
        """more − less, seed by seed."""
        each = [a - b for a, b in zip(more, less, strict=True)]
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else 0.0
        return cls(statistics.fmean(each), error, len(each))

    @property
    def above(self) -> str:
        """Whether it lies above 0, by two standard errors; of one seed alone nothing can be said."""
        if self.seeds < 2 or abs(self.mean) <= 2 * self.error or self.mean == 0:
            return OPEN
        return HOLDS if self.mean > 0 else NOT

    def __str__(self) -> str:
        spread = f" ± {self.error:.3f} (standard error, {self.seeds} seeds)" if self.seeds > 1 else " (one seed)"
        return f"{self.mean:+.3f}{spread}"


def values(runs: Sequence[Mapping[str, Any]], over: str, measure: str) -> list[float]:
    """A mean measure of each seed's run; `over`: `all` or `region`."""
    return [run[over][measure] for run in runs]


def plus_minus(numbers: Sequence[float]) -> str:
    """Mean ± standard deviation over seeds."""
    spread = f" ± {statistics.stdev(numbers):.3f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.3f}{spread}"


def of_task_embedding(stage: Mapping[str, Any]) -> Iterator[Claim]:
    """None against true, and predicted against true."""
    for measure in ("success", "gain"):
        found = {name: values(stage[name], "all", measure) for name in ("none", "predicted", "true")}
        listed = ", ".join(f"{name} {plus_minus(each)}" for name, each in found.items())
        gap = Difference.of(found["true"], found["none"])
        yield Claim(
            f"a task embedding makes edits better ({measure})",
            "CLIPdir none .104, predicted .117, true .119 (Table 3)",
            f"{listed}; true − none {gap}",
            gap.above,
        )
    lost = Difference.of(values(stage["true"], "all", "success"), values(stage["predicted"], "all", "success"))
    able = statistics.fmean(values(stage["true"], "all", "success")) >= ABLE
    verdict = OPEN if not able else HOLDS if lost.mean <= CLOSE else NOT
    yield Claim(
        "a predicted task is nearly as good as the true one (success)", "CLIPdir .117 against .119", f"{lost}", verdict
    )


def of_vision(stage: Mapping[str, Any]) -> Iterator[Claim]:
    """Region tasks with the vision tasks in training, and without."""
    for label in ("without", "without, as many edits"):
        for measure in ("success", "gain"):
            gap = Difference.of(values(stage["with"], "region", measure), values(stage[label], "region", measure))
            how = "as long a training" if label == "without" else "as many edits seen"
            here = ", ".join(f"{name} {plus_minus(values(stage[name], 'region', measure))}" for name in ("with", label))
            yield Claim(
                f"vision tasks help region edits, {how} ({measure})",
                "raters prefer the model with detection and segmentation on region tasks, 60 % (Table 4)",
                f"{here}; with − without {gap}",
                gap.above,
            )


def of_experts(stage: Mapping[str, Any]) -> Iterator[Claim]:
    """Wins of the one editor over the many."""
    together, alone = stage["multi-task"], stage["experts"]
    for measure in ("success", "gain"):
        gaps = {task: together[task][measure] - alone[task][measure] for task in alone}
        wins = sum(gap > 0 for gap in gaps.values())
        ties = sum(gap == 0 for gap in gaps.values())
        lost = len(gaps) - wins - ties
        verdict = HOLDS if wins > 2 * lost else NOT if lost > wins else OPEN
        yield Claim(
            f"one multi-task editor beats experts of equal total training ({measure})",
            "multi-task wins the majority vote almost everywhere (Table 7)",
            f"wins {wins}, ties {ties}, loses {lost} of {len(gaps)} tasks; {statistics.fmean(gaps.values()):+.3f} on "
            "the mean",
            verdict,
        )


def of_number_of_tasks(stage: Mapping[str, Any]) -> Iterator[Claim]:
    """First set against last."""
    if not stage["watched"]:
        return
    first, last = stage["sets"][0], stage["sets"][-1]
    for measure in ("success", "gain"):
        curve = ", ".join(f"{each['mean'][measure]:.3f} ({each['removed']} left out)" for each in stage["sets"])
        gap = first["mean"][measure] - last["mean"][measure]
        verdict = HOLDS if gap > CLOSE else NOT if gap < -CLOSE else OPEN
        yield Claim(
            f"more tasks make {' and '.join(stage['watched'])} better, at an equally long training ({measure})",
            "CLIPdir .119, .116, .113, .105, .102 with 0, 1, 3, 4, 7 tasks left out (Fig. 8, read off)",
            f"{curve}; one seed",
            verdict,
        )


def of_inversion(stage: Mapping[str, Any]) -> Iterator[Claim]:
    """The most examples against the expert and fine-tuning; one example against none."""
    for task, rows in stage.items():
        by_mode = {mode: [row for row in rows if row["mode"] == mode] for mode in ("invert", "finetune", "scratch")}
        inverted = by_mode["invert"]
        most, one = inverted[-1], inverted[0]
        gain, expert = most["numbers"]["gain"], by_mode["scratch"][0]["numbers"]["gain"]
        tuned = by_mode["finetune"][0]["numbers"]["gain"]
        share = gain / expert if expert > 0 else 0.0
        reads = {mode: each[-1]["numbers"]["success"] for mode, each in by_mode.items()}
        yield Claim(
            f"{task}: {most['examples']} examples reach {INVERTED:.0%} of an expert's gain",
            "100 examples come close to an expert trained on 100,000, and to full fine-tuning (Fig. 9)",
            f"gain: inverted {gain:.3f}, expert {expert:.3f} ({share:.0%}), fine-tuned {tuned:.3f}; success: "
            f"{reads['invert']:.2f}, {reads['scratch']:.2f}, {reads['finetune']:.2f}; n = {most['n']}",
            OPEN if expert < ABLE else HOLDS if share >= INVERTED else NOT,
        )
        before = one["before"]["gain"]
        yield Claim(
            f"{task}: one example helps already",
            "one example helps a lot",
            f"gain {before:.3f} before, {one['numbers']['gain']:.3f} after one, {gain:.3f} after {most['examples']}",
            HOLDS if one["numbers"]["gain"] > before + CLOSE else OPEN,
        )


def of_thresholding(stage: Mapping[str, Any]) -> Iterator[Claim]:
    """Growth of the error outside."""
    plain = stage["rules"]["without"]
    for name, rule in stage["rules"].items():
        if name == "without":
            continue
        more = rule["inside"][-1] - plain["inside"][-1]
        if plain["outside"][-1] == 0:
            here, verdict = "no error outside without the rule either", OPEN
        else:
            share = rule["outside"][-1] / plain["outside"][-1]
            here = (
                f"{255 * rule['outside'][-1]:.2f} of 255 after {stage['turns']} turns, "
                f"{255 * plain['outside'][-1]:.2f} without: {share:.2f} ×; gain inside {more:+.3f}; "
                f"n = {stage['n']}"
            )
            verdict = HOLDS if share <= HALVED else NOT
        yield Claim(f"thresholding, {name}: error outside grows at most half as fast", "target", here, verdict)


def of_baselines(stage: Mapping[str, Any]) -> Iterator[Claim]:
    """Better than each, on every task: by success, and by the PSNR of the whole picture (gain sees the edit alone)."""
    editors = stage["editors"]
    own = editors["Emu Edit-style"]
    for name in ("copy", "InstructPix2Pix-style", "SDEdit"):
        for measure, unit in (("success", ""), ("psnr", " dB")):
            gaps = {task: own[task][measure] - editors[name][task][measure] for task in own}
            behind = [task for task, gap in gaps.items() if gap <= 0]
            lost = f"; not ahead on {', '.join(behind)}" if behind else ""
            yield Claim(
                f"better than {name} on every task ({measure})",
                "CLIPdir .109 against InstructPix2Pix's .078 (Table 2)" if name.startswith("Instruct") else "target",
                f"{statistics.fmean(gaps.values()):+.3f}{unit} on the mean, ahead on {len(gaps) - len(behind)} of "
                f"{len(gaps)} tasks{lost}; n = {stage['n']}",
                NOT if behind else HOLDS,
            )


def of_guidance(stage: Mapping[str, Any]) -> Iterator[Claim]:
    """The best pair of scales against none."""
    rows = stage["rows"]
    plain = next((row for row in rows if row["text"] == row["image"] == 1), None)
    if plain is None:
        return
    best = max(rows, key=lambda row: row["gain"])
    more = best["gain"] - plain["gain"]
    yield Claim(
        "guidance makes region edits better (gain)",
        "text 5, image 1.5",
        f"best at text {best['text']:g}, image {best['image']:g}: {best['gain']:.3f}, without guidance "
        f"{plain['gain']:.3f}; n = {stage['n']}",
        HOLDS if more > CLOSE else NOT if best is plain else OPEN,
    )


BY_STAGE = {
    "task-embedding": of_task_embedding,
    "vision": of_vision,
    "experts": of_experts,
    "number-of-tasks": of_number_of_tasks,
    "inversion": of_inversion,
    "thresholding": of_thresholding,
    "baselines": of_baselines,
    "guidance": of_guidance,
}
