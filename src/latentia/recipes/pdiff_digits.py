"""`pdiff-digits`: the article on real handwritten digits, with every control that it lacks, in a few minutes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt

from latentia.recipes.parts import Average, Noise, Optim
from latentia.recipes.pdiff import ParameterDiffusion
from latentia.recipes.pdiff_parts import Fitting, Originals
from latentia.recipes.recipe import Bench

if TYPE_CHECKING:
    from latentia.training.phase import PhaseResult

CONVNET = Originals(
    network="convnet3",
    main=Fitting(optimizer="adamw", lr=3e-3, epochs=60, schedule="cosine"),
    collect=Fitting(optimizer="adamw", lr=5e-3, schedule="constant"),
    skip=50,
    every=2,
)
"""All parameters of a ConvNet-3 (D = 1,578), at a constant rate that keeps the checkpoints apart."""

NORMS = Originals(
    network="resnet",
    width=8,
    blocks=(1, 1, 1),
    patterns=("layer3.0.bn1", "layer3.0.bn2"),
    main=Fitting(optimizer="adamw", lr=3e-3, epochs=20, schedule="cosine"),
    collect=Fitting(optimizer="adamw", lr=0.03, schedule="constant"),
    skip=1,
)
"""The article's own choice: the last two BatchNorm layers of a ResNet (D = 128), by the later edition's optimizer."""


class PDiffDigits(ParameterDiffusion):
    """Generate digit classifiers, judge them beside their originals and every control, and tell of it in a report."""

    runs: PositiveInt = Field(default=3, description="times that all is done anew: checkpoints, codec, prior, samples")
    norms: bool = Field(default=True, description="also the article's choice of layers: a ResNet's last BatchNorms")

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the pipeline, then run the protocol and write report.html and report.json."""
        from latentia.recipes.pdiff_judging import tell

        super().finish(bench, results, out)
        tell(self, bench, results, out)

    def norm_layers(self) -> PDiffDigits:
        """The same recipe on the last two BatchNorm layers of a small ResNet."""
        return self.model_copy(update={"originals": NORMS.model_copy(update={"count": self.originals.count})})


def pdiff_digits() -> PDiffDigits:
    """Generate the weights of small digit classifiers, and find out whether it means anything.

    Command: latentia train pdiff-digits --out runs/pdiff
    Cost:    about 140 CPU-seconds, 2.5 minutes on one CPU core: three runs of two settings, with all controls.
    Expect:  ConvNet-3: mean accuracy of generated networks 88.1 % against 88.0 % of their originals (+0.13 ± 0.11
             points), train-selected 89.1 % against 89.3 % (-0.25 ± 0.74); last two BatchNorm layers 93.5 % against
             93.5 %. At matched novelty matched noise is beaten (+0.63 ± 0.28) for ConvNet-3 alone; the uniform average
             and both Gaussians are not, so p-diff is not shown to have learnt more than averages and spreads.
             The codec rebuilds 99.6 % of the variance between checkpoints; 100 networks take 2 seconds.
    """
    return PDiffDigits(
        name="pdiff-digits",
        originals=CONVNET,
        steps=1000,
        batch_size=64,
        noise=Noise(prediction_type="v_prediction"),
        optim=Optim(lr=1e-3, schedule="cosine", warmup=50),
        ema=Average(decay=0.99),
    )
