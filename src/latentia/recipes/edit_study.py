"""`edit-study`: every ablation of the Emu Edit article on the generated world, kept stage by stage, on one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, model_validator

from latentia.core.files import write_text_atomic
from latentia.errors import InputError
from latentia.recipes.pdiff_parts import Words, split_words
from latentia.recipes.recipe import Bench, Recipe
from latentia.recipes.study import carry_out, check_stages

if TYPE_CHECKING:
    from latentia.recipes.plan import Work
    from latentia.training.phase import Phase, PhaseResult

STAGES = (
    "main",
    "task-embedding",
    "vision",
    "experts",
    "number-of-tasks",
    "inversion",
    "thresholding",
    "baselines",
    "guidance",
)
"""main: an editor, judged; task-embedding: none, predicted, true; vision: without the vision tasks; experts: one editor
a task; number-of-tasks: fewer and fewer; inversion: unseen tasks from 1 to 100 examples; thresholding: ten turns;
baselines: copying, the oracle, InstructPix2Pix-style, SDEdit; guidance: both scales."""

SPREAD = (1, 5, 20, 100)
UNSEEN = ("super-resolution", "contour", "inpaint", "add-detect")
EDITING = ("region", "free-form")


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        steps: optimizer steps of each editor that is trained to be compared.
        main_steps: of the editor of `main`, where no `base` is given.
        settings: further settings of `edit-scenes` for all of them.
        tasks: what they learn; empty: all sixteen.
        fewer: sets of tasks that are left out one after the other in `number-of-tasks`.
        judged: held-out rows of each task.
        sampling_steps: of the sampler: one, as in `edit-scenes`; SDEdit takes ten.
        counts: examples of an inversion.
        inversion_steps: of each inversion.
        expert_steps, expert_examples: of an expert trained from scratch for one unseen task.
        tune_steps: of fine-tuning on the largest number of examples.
        pictures: in the ten turns.
        text_scales, image_scales: of the guidance.
        strengths: of SDEdit.
    """

    steps: int
    main_steps: int
    settings: tuple[str, ...]
    tasks: tuple[str, ...]
    fewer: tuple[tuple[str, ...], ...]
    judged: int
    sampling_steps: int
    counts: tuple[int, ...]
    inversion_steps: int
    expert_steps: int
    expert_examples: int
    tune_steps: int
    pictures: int
    text_scales: tuple[float, ...] = (1.0, 2.0, 5.0)
    image_scales: tuple[float, ...] = (1.0, 1.5)
    strengths: tuple[float, ...] = (0.4, 0.6, 0.8)


VISION = ("detect", "segment", "color")
SIZES: dict[str, Size] = {
    "quick": Size(
        steps=600,
        main_steps=900,
        settings=(
            *("image_size=32", "text.steps=500", "text.examples=3000"),
            *("predictor.steps=200", "predictor.examples=2000"),
        ),
        tasks=("local", "texture", "remove", "background", "style", "segment"),
        fewer=(("remove", "background"), ("local", "segment")),
        judged=48,
        sampling_steps=1,
        counts=SPREAD,
        inversion_steps=100,
        expert_steps=300,
        expert_examples=20_000,
        tune_steps=100,
        pictures=12,
        text_scales=(1.0, 2.0, 5.0),
        image_scales=(1.0, 1.5),
    ),
    "full": Size(
        steps=3000,
        main_steps=0,
        settings=(),
        tasks=(),
        fewer=(("background",), ("add", "remove"), ("local",), VISION),
        judged=100,
        sampling_steps=1,
        counts=SPREAD,
        inversion_steps=600,
        expert_steps=3000,
        expert_examples=100_000,
        tune_steps=600,
        pictures=48,
        text_scales=(1.0, 1.5, 2.0, 3.0, 5.0),
        image_scales=(1.0, 1.2, 1.5, 2.0),
        strengths=(0.2, 0.4, 0.6, 0.8, 0.95),
    ),
}
"""`main_steps` 0: as many as `edit-scenes` publishes."""


