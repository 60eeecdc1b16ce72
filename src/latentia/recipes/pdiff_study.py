"""`pdiff-study`: every experiment of the p-diff article on digits, as stages that are kept, on one page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from latentia.core.files import write_text_atomic
from latentia.recipes.parts import Widths
from latentia.recipes.pdiff import ParameterDiffusion
from latentia.recipes.pdiff_digits import PDiffDigits, pdiff_digits
from latentia.recipes.pdiff_parts import Words
from latentia.recipes.pdiff_seeds import TokenCodec
from latentia.recipes.recipe import Bench
from latentia.recipes.study import carry_out, check_stages

if TYPE_CHECKING:
    from latentia.training.phase import PhaseResult

STAGES = ("protocol", "k_sweep", "depth", "noise", "baselines", "patterns", "seeds")
"""protocol: both settings with all controls, and their pictures; k_sweep: number of originals, and the greatest
similarity against it; depth: which layers; noise: where the codec's noise is; baselines: fine-tuned and noise-added
networks; patterns: heat maps of several seeds; seeds: whole networks from independent seeds."""


class PDiffStudy(PDiffDigits):
    """`pdiff-digits` and everything else that the article tried. A stage that is done is read from OUT/stages."""

    runtime: ClassVar[frozenset[str]] = ParameterDiffusion.runtime | {"stages"}

    stages: Words = Field(default=STAGES, description=f"what to do, of {', '.join(STAGES)}; the rest is left out")
    sweep: Widths = Field(default=(1, 10, 50, 200, 500), description="numbers of originals K that are compared")
    seeds: Annotated[int, Field(ge=3)] = Field(default=200, description="independently trained networks, of each kind")
    seed_epochs: PositiveInt = Field(default=20, description="passes over the images in training each of them")
    seed_codec: TokenCodec = Field(default=TokenCodec(), description="their codec, where units are matched")
    seed_steps: PositiveInt = Field(default=400, description="optimizer steps of the UNet over their codes")

    @model_validator(mode="after")
    def _stages_exist(self) -> Self:
        check_stages(self.stages, STAGES)
        return self

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the pipeline, carry out the missing stages, write report.html and report.json of all that there are."""
        from latentia.recipes import pdiff_stages
        from latentia.recipes.pdiff_study_report import write_study

        ParameterDiffusion.finish(self, bench, results, out)
        bench.keep("pipeline", self.pipeline(bench))
        stages = carry_out(STAGES, self.stages, pdiff_stages.STAGES, self, bench, out)
        record = {"recipe": self.model_dump(mode="json"), "stages": stages}
        write_text_atomic(out / "report.json", json.dumps(record, indent=1) + "\n")
        write_study(self, stages, out)


def pdiff_study() -> PDiffStudy:
    """Every experiment of the p-diff article on digits, each beside the paper's numbers.

    Command: latentia train pdiff-study --out runs/pdiff-study
    Cost:    13 CPU minutes on one core without the stage `seeds`, which takes about as much again (an estimate). A run
             that was stopped goes on after its last finished stage with --resume.
    Expect:  three runs: K = 1 gives its checkpoint back, 10 to 500 reach the originals' mean of 88.7 % within 0.3
             points; where the codec's noise is changes nothing (88.1 % each); BatchNorm layers of any stage come back
             as good as they were (93.5 to 93.7 %). Whole networks from independent seeds: 10 to 11 % by plain p-diff,
             within a point of their originals when matched (see `pdiff-seeds`).
    """
    published = pdiff_digits().model_dump(exclude={"name"})
    return PDiffStudy(name="pdiff-study", **published)
