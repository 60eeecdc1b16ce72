"""`edit-inversion`: a task that the editor never saw, learned from a few examples as one vector.

a trained editor, frozen ─┐
1, 5, 20 or 100 examples ─┴─▶ one task vector ─▶ NAME.safetensors, judged on held-out pictures
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from latentia.errors import InputError, nearest
from latentia.recipes.edit_scenes_parts import Editor, EditTarget, Instructions
from latentia.recipes.parts import Average, Optim
from latentia.recipes.recipe import Bench, Recipe, use_average

if TYPE_CHECKING:
    from torch import nn

    from latentia.core.protocols import Dataset
    from latentia.methods.emu_edit.datasets import EditRows
    from latentia.methods.emu_edit.model import EmuEditModel
    from latentia.methods.emu_edit.pipeline import EmuEditPipeline
    from latentia.recipes.plan import Work
    from latentia.training.objective import Objective
    from latentia.training.phase import Phase, PhaseResult

UNSEEN = ("super-resolution", "contour", "inpaint", "add-detect")
TASK_NAME = re.compile(r"[\w][\w.-]*")
Mode = Literal["invert", "finetune", "scratch"]
PHASE = "inversion"


def hyphened(value: object) -> object:
    """`super_resolution` → `super-resolution`."""
    return value.replace("_", "-") if isinstance(value, str) else value


class EditInversion(Recipe):
    """One phase: the vector (`invert`), the whole editor (`finetune`), or a new one for this task alone (`scratch`)."""

    next_command: ClassVar[str] = "latentia edit picture.png INSTRUCTION --pipeline {pipeline} --task TASK"

    base: str = Field(default="runs/edit/pipeline", description="folder of the trained editor, its run or pipeline")
    task: Annotated[str, BeforeValidator(hyphened)] = Field(
        default="super-resolution", description=f"{', '.join(UNSEEN)}; with data: a name of your own"
    )
    data: str | None = Field(
        default=None,
        description="examples of your own: hf:NAME, or a folder with metadata.jsonl (file_name: edited, "
        "conditioning_image: before, text: instruction); none: the generated world's",
    )
    instruction: str = Field(default="", description="of examples of your own that have no text")
    mode: Mode = Field(default="invert", description="what is learned: one vector, all weights further, or all anew")
    examples: PositiveInt = Field(default=100, description="rows that are learned from, again and again")
    start: str = Field(
        default="nearest", description="nearest (task with the least loss), mean of all, or a task; not for scratch"
    )
    objective: EditTarget = Field(  # nobody tells which pixels an own task edits: a mask of all would open the gate
        default=EditTarget(dropout=0.0, gate_weight=0.0), description="what is minimised"
    )
    optim: Optim = Field(
        default=Optim(lr=0.3, schedule="cosine", final_lr=0.05, warmup=10),
        description="of the vector, in the coordinates of `even_basis`: by what it does to the network",
    )
    network_optim: Optim = Field(
        default=Optim(optimizer="muon", lr=2e-3, schedule="cosine", final_lr=0.05, warmup=50), description="of networks"
    )
    ema: Average = Field(default=Average(decay=0.98, warmup=True, power=0.75), description="average of what is learned")
    judged: PositiveInt = Field(default=100, description="held-out rows that the learned task is judged on")
    sampling_steps: PositiveInt = Field(default=10, description="steps of the sampler in judging")

    @model_validator(mode="after")
    def _modes(self) -> Self:
        if self.data is None and self.task not in UNSEEN:
            match = nearest(self.task, UNSEEN)
            hint = f", did you mean {match!r}" if match else ""
            raise ValueError(f"unknown task {self.task!r}{hint}: one of {', '.join(UNSEEN)}, or give data= of your own")
        if not TASK_NAME.fullmatch(self.task):
            raise ValueError(f"task {self.task!r} names a file: use letters, digits, - and .")
        if self.mode == "scratch" and self.start != "nearest":
            raise ValueError(f"start={self.start} has no meaning for mode=scratch: leave it out")
        return self

    # The base -------------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        """The base's pipeline."""
        path = Path(self.base).expanduser()
        return path / "pipeline" if (path / "pipeline" / "model_index.json").is_file() else path

    def check(self) -> None:
        """Raise `InputError` for a base that is not there."""
        if not (self.folder / "model_index.json").is_file():
            raise InputError(
                f"base {self.base!r} is no trained editor: train one (latentia train edit-scenes --out runs/edit) and "
                "give its folder, base=runs/edit"
            )
        if self.data is not None:
            from latentia.recipes.sources import open_pictures

            open_pictures(self.data, NOMINAL)

    def open_base(self) -> EmuEditPipeline:
        """The trained editor. Raises `InputError` for a pipeline of another kind."""
        from latentia.methods.emu_edit.pipeline import EmuEditPipeline
        from latentia.pipelines.pipeline import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(self.folder)
        if not isinstance(pipe, EmuEditPipeline):
            raise InputError(f"base {self.base!r} is a {type(pipe).__name__}, not an EmuEditPipeline")
        if self.mode != "scratch" and self.task in pipe.task_names:
            raise InputError(f"base {self.base!r} knows {self.task!r} already: there is nothing to learn")
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def config(self) -> dict[str, Any]:
        """Arguments of the base's network; without a base those of a published size, so that a dry run can count."""
        from latentia.core.files import read_json

        file = self.folder / "model" / "config.json"
        if not file.is_file():
            import torch

            from latentia.methods.emu_edit.tasks.registry import TASK_NAMES

            with torch.device("meta"):
                return dict(Editor().build(NOMINAL, len(TASK_NAMES), Instructions()).config)
        return {name: value for name, value in read_json(file).items() if not name.startswith("_")}

    # Training -------------------------------------------------------------------------------------------------

    def training_data(self, pipe: EmuEditPipeline, number: int | None) -> Dataset:
        """The examples: held in memory where they are few, made again and again where an expert learns from many."""
        from latentia.conditioners.prompts import token_ids
        from latentia.data.dataset import TensorDataset
        from latentia.methods.emu_edit.inversion import LatentRows

        def encode(texts: list[str]) -> dict[str, Any]:
            return {"input_ids": token_ids(pipe.tokenizer, texts)[:, 0]}

        rows: Any = self.rows(pipe, "train", self.examples, encode=encode, number=number)
        count = len(rows)
        if pipe.codec is not None:
            rows = LatentRows(rows, pipe)
        return TensorDataset(rows.batch(range(count))) if count <= HELD else rows

    def check_texts(self, pipe: EmuEditPipeline) -> None:
        """Raise `InputError` for instructions that the editor cannot read whole, before anything is learned."""
        from latentia.conditioners.prompts import count_windows

        sets = [self.rows(pipe, "train", min(self.examples, READ)), self.rows(pipe, "test", self.judged)]
        texts = [rows.row(i).instruction for rows in sets for i in range(len(rows))]
        long = [text for text, windows in zip(texts, count_windows(pipe.tokenizer, texts)) if windows > 1]
        if long:
            raise InputError(
                f"{len(long)} of {len(texts)} instructions are too long for {self.base}, such as {long[0]!r}: it reads "
                f"{pipe.tokenizer.model_max_length} tokens"
            )

    def rows(self, pipe: EmuEditPipeline, split: str, count: int, **given: Any) -> EditRows:
        """Rows of the task, of the world or of one's own; those of one's own are the same in every split."""
        from latentia.methods.emu_edit.inversion import UnseenRows

        size = pipe.default_size[0]
        if self.data is None:
            return UnseenRows(self.task, split, count, size, self.seed, **given)
        from latentia.recipes.edit_inversion_pairs import PairRows

        found = PairRows(self.data, self.task, size, self.instruction, **given)
        found.length = min(count, len(found))
        return found

    def start_from(self, bench: Bench) -> tuple[Objective, Dataset]:
        """The objective, and the examples; keeps `pipe`, `start` and `losses` on the bench."""
        from latentia.methods.emu_edit.inversion import (
            TaskInversionObjective,
            editing_objective,
            editor_with,
            start_vector,
            with_task,
        )

        pipe, told = self.open_base().to(bench.device), self.objective.model_dump()
        self.check_texts(pipe)
        if self.mode == "scratch":
            # The text encoder stays, trained along: the article's experts have pretrained ones too.
            model = self.fresh_model(pipe).to(bench.device)
            new = bench.keep("pipe", editor_with(pipe, model, {self.task: 0}, task_predictor=None))
            objective = editing_objective(new, train_text_encoder=True, **told)
            return objective, self.training_data(new, 0)
        editing = editing_objective(pipe, **told)
        data = self.training_data(pipe, None if self.mode == "invert" else len(pipe.model.tasks.weight))
        trained = pipe.task_names if pipe.task_predictor is None else pipe.task_predictor.tasks
        names = {name: place for name, place in pipe.task_names.items() if name in trained}
        name, vector, losses = start_vector(editing, data, names, self.start, self.seed)
        bench.keep("start", (name, vector))
        bench.keep("losses", losses)
        if self.mode == "invert":
            bench.keep("pipe", pipe)
            return TaskInversionObjective(editing, vector), data
        grown = with_task(pipe.model, vector)
        names = {**pipe.task_names, self.task: len(pipe.model.tasks.weight)}
        tuned = bench.keep("pipe", editor_with(pipe, grown, names))
        return editing_objective(tuned, train_text_encoder=True, **told), data

    def fresh_model(self, pipe: EmuEditPipeline) -> EmuEditModel:
        """A new network of the base's size, that knows one task."""
        from latentia.methods.emu_edit.model import EmuEditModel
        from latentia.recipes.digits_text_parts import attend_sharply_

        model = EmuEditModel.from_config(pipe.model.config, num_tasks=1)
        attend_sharply_(model.unet, int(pipe.tokenizer.model_max_length))
        return model

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """Learn."""
        return [(PHASE, lambda: self.phase(bench))]

    def phase(self, bench: Bench) -> Phase:
        """The one phase."""
        from latentia.training.phase import Phase

        objective, data = self.start_from(bench)
        return Phase(
            name=PHASE,
            objective=objective,
            data=data,
            steps=self.steps,
            batch_size=self.batch_size,
            optim=(self.optim if self.mode == "invert" else self.network_optim).build(),
            accumulate=self.accumulate,
            ema=self.ema.build(),
        )

    # Afterwards -----------------------------------------------------------------------------------------------

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save what was learned: `out`/TASK.safetensors of an inversion, and a pipeline that knows the task; judge."""
        from latentia.methods.emu_edit.embedding_file import TaskEmbedding
        from latentia.methods.emu_edit.inversion import editor_with, with_task
        from latentia.recipes.edit_inversion_judging import tell

        result = results[PHASE]
        use_average(result)
        pipe: EmuEditPipeline = bench.parts["pipe"]
        told: dict[str, Any] = {"steps": result.steps, "seconds": round(result.seconds, 1)}
        told["learned"] = sum(p.numel() for m in result.modules.values() for p in m.parameters())
        start = None
        if self.mode != "scratch":
            told |= {"start": bench.parts["start"][0], "start_losses": bench.parts["losses"]}
        if self.mode == "invert":
            start = bench.parts["start"][1]
            vector = result.modules["task"].vector.detach()  # type: ignore[operator]
            examples = self.rows(pipe, "train", self.examples)
            saved = TaskEmbedding.of(pipe.model, vector, self.task, len(examples), examples.row(0).instruction)
            saved.save(out / f"{self.task}.safetensors")
            names = {**pipe.task_names, self.task: len(pipe.model.tasks.weight)}
            pipe = editor_with(pipe, with_task(pipe.model, vector), names)
        pipe.model.eval()
        pipe.text_encoder.eval()
        pipe.set_progress_bar_config(disable=True)
        pipe.save_pretrained(out / "pipeline")
        tell(self, pipe, start, told, out)

    def work(self) -> list[Work]:
        """The editor's network; of an inversion all but the vector is frozen."""
        import torch

        from latentia.methods.emu_edit.model import EmuEditModel
        from latentia.recipes.plan import Work

        config = self.config()
        rows = 1 if self.mode == "scratch" else int(config.get("num_tasks", 16)) + 1

        def build() -> nn.Module:
            if self.mode != "invert":
                return EmuEditModel(**{**config, "num_tasks": rows})
            return with_vector(EmuEditModel(**config).requires_grad_(False))

        def inputs(batch: int) -> tuple[torch.Tensor, ...]:
            side = config["sample_size"]
            x = torch.zeros(batch, config["in_channels"], side, side)
            text = torch.zeros(batch, TOKENS, config["unet"].get("cross_attention_dim", 1280))
            return x, torch.zeros(batch), text, torch.zeros_like(x)

        seen, micro = self.steps * self.batch_size, self.batch_size // self.accumulate
        return [Work(PHASE, "model", build, inputs, seen, self.batch_size, micro, averaged=self.ema.decay > 0)]


