"""`pdiff`: p-diff for a network of the user's own, from a folder of checkpoints, a training function, or data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, PrivateAttr, model_validator

from latentia.errors import InputError
from latentia.recipes.parts import Average, Noise, Optim
from latentia.recipes.pdiff import NetworkDiffusion
from latentia.recipes.pdiff_parts import Fitting, Words
from latentia.recipes.recipe import Bench, Value

if TYPE_CHECKING:
    from torch import nn

    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.methods.pdiff.collect import Trajectory
    from latentia.recipes.plan import Work
    from latentia.training.phase import PhaseResult

NOMINAL = 2048
"""Parameters that a dry run counts while no module is named: the article's two BatchNorm layers."""
AGAIN = "with --resume too: code is run only when it is named on the command line"


class TrainingRun(Value):
    """How your network is trained on your data and its checkpoints are collected; read for `data` alone."""

    main: Fitting = Field(default=Fitting(), description="training of the whole network")
    collect: Fitting = Field(
        default=Fitting(lr=5e-3, schedule="constant"), description="training of what is generated, while collecting"
    )
    skip: NonNegativeInt = Field(default=50, description="first steps of collecting that are not saved")
    every: PositiveInt = Field(default=2, description="steps from one checkpoint to the next")
    batch_norm: Literal["train", "eval"] = Field(default="train", description="mode of BatchNorm while collecting")

    def build(self) -> Trajectory:
        """The room's value."""
        from latentia.methods.pdiff.collect import Trajectory

        return Trajectory(self.main.build(), self.collect.build(), self.skip, self.every, self.batch_norm)


class OwnNetworks(NetworkDiffusion):
    """Imitate checkpoints of any module. Names such as `mynets:build` are functions of your own (`user_code`)."""

    code: ClassVar[frozenset[str]] = frozenset({"module", "trainer", "data", "loss", "score"})

    module: str = Field(default="", description="package.module:name of what builds your network, without arguments")
    patterns: Words = Field(default=("*",), description="names of the parameters that are generated")
    checkpoints: str = Field(default="", description="folder of state-dict files, one network each, or of a run")
    trainer: str = Field(default="", description="package.module:name, (seed) → an iterable of state dicts")
    data: str = Field(
        default="", description="package.module:name, () → x, y: to judge on, and to train on without the above"
    )
    loss: str = Field(default="", description="package.module:name, (output, y) → mean; default: cross-entropy")
    score: str = Field(default="", description="package.module:name, (network) → number, higher is better")
    count: PositiveInt = Field(default=200, description="K, the checkpoints from trainer or data; of a folder all")
    holdout: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.4, description="share of the data that is not trained on: half of it chooses, half reports"
    )
    training: TrainingRun = Field(default=TrainingRun(), description="training on data")
    _read: dict[str, Checkpoints] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.checkpoints and self.trainer:
            raise ValueError("checkpoints and trainer both give the networks to imitate: keep one of them")
        return self

    def build(self) -> nn.Module:
        """Your network, from this recipe's seed, in training mode."""
        from latentia.methods.pdiff.many import new_network
        from latentia.recipes.user_code import network_of

        return new_network(lambda: network_of(self.module), self.seed)

    def check(self) -> None:
        """Call your functions once and read the folder: what does not fit is told before anything starts.

        Raises `InputError` for what is missing or does not fit, `ArtifactError` for files that cannot be read.
        """
        from latentia.recipes import pdiff_own_source as source

        if not self.module:
            raise InputError(f"{self.name}: name what builds your network: module=mynets:build ({AGAIN})")
        if not (self.checkpoints or self.trainer or self.data):
            raise InputError(
                f"{self.name}: say where the networks to imitate come from: checkpoints=FOLDER, trainer=mynets:train "
                f"or data=mynets:data ({AGAIN})"
            )
        source.rehearse(self)
        if self.checkpoints:
            self._read["folder"] = source.from_folder(self)

    def collect(self, folder: Path | None) -> Checkpoints:
        """The checkpoints: those of a run that is resumed, of the folder, of the trainer, or of a training on the data.

        Of several processes the first collects, and the others wait for what it writes.
        """
        from latentia.recipes import pdiff_own_source as source

        read = self._read.pop("folder", None)
        if self.checkpoints:
            return source.kept(self, folder, lambda: read or source.from_folder(self))
        if self.trainer:
            return source.kept(self, folder, lambda: source.from_trainer(self, folder))
        return source.from_data(self, folder)

    def work(self) -> list[Work]:
        """The training on data, where that is what is asked for, the autoencoder's, the UNet's."""
        import torch

        from latentia.methods.pdiff.layout import ParameterLayout
        from latentia.recipes import pdiff_own_source as source

        if not self.module:
            return self.generator_work(NOMINAL)
        with torch.device("cpu"):  # your functions need not know the meta device of a dry run
            network = self.build()
            trains = self.data and not (self.checkpoints or self.trainer)
            first = source.training_work(self, network) if trains else []
        return [*first, *self.generator_work(ParameterLayout.select(network, self.patterns).size)]

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the pipeline, then judge what it makes and write report.html and report.json."""
        from latentia.recipes.pdiff_own_judging import tell

        super().finish(bench, results, out)
        tell(self, bench, results, out)


def pdiff() -> OwnNetworks:
    """Generate the weights of your own network, from a folder of its checkpoints, a training function, or data.

    Command: latentia train pdiff module=mynets:build patterns=head checkpoints=folder/ --out runs/mine
    Cost:    about 25 CPU-seconds for a small network, without the collecting; add --dry-run for yours.
    Expect:  no number of ours: report.html has yours beside every control. On `pdiff-digits`, the same recipe,
             generated networks are as good as their originals (88.1 % and 88.0 %), and so are averages and Gaussians.

    `module` is called without arguments; `trainer` with the seed, and yields state dicts; `data` returns x and y;
    `score` takes a network and returns a number. They are looked for in the working directory first. Without data and
    score the report knows distances between weights alone.
    """
    return OwnNetworks(
        name="pdiff",
        steps=1000,
        batch_size=64,
        noise=Noise(prediction_type="v_prediction"),
        optim=Optim(lr=1e-3, schedule="cosine", warmup=50),
        ema=Average(decay=0.99),
    )