class EditStudy(Recipe):
    """Trains nothing itself: every editor is a run of `edit-scenes`, every inversion one of `edit-inversion`."""

    runtime: ClassVar[frozenset[str]] = Recipe.runtime | {"stages"}
    next_command: ClassVar[str] = "open {pipeline}/report.html"

    steps: PositiveInt = Field(default=1, description="not used: `size` and the fields below give each stage its steps")
    batch_size: PositiveInt = Field(default=1, description="not used: each run has its own")
    size: str = Field(default="full", description=f"how much of everything: {' or '.join(SIZES)}")
    stages: Words = Field(default=STAGES, description=f"what to do, of {', '.join(STAGES)}; the rest is left out")
    base: str | None = Field(
        default=None, description="folder of a run of edit-scenes to use in `main`; none: train it"
    )
    seeds: Annotated[int, Field(ge=1, le=20)] = Field(
        default=3, description="editors of each kind in task-embedding and vision"
    )
    main_steps: NonNegativeInt = Field(
        default=0, description="steps of the editor of `main`, without a base; 0: by size"
    )
    run_steps: NonNegativeInt = Field(default=0, description="steps of each compared editor; 0: by size")
    inversion_steps: NonNegativeInt = Field(default=0, description="steps of each inversion; 0: by size")
    expert_steps: NonNegativeInt = Field(default=0, description="steps of an expert for an unseen task; 0: by size")
    tune_steps: NonNegativeInt = Field(default=0, description="steps of fine-tuning on it; 0: by size")
    judged: NonNegativeInt = Field(default=0, description="held-out rows of each task; 0: by size")
    run_settings: Annotated[tuple[str, ...], BeforeValidator(split_words)] = Field(
        default=(), description="further settings of edit-scenes for the editors trained here, such as image_size=32"
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.size not in SIZES:
            raise ValueError(f"there is no size {self.size!r}: choose from {', '.join(SIZES)}")
        check_stages(self.stages, STAGES)
        return self

    def sized(self) -> Size:
        """The size, with the numbers that were given instead."""
        from dataclasses import replace

        given: dict[str, Any] = {
            "main_steps": self.main_steps,
            "steps": self.run_steps,
            "inversion_steps": self.inversion_steps,
            "expert_steps": self.expert_steps,
            "tune_steps": self.tune_steps,
            "judged": self.judged,
        }
        size = SIZES[self.size]
        given["settings"] = (*size.settings, *self.run_settings)
        return replace(size, **{name: value for name, value in given.items() if value})

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """None of its own."""
        return []

    def check(self) -> None:
        """One process is enough, and a base must be there."""
        import os

        from latentia.recipes.edit_study_runs import pipeline_folder, runs

        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError("edit-study runs its recipes one after the other: start it without torchrun")
        for _, run in runs(self):  # settings that do not fit are told now, not after an hour
            run.check()
        if self.base is not None and not (pipeline_folder(Path(self.base)) / "model_index.json").is_file():
            raise InputError(f"base {self.base!r} is no run of edit-scenes: leave it out to train one here")

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Carry out the missing stages; report.html and report.json of all that there are."""
        from latentia.recipes.edit_study_report import write_study
        from latentia.recipes.edit_study_stages import FUNCTIONS

        stages = carry_out(STAGES, self.stages, FUNCTIONS, self, bench, out, progress=False)
        claims = write_study(self, stages, out)
        told = {"recipe": self.model_dump(mode="json"), "claims": claims, "stages": stages}
        write_text_atomic(out / "report.json", json.dumps(told, indent=1) + "\n")

    def work(self) -> list[Work]:
        """Of every editor that is trained; those of one size are one line."""
        from dataclasses import replace

        from latentia.recipes.edit_study_runs import runs

        alike: dict[str, list[Work]] = {}
        for _, run in runs(self):
            for place, each in enumerate(run.work()):
                sizes = f"{place} {run.image_size} {run.editor} {run.text}"
                alike.setdefault(sizes, []).append(each)
        return [
            replace(
                found[0],
                phase=f"{len(found)} editors: {found[0].phase}",
                samples=sum(each.samples for each in found),
            )
            for found in alike.values()
        ]


def edit_study() -> EditStudy:
    """Every ablation of the Emu Edit article on the generated world, each beside the article's claim, on one page.

    Command: latentia train edit-study size=quick --out runs/edit-study
    Cost:    size=quick about half an hour on two cores (an estimate from its parts), in editors of about a minute;
             size=full about 5 CPU hours, less with base=runs/edit and run_steps=1500. A stopped run goes on with
             --resume.
    Expect:  report.json lists each claim of the article with our number and whether it holds here by the spread over
             3 seeds. In the article a task embedding brings CLIPdir from .104 to .119, predicted or true; here, in
             editors of two minutes, success from .034 to .096.
    """
    return EditStudy(name="edit-study")