def with_vector(model: EmuEditModel) -> nn.Module:
    """A frozen network with one learned vector."""
    import torch
    from torch import nn

    from latentia.methods.emu_edit.inversion import TaskVector

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.task = model, TaskVector(model.tasks.weight[0], torch.eye(model.task_dim))

        def forward(self, x: Any, t: Any, text: Any, source: Any) -> Any:
            return self.model(x, t, text, source, self.task(len(x)))

    return Told()


READ = 500
"""Examples whose instructions are checked, at most; the world's are all alike."""
HELD = 2000
"""At most so many examples are held in memory."""
TOKENS = 32
"""Of an instruction, in a dry run."""
NOMINAL = 64
"""Side of the pictures that a dry run counts with where there is no base yet."""


def edit_inversion() -> EditInversion:
    """Task inversion: a task that the editor never saw, learned from a few examples as one vector.

    Command: latentia train edit-inversion base=runs/edit/pipeline task=super_resolution examples=100 --out runs/upscale
    Cost:    about 1 CPU minute for 200 steps at 64×64; 100 examples cost what 1 does.
    Expect:  on `edit-scenes`' editor, 80 steps, 100 examples bring the gain on contours from 0.11 (no task) over 0.55
             (the nearest task) to 0.60, where an expert of 300 steps from scratch has 0.96; on inpainting to 0.04
             (0.25), on super-resolution to 0.00 (0.24): one vector steers what the network can do already. One seed,
             64 held-out pictures.
    """
    return EditInversion(name="edit-inversion", steps=200, batch_size=16, channels_last=True, save_every=100)
