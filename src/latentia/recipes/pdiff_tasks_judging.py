"""The second half of `pdiff-tasks`: generated networks and all controls on held-out tasks, over several runs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.files import write_text_atomic
from latentia.core.rng import derive_seed
from latentia.methods.pdiff import task_controls as controls
from latentia.methods.pdiff.digit_tasks import shared_trunk, task_accuracies, task_labels
from latentia.methods.pdiff.objectives import explained_variance
from latentia.methods.pdiff.scoring import Scorer
from latentia.recipes.recipe import Bench
from latentia.recipes.training_section import trained

if TYPE_CHECKING:
    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.methods.pdiff.layout import StateDict
    from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline
    from latentia.recipes.pdiff_tasks import TaskDiffusion
    from latentia.training.phase import PhaseResult

WHOLE, ORACLE, CHANCE = "p-diff, whole network", "trained on the task", "chance: the larger class"
GRAFTED = "p-diff's heads on the mean trunk"
HEADS, HEAD_REGRESSION = "p-diff, heads alone on a shared trunk", "linear regression of heads, shared trunk"
HEAD_ORACLE = "head trained on the task, shared trunk"
LINEAR, KERNEL, LATENT = "linear regression of weights", "kernel regression of weights", "ridge regression of latents"
NEAREST, MEAN = "network of the nearest training task", "mean network"
HEAD_CONTROLS, REGRESSIONS = (GRAFTED, HEADS, HEAD_REGRESSION), (LINEAR, KERNEL, LATENT)
CONTROLS = (*HEAD_CONTROLS, *REGRESSIONS, NEAREST, MEAN)
ORDER = (ORACLE, WHOLE, *CONTROLS, HEAD_ORACLE, CHANCE)
SIGNIFICANT = 2.0
"""Standard errors from which on a difference counts."""


@dataclass(frozen=True)
class TaskRun:
    """One run: for each row of the table the mean accuracy on each held-out task, (H,); opposites stand H/2 apart.

    `training` is the mean accuracy of the training tasks' networks on their own tasks; `explained` the share of the
    variance between them that the codec rebuilds. `variety` is how far networks of one task lie apart, of generated
    ones over trained ones (root mean square; NaN where there is one a task).
    """

    rows: Mapping[str, torch.Tensor]
    codes: torch.Tensor
    training: float
    explained: float
    variety: float = math.nan


@dataclass(frozen=True)
class Difference:
    """p-diff minus a control: points of accuracy as shares of 1, mean over tasks and runs, and its standard error."""

    control: str
    value: float
    se: float

    @property
    def verdict(self) -> str:
        """`beats`, `loses to` or `is level with`."""
        if abs(self.value) <= SIGNIFICANT * self.se:
            return "is level with"
        return "beats" if self.value > 0 else "loses to"

    @property
    def sentence(self) -> str:
        """The comparison in words."""
        return f"The generator {self.verdict} {self.control} ({100 * self.value:+.2f} ± {100 * self.se:.2f} points)."


@dataclass(frozen=True)
class TaskSetting:
    """One width of the networks, over all runs."""

    hidden: int
    size: int
    runs: tuple[TaskRun, ...]

    def mean(self, name: str) -> float:
        """Mean accuracy of a row over held-out tasks and runs."""
        return statistics.fmean(float(run.rows[name].mean()) for run in self.runs)

    def spread(self, name: str) -> float:
        """Standard deviation of a row's mean from run to run; 0 for one run."""
        means = [float(run.rows[name].mean()) for run in self.runs]
        return statistics.stdev(means) if len(means) > 1 else 0.0

    def against(self, control: str) -> Difference:
        """p-diff against a control, task by task.

        A task and its opposite count once. The standard error is the larger of that over tasks and that over runs.
        """
        by_run = []
        for run in self.runs:
            both = run.rows[WHOLE] - run.rows[control]
            by_run.append(both.view(2, -1).mean(0))
        units = torch.cat(by_run).double()
        se = float(units.std() / len(units) ** 0.5) if len(units) > 1 else float("inf")
        if len(by_run) > 1:
            means = [float(each.mean()) for each in by_run]
            se = max(se, statistics.stdev(means) / len(means) ** 0.5)
        return Difference(control, float(units.mean()), se)

    @property
    def sentence(self) -> str:
        """Whether generating the whole network is worth it, from the numbers alone."""
        heads, regression = (
            min((self.against(name) for name in names), key=lambda d: d.value) for names in (HEAD_CONTROLS, REGRESSIONS)
        )
        worth = heads.verdict == "beats" and regression.verdict == "beats"
        if worth:
            end = "so here the generator has learnt more than heads, and more than regression tells."
        elif heads.verdict == "beats":
            end = "so whole networks are worth having here, but a diffusion model is not what it takes to get them."
        else:
            end = "so nothing here shows that more than a head needs to be generated."
        return (
            f"With {self.hidden} hidden units, on tasks that were held out, generated whole networks are right on "
            f"{self.mean(WHOLE):.1%} of the test images, networks trained on the tasks on {self.mean(ORACLE):.1%}. "
            f"Generating the whole network {heads.verdict} the best generation of the head alone "
            f"({heads.control}: {100 * heads.value:+.2f} ± {100 * heads.se:.2f} points) and {regression.verdict} the "
            f"best regression ({regression.control}: {100 * regression.value:+.2f} ± {100 * regression.se:.2f}), {end}"
        )


