"""`tokenizers-study`: six codecs at equal bits on digits and on photographs, kept stage by stage, on one page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from latentia.core.files import write_text_atomic
from latentia.recipes.pdiff_parts import Words
from latentia.recipes.recipe import Bench, Recipe
from latentia.recipes.study import carry_out, check_stages

if TYPE_CHECKING:
    from latentia.recipes.plan import Work
    from latentia.training.phase import Phase, PhaseResult

KINDS = ("vqvae", "fsq", "lfq", "vqgan", "flowmo")
DATA = ("digits", "photos")
CODECS = tuple(f"{kind}-{data}" for data in DATA for kind in KINDS)
STAGES = (*CODECS, "formats", "whole", "samplers", "modes", "ablations", "priors")
"""vqvae-digits … flowmo-photos: a codec's training and numbers; formats: JPEG, WebP, AVIF at the same bits; whole: a
whole photograph through tiles; samplers: FlowMo with fewer steps and other samplers; modes: several samples of one
code; ablations: FlowMo without one of its parts; priors: digits drawn from tokens."""


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        shares: of the published steps, by stage; `post-digits`, `post-photos`: of stage 1B's.
        pictures: judged in the tables, at most.
        sampled: judged with every sampler.
        points: of a curve against compute.
        noted: pictures measured at each of them.
        ablations: names of `flowmo_digits.ABLATIONS`; empty: all.
        settings: further settings by recipe's name.
    """

    shares: Mapping[str, float]
    pictures: int
    sampled: int
    points: int
    noted: int
    ablations: tuple[str, ...] = ()
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


TABLE_4 = (
    "FSQ",
    "plain logit-normal times",
    "encoder with the decoder",
    "no perceptual loss",
    "patches twice as large",
)
"""The article's ablations that need a training."""

SIZES: dict[str, Size] = {
    "quick": Size(
        shares={
            **dict.fromkeys(CODECS, 0.09),
            "flowmo-digits": 0.05,
            "flowmo-photos": 0.03,
            "post-digits": 0.05,
            "post-photos": 0.03,
            "ablations": 0.015,
            "priors": 0.25,
        },
        pictures=256,
        sampled=96,
        points=4,
        noted=96,
        ablations=TABLE_4,
        settings={
            **dict.fromkeys(("maskgit-digits", "gpt-digits"), ("tokenizer.steps=150", "pictures=100")),
            **{f"{kind}-{data}": ("perceptual.steps=80",) for kind in ("vqgan", "flowmo") for data in DATA},
        },
    ),
    "full": Size(
        shares={
            **dict.fromkeys(CODECS, 1.0),
            "flowmo-photos": 0.6,
            "post-digits": 1.0,
            "post-photos": 0.6,
            "ablations": 0.04,
            "priors": 1.0,
        },
        pictures=2048,
        sampled=540,
        points=10,
        noted=256,
    ),
}


class TokenizersStudy(Recipe):
    """Trains nothing itself: each codec is a run of its own recipe in OUT/stages, and so are ablations and priors."""

    runtime: ClassVar[frozenset[str]] = Recipe.runtime | {"stages"}
    next_command: ClassVar[str] = "open {pipeline}/report.html"

    steps: PositiveInt = Field(default=1, description="not used: `size` gives each stage its steps")
    batch_size: PositiveInt = Field(default=1, description="not used: each stage has its own")
    size: str = Field(default="full", description=f"how much of everything: {' or '.join(SIZES)}")
    stages: Words = Field(default=STAGES, description=f"what to do, of {', '.join(STAGES)}; the rest is left out")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.size not in SIZES:
            raise ValueError(f"there is no size {self.size!r}: choose from {', '.join(SIZES)}")
        check_stages(self.stages, STAGES)
        return self

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """None of its own."""
        return []

    def check(self) -> None:
        """One process is enough."""
        import os

        from latentia.errors import InputError

        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise InputError("tokenizers-study runs its recipes one after the other: start it without torchrun")

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Carry out the missing stages; report.html and report.json of all that there are."""
        from latentia.recipes.tokenizers_study_report import write_study
        from latentia.recipes.tokenizers_study_stages import FUNCTIONS, check_needs

        check_needs(self, out)
        stages = carry_out(STAGES, self.stages, FUNCTIONS, self, bench, out, progress=False)
        page = write_study(self, stages, out)
        told = {"recipe": self.model_dump(mode="json"), "claims": page, "stages": stages}
        write_text_atomic(out / "report.json", json.dumps(told, indent=1) + "\n")

    def work(self) -> list[Work]:
        """Of every run that this study is made of."""
        from dataclasses import replace

        from latentia.recipes.tokenizers_study_runs import runs

        return [replace(each, phase=f"{name}: {each.phase}") for name, run in runs(self) for each in run.work()]


def tokenizers_study() -> TokenizersStudy:
    """VQ-VAE, FSQ, LFQ, VQGAN and FlowMo (1A, 1A+1B) at equal bits on digits and photographs, with FlowMo's ablations.

    Command: latentia train tokenizers-study size=quick --out runs/tokenizers
    Cost:    size=quick 14 CPU minutes, size=full 2½ CPU hours. A run that was stopped goes on with --resume.
    Expect:  one page; report.json lists each target with what was reached. JPEG, WebP and AVIF without headers reach
             31.1, 30.2 and 31.4 dB on the photo tiles; `vqvae-photos` 28.6. Fréchet distances at equal bits, seed 0:
             photographs 2.72 VQ-VAE, 1.67 VQGAN, 0.91 FlowMo (1A); digits 0.21, 0.11, 0.18 (1A and 1B).
    """
    return TokenizersStudy(name="tokenizers-study")
