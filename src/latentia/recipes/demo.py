"""`digits-demo`: the story from autoencoder to latent diffusion, told in one run and judged at the end.

judge ─▶ autoencoder ─▶ vae ─▶ unet          training, one progress bar each
pictures of each ─▶ numbers of each ─▶ report.html, report.json
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from latentia.recipes.digits_ldm import DigitsLDM, digits_ldm
from latentia.recipes.recipe import Bench

if TYPE_CHECKING:
    from latentia.codecs.autoencoder import Autoencoder
    from latentia.recipes.plan import Work
    from latentia.training.phase import Phase, PhaseResult

JUDGED = 64
"""Images in one step of the judge's training."""

Count = Annotated[int, Field(ge=20, le=540, multiple_of=10)]


class Demo(DigitsLDM):
    """`digits-ldm` beside a plain autoencoder of the same size, and a judge of all three."""

    judge_steps: PositiveInt = Field(400, description="optimizer steps of the judge, a small classifier")
    pictures: Count = Field(540, description="pictures made by each model and judged; ten classes share them")
    chain_pictures: Count = Field(50, description="pictures made by the ancestral chain, which is slow")
    chain_steps: Annotated[int, Field(ge=1, le=1000)] = Field(1000, description="steps of the ancestral chain (DDPM)")

    @model_validator(mode="after")
    def _only_digits(self) -> Self:
        told = {"data": "digits", "num_classes": 10, "image_channels": 1, "codec": None}
        changed = [f"{name}={getattr(self, name)!r}" for name, value in told.items() if getattr(self, name) != value]
        if changed:
            raise ValueError(
                f"the demo tells of digits and trains its own codec, so {', '.join(changed)}: use digits-ldm"
            )
        return self

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """The judge and the plain autoencoder, then those of `digits-ldm`."""
        first = [("judge", lambda: self.judge_phase(bench)), ("autoencoder", lambda: self.autoencoder_phase(bench))]
        return [*first, *super().phases(bench)]

    def judge_phase(self, bench: Bench) -> Phase:
        """Train the classifier that will judge, on real training images only."""
        from latentia.metrics.classifier import ConvClassifier
        from latentia.recipes.judge import judge_phase

        return judge_phase(bench.keep("judge", ConvClassifier()), self.images(), self.judge_steps, JUDGED)

    def autoencoder_phase(self, bench: Bench) -> Phase:
        """Train the plain autoencoder: the KL-VAE's sizes and steps, without posterior and KL."""
        from latentia.training.objectives import ReconstructionObjective
        from latentia.training.phase import Phase

        codec = bench.keep("autoencoder", self.plain_autoencoder())
        return Phase(
            name="autoencoder",
            objective=ReconstructionObjective(codec, reduction=self.vae.reduction, loss=self.vae.loss),
            data=self.images(),
            steps=self.vae.steps,
            batch_size=self.vae.batch_size,
            optim=self.vae.optim.build(),
        )

    def plain_autoencoder(self) -> Autoencoder:
        """The KL-VAE's sizes without its posterior."""
        from latentia.codecs.autoencoder import Autoencoder

        made: Autoencoder = Autoencoder.from_config(self.vae.build(self.image_size, self.image_channels).config)
        return made

    def work(self) -> list[Work]:
        """The judge's and the plain autoencoder's training, then that of `digits-ldm`."""
        from latentia.metrics.classifier import ConvClassifier
        from latentia.recipes.plan import Work

        rest = super().work()
        images = rest[0].inputs
        size = self.vae.batch_size
        return [
            Work("judge", "judge", ConvClassifier, images, self.judge_steps * JUDGED, JUDGED, JUDGED),
            Work("autoencoder", "codec", self.plain_autoencoder, images, self.vae.steps * size, size, size),
            *rest,
        ]

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save everything that was trained, then make, judge and show the pictures of all models."""
        import copy

        from latentia.recipes.demo_judging import tell

        raw_unet = copy.deepcopy(bench.module("unet"))
        super().finish(bench, results, out)
        bench.parts["judge"].save_pretrained(out / "judge")
        bench.parts["autoencoder"].save_pretrained(out / "autoencoder")
        tell(self, bench, results, raw_unet, out)


def digits_demo() -> Demo:
    """Autoencoder, KL-VAE and latent diffusion on real handwritten digits, side by side, with a report.

    Command: latentia demo (the same as latentia train digits-demo --out runs/demo --resume)
    Cost:    about 3 minutes on 2 CPU cores, half of it training.
    Expect:  DPM-Solver++-10 with EMA: accuracy_digits at least 0.97, frechet_digits at most 1.2 × its floor
             (540 random real images against all), nearest-training-image distance within 10 % of held-out images'.
    """
    published = digits_ldm().model_dump(exclude={"name"})
    return Demo(name="digits-demo", **published)


def run(out: str | os.PathLike[str], seed: int = 0, progress: bool = True) -> Path:
    """Run the demo into the folder `out`, or go on with the one that is there; returns the path of report.html."""
    from latentia.recipes.run import run_recipe

    recipe = digits_demo().model_copy(update={"seed": seed})
    run_recipe(recipe, out, resume=(Path(out) / "recipe.json").is_file(), progress=progress)
    return Path(out) / "report.html"
