"""The page of `edit-study`: each claim of the article beside our number, then every stage in full."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from latentia.recipes.edit_study_claims import HOLDS, Claim, claims, plus_minus, values
from latentia.recipes.edit_study_stages import PICTURES
from latentia.recipes.study import FOLDER, Figure, StudyPage
from latentia.recipes.svg import Axis, Plot

if TYPE_CHECKING:
    from latentia.recipes.edit_study import EditStudy

MEASURES = ("success", "gain", "psnr_outside", "mask_iou", "box_iou")
Stage = Mapping[str, Any]


def write_study(recipe: EditStudy, stages: Mapping[str, Any], out: Path) -> list[dict[str, Any]]:
    """Write report.html into `out` from the stages that there are; returns the claims as plain values."""
    found = claims(stages)
    held = sum(each.verdict == HOLDS for each in found)
    page = ClaimsPage(
        "Emu Edit, experiment by experiment",
        f"Every ablation of the article in a world where every answer is known (size={recipe.size}, seed {recipe.seed})"
        f". {held} of {len(found)} claims hold here. The article's data, networks and measures are others: directions "
        "can be compared, heights cannot.",
    )
    page.section(
        "What is claimed, and what is found here",
        "Differences between trainings are judged over seeds: a claim holds when the mean difference is above two of "
        "its standard errors. Success: the edit reads as ordered, removes three quarters of the error, and keeps the "
        "rest. Gain: share of the copied input's squared error that is gone.",
    )
    page.claims(found)
    for name, stage in stages.items():
        PAGES[name](page, stage, out)
    page.write(out / "report.html")
    return [each.to_dict() for each in found]


class ClaimsPage(StudyPage):
    """A study's page with a table of sentences, whose lines break."""

    def claims(self, found: Sequence[Claim]) -> None:
        """Each claim: the article's numbers, ours, the verdict."""
        style = ' style="white-space: normal; text-align: left; vertical-align: top"'
        lines = []
        for each in found:
            mark = "best" if each.verdict == HOLDS else ""
            told = (each.claim, each.article, each.here, each.verdict)
            lines.append(f'<tr class="{mark}">{"".join(f"<td{style}>{html.escape(text)}</td>" for text in told)}</tr>')
        head = "".join(f"<th{style}>{name}</th>" for name in ("claim", "the article", "here", "verdict"))
        self._parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>")


def cells(numbers: Mapping[str, float], names: Sequence[str] = MEASURES) -> list[str]:
    """Measures of one line."""
    return [f"{numbers[name]:.3f}" if name in numbers else "" for name in names]


def picture(out: Path, name: str) -> list[tuple[Image.Image, str]]:
    """A kept picture, where there is one."""
    file = out / FOLDER / PICTURES / f"{name}.png"
    if not file.is_file():
        return []
    with Image.open(file) as opened:
        return [(opened.convert("RGB"), CAPTIONS[name])]


def main(page: StudyPage, stage: Stage, out: Path) -> None:
    """Every task."""
    right = "" if stage["told right"] is None else f" The task is predicted right in {stage['told right']:.1%}."
    page.section(
        "The editor",
        f"{stage['parameters']:,} weights, {stage['n']} held-out rows (phrasings, pairs and backgrounds that training "
        f"never showed), tasks predicted.{right}",
    )
    found = stage["predicted"]
    rows = [[task, *cells(numbers)] for task, numbers in found["tasks"].items()]
    rows += [["region tasks", *cells(found["region"])], ["all tasks", *cells(found["all"])]]
    page.table(["task", *MEASURES], rows, rules=[len(rows) - 2])
    page.pictures(picture(out, "main"))


def task_embedding(page: StudyPage, stage: Stage, _: Path) -> None:
    """Three ways, task by task."""
    seeds = len(stage["true"])
    page.section("Task embedding", f"Success over {seeds} seeds, mean ± standard deviation; gain beside it.")
    page.table(
        ["", "success", "gain", "region success", "region gain"], [over_seeds(n, runs) for n, runs in stage.items()]
    )
    by_task(page, stage)


def vision(page: StudyPage, stage: Stage, _: Path) -> None:
    """With and without."""
    page.section(
        "Vision tasks left out",
        "Judged on region tasks. Without the vision tasks an equally long training sees more edits, so both are shown: "
        "equally long, and with as many edits.",
    )
    page.table(
        ["", "success", "gain", "region success", "region gain"], [over_seeds(n, runs) for n, runs in stage.items()]
    )
    by_task(page, stage)


def over_seeds(name: str, runs: Sequence[Stage]) -> list[str]:
    """One line of means over seeds."""
    return [name, *(plus_minus(values(runs, over, m)) for over in ("all", "region") for m in ("success", "gain"))]


def by_task(page: StudyPage, stage: Stage) -> None:
    """Gain of each task, mean over seeds."""
    names = list(stage)
    tasks = list(stage[names[0]][0]["tasks"])
    rows = [
        [task, *(plus_minus([run["tasks"][task]["gain"] for run in stage[name]]) for name in names)] for task in tasks
    ]
    page.table(["gain", *names], rows)


def experts(page: StudyPage, stage: Stage, _: Path) -> None:
    """One against many."""
    page.section(
        "One editor, or one a task",
        f"Each expert is trained for {stage['share']:.3g} of the one editor's steps, all together as long. One seed.",
    )
    rows = [
        [task, *cells(stage["multi-task"][task], ("success", "gain")), *cells(numbers, ("success", "gain"))]
        for task, numbers in stage["experts"].items()
    ]
    page.table(["task", "success", "gain", "expert's success", "expert's gain"], rows)


