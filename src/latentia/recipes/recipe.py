"""Recipe: a whole training run as one frozen, typed value.

The same fields are the run's saved config (`DIR/recipe.json`), the command line's `key=value` and the web
form. Nothing here imports torch, so listing, completing and checking recipes is instant; the heavy modules
are imported by the methods that build.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from latentia.errors import ConfigError, InputError

if TYPE_CHECKING:
    from torch import nn

    from latentia.recipes.plan import Plan, Work
    from latentia.training.phase import Phase, PhaseResult
    from latentia.training.settings import Settings

Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]


class Value(BaseModel):
    """A frozen group of fields: unknown names are refused, defaults are checked too, NaN is no number."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, use_attribute_docstrings=False
    )


class Bench:
    """What one run builds while it goes: modules and tensors that a later phase takes from an earlier one.

    Attributes:
        parts: anything by name, e.g. `bench.parts["vae"]`.
        device: where data sets that live in memory and frozen codecs are put.
        out: the run's folder; None for a run that leaves nothing.
    """

    def __init__(self, device: str = "cpu", out: Path | None = None) -> None:
        self.device, self.out = device, out
        self.parts: dict[str, Any] = {}

    def keep(self, name: str, part: Any) -> Any:
        """Remember `part` under `name` and return it."""
        self.parts[name] = part
        return part

    def module(self, name: str) -> nn.Module:
        """The module kept under `name`."""
        if name not in self.parts:
            raise InputError(f"this run has built no {name!r} yet; it has: {', '.join(self.parts) or 'nothing'}")
        module: nn.Module = self.parts[name]
        return module


class Recipe(Value, ABC):
    """Base of every recipe. `steps`, `batch_size` and what follows mean the main (last) phase.

    A recipe builds its phases, turns their results into a pipeline, and lists the work for a dry run.
    """

    runtime: ClassVar[frozenset[str]] = frozenset({"device", "save_every", "log_every", "preview_every"})
    """Fields that may differ when a run is resumed: they change no number of the result."""

    code: ClassVar[frozenset[str]] = frozenset()
    """Fields that name functions of the user's own: a saved recipe's are never followed, only those typed anew."""

    beside: ClassVar[tuple[str, ...]] = ()
    """Work that a dry run counts and that is no phase of the training loop: other networks' training, judging."""

    next_command: ClassVar[str] = "latentia sample {pipeline} --out samples.png"
    """What to try when the run is done."""

    name: str = Field(description="the recipe's name in the registry; not changeable", frozen=True)
    steps: PositiveInt = Field(description="optimizer steps of the main phase")
    batch_size: PositiveInt = Field(description="samples in one optimizer step, over all processes and accumulation")
    accumulate: PositiveInt = Field(default=1, description="micro-batches summed into one optimizer step")
    seed: NonNegativeInt = Field(default=0, description="decides weights, data order, noise and samples")
    save_every: PositiveInt = Field(default=500, description="steps between checkpoints")
    log_every: PositiveInt = Field(default=20, description="steps between lines of metrics.jsonl")
    preview_every: NonNegativeInt = Field(default=0, description="steps between sample grids; 0 makes none")
    device: Device = Field(default="auto", description="auto, cpu, mps, cuda, cuda:0, …")
    precision: Literal["no", "bf16", "fp16", "auto"] = Field(
        default="no",
        description="autocast of training; no: float32, auto: bf16 if the device has instructions for it",
    )
    fsdp: bool = Field(default=False, description="shard weights, gradients and optimizer over processes (torchrun)")
    channels_last: bool = Field(default=False, description="convolutions in channels-last memory order (GPUs like it)")
    compile: bool = Field(default=False, description="torch.compile the denoiser")

    @model_validator(mode="after")
    def _batch_splits(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} does not split into accumulate={self.accumulate} equal parts"
            )
        return self

    @abstractmethod
    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """Names and builders of the phases, in order; a builder runs when its phase is reached."""

    @abstractmethod
    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Put the finished weights in place and save the pipeline (or codec) into `out`/pipeline.

        Only the first process calls this: nothing in it may wait for the others.
        """

    @abstractmethod
    def work(self) -> list[Work]:
        """Every network that runs, phase by phase, for `plan`; nothing is allocated."""

    def check(self) -> None:
        """Raise for what a run needs and does not have, such as its data; called before anything is written."""

    @property
    def autocast(self) -> str:
        """`precision`, with `auto` decided by the device."""
        from latentia.recipes.sources import resolve_device, resolve_precision

        return resolve_precision(self.precision, resolve_device(self.device))

    def settings(self, progress: bool = True) -> Settings:
        """What the training loop needs to know beside the phases."""
        from latentia.training.settings import Settings

        return Settings(
            seed=self.seed,
            device=self.device,
            precision=self.autocast,
            save_every=self.save_every,
            log_every=self.log_every,
            preview_every=self.preview_every,
            fsdp=self.fsdp,
            progress=progress,
            channels_last=self.channels_last,
            compile=self.compile,
        )

    def plan(self, measure: bool = True) -> Plan:
        """Shapes, parameters, FLOPs, memory and time of this run, without allocating its networks.

        With `measure` small networks are timed for one real step and the machine's speed is
        measured (under a second each); without, times on this machine are left out.
        """
        from latentia.recipes.plan import make_plan

        return make_plan(self, measure=measure)

    def to_json(self) -> str:
        """The text of `recipe.json`."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `to_json`'s text back; raises `ConfigError` that names every field which does not fit."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(
                f"this is no saved {cls.__name__} recipe: {'; '.join(problems(error).values())}"
            ) from None

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Dotted names of the fields that differ → (own value, the other's value)."""
        mine, theirs = flatten(self.model_dump()), flatten(other.model_dump())
        return {key: (mine.get(key), theirs.get(key)) for key in mine | theirs if mine.get(key) != theirs.get(key)}


def use_average(result: PhaseResult) -> None:
    """Put a phase's averaged weights into its modules; without an average they keep the last ones."""
    for name, state in (result.averaged or {}).items():
        result.modules[name].load_state_dict(state)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"vae": {"steps": 3}} → {"vae.steps": 3}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def problems(error: ValidationError) -> dict[str, str]:
    """Pydantic's findings, one line for each field: dotted name → `name: what is wrong (given …)`."""
    lines: dict[str, str] = {}
    for found in error.errors(include_url=False):
        key = ".".join(str(part) for part in found["loc"] if not isinstance(part, int)) or "recipe"
        text = found["msg"].removeprefix("Value error, ")
        shown = "" if found["type"] == "value_error" else f", got {found['input']!r}"
        lines.setdefault(key, f"{key}: {text[:1].lower()}{text[1:]}{shown}")
    return lines