def tell(recipe: TaskDiffusion, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> list[TaskSetting]:
    """Judge all runs of both settings; writes report.html and report.json into `out`."""
    from latentia.recipes.pdiff_tasks_report import write_report

    settings = [judge_setting(recipe, (bench.parts["checkpoints"], bench.parts["codes"], recipe.pipeline(bench)))]
    if recipe.wide is not None:
        tasks = recipe.tasks.model_copy(update={"hidden": recipe.wide})
        settings.append(judge_setting(recipe.model_copy(update={"tasks": tasks})))
    phases = trained(results)
    record = {"recipe": recipe.model_dump(mode="json"), "training": phases, "settings": list(map(as_json, settings))}
    write_text_atomic(out / "report.json", json.dumps(record, indent=2) + "\n")
    write_report(recipe, settings, phases, out)
    return settings


def judge_setting(
    recipe: TaskDiffusion, first: tuple[Checkpoints, torch.Tensor, ParameterDiffusionPipeline] | None = None
) -> TaskSetting:
    """All runs of one width; run i is the whole recipe under seed + i, and `first` is run 0 where it is done."""
    runs = []
    size = 0
    for i in range(recipe.runs):
        mine = recipe.model_copy(update={"seed": recipe.seed + i})
        if first is None or i:
            found, codes = mine.originals(Bench())
            pipe = mine.imitate(found, codes)
        else:
            found, codes, pipe = first
        size = found.layout.size
        runs.append(judged(mine, found, codes, pipe))
    return TaskSetting(recipe.tasks.hidden, size, tuple(runs))


def judged(recipe: TaskDiffusion, found: Checkpoints, codes: torch.Tensor, pipe: ParameterDiffusionPipeline) -> TaskRun:
    """One run: every row of the table on the held-out tasks."""
    held = recipe.tasks.codes(recipe.seed)[1]
    scorer = scorer_of(recipe, found)
    v, rows = found.vectors, {}

    def score(vectors: torch.Tensor) -> torch.Tensor:
        """Networks (n · H, D), all tasks and all again → mean accuracy on each task (H,)."""
        every = task_accuracies(scorer, vectors, held.repeat(len(vectors) // len(held), 1))
        return every.view(-1, len(held)).mean(0)

    made = recipe.generate(pipe, held)
    mean = v.mean(0, keepdim=True)
    oracle = recipe.learn(recipe.rows(held), derive_seed("oracle", recipe.seed)).vectors
    rows[ORACLE] = score(oracle)
    rows[WHOLE] = score(made)
    rows[GRAFTED] = score(torch.where(is_head(found), made, mean))
    rows |= {name: score(vectors) for name, vectors in regressed(recipe, pipe, found, codes, held).items()}
    rows[NEAREST] = score(v[controls.nearest_task(codes, held, recipe.seed)])
    rows[MEAN] = score(mean.expand(len(held), -1))
    rows |= {name: score(vectors) for name, vectors in head_only(recipe, found, held).items()}
    labels = task_labels(held, scorer.y)
    asked = (labels >= 0).sum(1)
    ones = (labels == 1).sum(1) / asked
    rows[CHANCE] = torch.maximum(ones, 1 - ones).double()
    rebuilt = pipe.decode(pipe.encode(v)).cpu()
    own = float(task_accuracies(scorer, v, codes).mean())
    variety = within_tasks(made, len(held)) / within_tasks(oracle, len(held))
    return TaskRun({name: rows[name] for name in ORDER}, held, own, explained_variance(v, rebuilt), variety)


def within_tasks(vectors: torch.Tensor, tasks: int) -> float:
    """Root mean square distance of networks (n · H, D) from the mean of their task; NaN for n = 1."""
    by_task = vectors.view(-1, tasks, vectors.shape[1]).double()
    return float(by_task.var(0).mean().sqrt()) if len(by_task) > 1 else math.nan


def regressed(
    recipe: TaskDiffusion,
    pipe: ParameterDiffusionPipeline,
    found: Checkpoints,
    codes: torch.Tensor,
    held: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Weights as functions of the code; ridges and widths are chosen by cross-validation over training tasks.

    The kernel regression takes each task's mean network, where the equations are fewer.
    """
    v = found.vectors
    z = pipe.encode(v).cpu()
    smooth = [{"width": width, "ridge": ridge} for width in controls.WIDTHS for ridge in controls.RIDGES[1:4]]
    flat = z.flatten(1)
    ridge = controls.cross_validated(
        controls.linear_regression, [{"ridge": r} for r in controls.RIDGES], codes, flat, recipe.seed
    )
    once, means = codes[: len(codes) // recipe.tasks.per_task], v.view(recipe.tasks.per_task, -1, v.shape[1]).mean(0)
    kernel = controls.cross_validated(controls.kernel_regression, smooth, once, means, recipe.seed)
    latents = controls.linear_regression(codes, flat, held, **ridge).view(-1, *z.shape[1:])
    return {
        LINEAR: controls.linear_regression(codes, v, held),
        KERNEL: controls.kernel_regression(once, means, held, **kernel),
        LATENT: pipe.decode(latents).cpu(),
    }


def head_only(recipe: TaskDiffusion, found: Checkpoints, held: torch.Tensor) -> dict[str, torch.Tensor]:
    """Heads alone, on one trunk that was trained under all training tasks' heads together: whole vectors (n · H, D)."""
    trained = recipe.tasks.codes(recipe.seed)[0]
    fit, data = recipe.tasks.fit.build(), recipe.task.build().fit
    base = shared_trunk(recipe.tasks.build()(), recipe.start(), trained, data, fit, recipe.seed)
    codes = recipe.rows(trained)
    heads = recipe.learn(codes, derive_seed("heads", recipe.seed), base, ("head",))
    oracle = recipe.learn(recipe.rows(held), derive_seed("head oracle", recipe.seed), base, ("head",))
    mine = recipe.heads()
    made = mine.generate(mine.imitate(heads, codes), held)
    regression = controls.linear_regression(codes, heads.vectors, held)
    grow: Callable[[torch.Tensor], torch.Tensor] = lambda vectors: grown(found, base, vectors)  # noqa: E731
    return {HEADS: grow(made), HEAD_REGRESSION: grow(regression), HEAD_ORACLE: grow(oracle.vectors)}


def grown(found: Checkpoints, base: StateDict, heads: torch.Tensor) -> torch.Tensor:
    """Heads (N, d) on the trunk of `base`: whole vectors (N, D)."""
    whole = found.layout.flatten(base).expand(len(heads), -1).clone()
    whole[:, is_head(found)] = heads
    return whole


def is_head(found: Checkpoints) -> torch.Tensor:
    """Which parameters belong to the head, (D,) bool."""
    mask = torch.zeros(found.layout.size, dtype=torch.bool)
    for name, where in zip(found.layout.names, found.layout.slices):
        mask[where] = name.startswith("head.")
    return mask


def scorer_of(recipe: TaskDiffusion, found: Checkpoints) -> Scorer:
    """What reports: the test images."""
    return Scorer(recipe.tasks.build()(), found.layout, found.base, *recipe.task.build().test)


def comparisons(setting: TaskSetting) -> Sequence[Difference]:
    """p-diff against every control."""
    return [setting.against(name) for name in CONTROLS]


def as_json(setting: TaskSetting) -> dict[str, Any]:
    """One setting for report.json."""
    return {
        "hidden": setting.hidden,
        "parameters": setting.size,
        "sentence": setting.sentence,
        "rows": {
            name: {
                "mean": setting.mean(name),
                "spread": setting.spread(name),
                "tasks": [run.rows[name].tolist() for run in setting.runs],
            }
            for name in ORDER
        },
        "comparisons": [
            {"control": each.control, "value": each.value, "se": each.se, "verdict": each.verdict}
            for each in comparisons(setting)
        ],
        "training_accuracy": [run.training for run in setting.runs],
        "explained_variance": [run.explained for run in setting.runs],
        "variety": [run.variety if math.isfinite(run.variety) else None for run in setting.runs],
        "held_out": [run.codes.int().tolist() for run in setting.runs],
    }