def number_of_tasks(page: StudyPage, stage: Stage, _: Path) -> None:
    """Fewer and fewer."""
    page.section("Number of tasks", "Equally long trainings, one seed; the tasks that are watched are always in.")
    rows = [
        [", ".join(each["left out"]) or "none", *cells(each["mean"], ("success", "gain"))]
        + [f"{each['tasks'][task]['gain']:.3f}" for task in stage["watched"]]
        for each in stage["sets"]
    ]
    page.table(["left out", "success", "gain", *(f"{task}, gain" for task in stage["watched"])], rows)


def inversion(page: StudyPage, stage: Stage, _: Path) -> None:
    """A curve a task."""
    page.section(
        "Task inversion",
        "One vector learned, all else frozen; dashed: an expert from scratch, and full fine-tuning on the most "
        "examples. The curve starts, at one half, with what the inversion started from.",
    )
    page.figure(Figure(tuple((curve(rows), task) for task, rows in stage.items()), ""))
    names = ("success", *MEASURES[1:2], "psnr", "line_iou", "box_iou")
    rows = [
        [task, row["mode"], f"{row['examples']:,}", f"{row['steps']}", f"{row['seconds']:.0f}"]
        + [str(row["start"] or ""), *cells(row["numbers"], names)]
        for task, each in stage.items()
        for row in each
    ]
    page.table(["task", "learned", "examples", "steps", "seconds", "start", *names], rows)


def curve(rows: Sequence[Stage]) -> str:
    """Gain against the number of examples."""
    inverted = [row for row in rows if row["mode"] == "invert"]
    points = [(float(row["examples"]), row["numbers"]["gain"]) for row in inverted]
    before = inverted[0]["before"]["gain"]
    others = {row["mode"]: row["numbers"]["gain"] for row in rows if row["mode"] != "invert"}
    axis = Axis.at([0.5, *(x for x, _ in points)], log=True)
    plot = Plot(axis, Axis.of([0.0, before, *(y for _, y in points), *others.values()]), "examples", "gain")
    plot.line("inverted", [(0.5, before), *points], 0)
    for ink, (name, value) in enumerate(others.items(), start=1):
        plot.level({"scratch": "expert from scratch", "finetune": "fine-tuned"}[name], value, ink)
    return plot.svg()


def thresholding(page: StudyPage, stage: Stage, out: Path) -> None:
    """Turn by turn."""
    page.section(
        "Ten turns",
        f"{stage['n']} pictures, things recoloured in turn. Left: mean difference from the first picture where no turn "
        "was to edit, in levels of 255. Right: gain where they were. α was calibrated on other pictures: 99 % of what "
        "a turn changes without being asked stays below it.",
    )
    page.figure(Figure((turn_plot(stage, "outside", 255.0), turn_plot(stage, "inside", 1.0)), ""))
    page.pictures(picture(out, "thresholding"))


def turn_plot(stage: Stage, what: str, scale: float) -> tuple[str, str]:
    """One measure against the turn, a line a rule."""
    lines = {name: [scale * value for value in rule[what]] for name, rule in stage["rules"].items()}
    top = Axis.of([0.0, *(value for line in lines.values() for value in line)])
    plot = Plot(Axis.of([1.0, float(stage["turns"])]), top, "turn", what)
    for ink, (name, line) in enumerate(lines.items()):
        plot.line(name, [(float(i), value) for i, value in enumerate(line, start=1)], ink)
    return plot.svg(), {"outside": "error outside, of 255", "inside": "gain inside"}[what]


def baselines(page: StudyPage, stage: Stage, _: Path) -> None:
    """Task by task."""
    names = list(stage["editors"])
    page.section(
        "Baselines",
        "InstructPix2Pix-style: no task embedding, editing tasks only, as long a training. SDEdit: the same editor "
        "without the picture, which it only gets noised; for each task at the strength of greatest gain. Gain sees "
        "the edit alone, PSNR (dB, against the target) the whole picture.",
    )
    tasks = list(stage["editors"][names[0]])
    for measure in ("success", "gain", "psnr"):
        rows = [[task, *(f"{stage['editors'][name][task][measure]:.3f}" for name in names)] for task in tasks]
        page.table([measure, *names], rows)


def guidance(page: StudyPage, stage: Stage, _: Path) -> None:
    """Both scales."""
    page.section(
        "Guidance",
        f"Region tasks, {stage['n']} rows that settings are chosen on. The article guides by 5 (text) and 1.5 (image).",
    )
    names = ("success", "gain", "psnr_outside")
    best = max(range(len(stage["rows"])), key=lambda i: stage["rows"][i]["gain"])
    rows = [[f"{row['text']:g}", f"{row['image']:g}", *cells(row, names)] for row in stage["rows"]]
    page.table(["text", "image", *names], rows, best=[best])


CAPTIONS = {
    "main": "input, edit, target of two held-out rows of each task",
    "thresholding": "the first picture and turns 1, 3, 5, 7, 10: without the rule, with α = 0.03, with the calibrated "
    "α, and what was asked for",
}
PAGES: Mapping[str, Callable[[StudyPage, Any, Path], None]] = {
    "main": main,
    "task-embedding": task_embedding,
    "vision": vision,
    "experts": experts,
    "number-of-tasks": number_of_tasks,
    "inversion": inversion,
    "thresholding": thresholding,
    "baselines": baselines,
    "guidance": guidance,
}
