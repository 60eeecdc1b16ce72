"""The page of `pdiff-tasks`: the verdict first, then the table, and held-out tasks one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from latentia.recipes.pdiff_judging import listed
from latentia.recipes.pdiff_tasks_judging import (
    HEADS,
    KERNEL,
    LINEAR,
    ORDER,
    WHOLE,
    TaskSetting,
    comparisons,
)
from latentia.recipes.study import Figure, StudyPage
from latentia.recipes.svg import Axis, Plot
from latentia.recipes.training_section import tell_training

if TYPE_CHECKING:
    from latentia.recipes.pdiff_tasks import TaskDiffusion

SHOWN = (HEADS, LINEAR, KERNEL)


def write_report(
    recipe: TaskDiffusion, settings: Sequence[TaskSetting], phases: Mapping[str, Mapping[str, float]], out: Path
) -> None:
    """Write report.html into `out`."""
    page = StudyPage("Networks for tasks that nobody trained", settings[0].sentence)
    trained, held = (len(codes) for codes in recipe.tasks.codes(recipe.seed))
    page.section(
        "What was done",
        f"A task is a code of ten numbers: {what(recipe)}. For each of {trained} tasks {recipe.tasks.per_task} small "
        f"networks learn {recipe.task.train} noisy digits, all from one initialisation. An autoencoder compresses "
        "their weights, and a diffusion model learns the latents, told the code. "
        f"{held} tasks were held out, opposites together, whose networks are the same but for swapped outputs; for "
        f"these {recipe.drawn.samples} networks each are generated from the code alone and judged on test images. "
        f"All of it was done {recipe.runs} times under other seeds, with other tasks held out. "
        "The recipe's own settings were found on the held-out tasks of a seed that is none of these.",
        "A head is linear in what it separates, so a generator may look able to solve new tasks while it only "
        "combines heads on a trunk that serves all of them. Two widths tell the cases apart: a wide trunk serves all "
        "tasks at once, a narrow one has to be made for its task.",
    )
    for setting in settings:
        tell_setting(page, setting)
    tell_training(page, out, {"autoencoder": ("mse",), "unet": ("loss",)}, phases)
    page.write(out / "report.html")


def what(recipe: TaskDiffusion) -> str:
    """What a code asks."""
    if recipe.tasks.kind == "pair":
        return "which of two digits is it, one +1 and one −1, of images of these two alone"
    return "is the digit one of a subset, +1 for its digits, −1 for the others"


def tell_setting(page: StudyPage, setting: TaskSetting) -> None:
    """One width: verdict, table, figures, comparisons."""
    page.section(f"{setting.hidden} hidden units: {setting.size:,} parameters", setting.sentence)
    page.table(
        ["accuracy on held-out tasks", "mean", "± over runs", "worst task"],
        [table_row(setting, name) for name in ORDER],
        best=[ORDER.index(WHOLE)],
        rules=[ORDER.index(WHOLE), ORDER.index(WHOLE) + 1, len(ORDER) - 2],
    )
    page.figure(
        Figure(
            (
                (bars(setting), "mean over held-out tasks and runs; chance is the larger class of each task"),
                (by_task(setting), "every held-out task of every run; above the dashed line p-diff is better"),
            ),
            "Each network is judged on the test images of the digits that its task asks about.",
        )
    )
    page.section(
        "Against each control",
        "Differences of p-diff to the control, task by task; a task and its opposite count once. They count when they "
        "exceed two standard errors, over tasks or over runs, whichever is larger.",
        *(each.sentence for each in comparisons(setting)),
        f"The codec rebuilds {listed([run.explained for run in setting.runs], '.1%')} of the variance between the "
        f"training tasks' networks, which are right on {listed([run.training for run in setting.runs], '.1%')} of the "
        "test images of their own tasks. Generated networks of one task lie "
        f"{listed([run.variety for run in setting.runs], '.2f')} times as far apart as trained ones, which saw their "
        "images in different orders.",
    )


def table_row(setting: TaskSetting, name: str) -> list[str]:
    """One row of the table, in per cent."""
    worst = min(float(run.rows[name].min()) for run in setting.runs)
    return [name, *(f"{100 * value:.2f}" for value in (setting.mean(name), setting.spread(name), worst))]


def bars(setting: TaskSetting) -> str:
    """Mean accuracies, numbered as in the table."""
    values = [100 * setting.mean(name) for name in ORDER]
    plot = Plot(
        Axis.names([str(i + 1) for i in range(len(ORDER))]),
        Axis.of([*values, 40.0]),
        "row of the table",
        "accuracy, %",
        width=560,
    )
    plot.bars("", [v if name != WHOLE else None for name, v in zip(ORDER, values)], 0, 1, ink=7)
    plot.bars("p-diff, whole network", [v if name == WHOLE else None for name, v in zip(ORDER, values)], 0, 1, ink=0)
    return plot.svg()


def by_task(setting: TaskSetting) -> str:
    """p-diff against three controls on each held-out task."""
    ours = 100 * torch.cat([run.rows[WHOLE] for run in setting.runs])
    others = {name: 100 * torch.cat([run.rows[name] for run in setting.runs]) for name in SHOWN}
    ends = [float(f(torch.stack([ours, *others.values()]))) for f in (torch.min, torch.max)]
    plot = Plot(Axis.of(ends), Axis.of(ends), "control, %", "p-diff, %", width=420, height=320)
    plot.line("", [(ends[0], ends[0]), (ends[1], ends[1])], ink=7, dashed=True, dots=False)
    for ink, (name, values) in enumerate(others.items(), start=1):
        plot.scatter(name, list(zip(values.tolist(), ours.tolist())), ink)
    return plot.svg()
