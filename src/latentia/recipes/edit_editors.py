"""What edits, from a path: a pipeline, a folder of pictures, a published table of results, or a baseline by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from latentia.core.rng import sample_generators
from latentia.errors import InputError
from latentia.methods.emu_edit.benchmarks.benchmark import Benchmark, Case, Editor
from latentia.methods.emu_edit.benchmarks.results import BASELINES, FolderOfResults, TableOfResults, oracle
from latentia.methods.emu_edit.benchmarks.tables import open_tables
from latentia.recipes.editing import unsure_quietly
from latentia.recipes.sampling import padded
from latentia.recipes.sources import resolve_device

if TYPE_CHECKING:
    from latentia.recipes.edit_evaluation import EditRequest


def open_editor(edited: str | os.PathLike[str], benchmark: Benchmark, request: EditRequest) -> tuple[Editor, bool]:
    """The editor, and whether it makes edits anew (a chained turn then starts from its own result)."""
    name = os.fspath(edited)
    path = Path(name).expanduser()
    if name in BASELINES or name == "oracle":
        return (oracle(benchmark) if name == "oracle" else BASELINES[name]), True
    if path.is_dir() and not _holds_pipeline(path):
        tables = [table for table in open_tables(name).values() if "edited_image" in table.columns]
        results = TableOfResults(tables) if tables else FolderOfResults(path)
        results.check(benchmark.cases)
        return results, False
    return PipelineEditor(path / "pipeline" if (path / "pipeline").is_dir() else name, benchmark, request), True


def _holds_pipeline(path: Path) -> bool:
    return any((folder / "model_index.json").is_file() for folder in (path, path / "pipeline"))


class PipelineEditor:
    """A saved pipeline as an editor: Emu Edit's, or InstructPix2Pix's.

    Picture i of the benchmark is drawn from its own generator, derived from (seed, i).
    Raises `InputError` for a pipeline that takes no instructions.
    """

    def __init__(self, path: str | os.PathLike[str], benchmark: Benchmark, request: EditRequest) -> None:
        from latentia.methods.emu_edit.pipeline import EmuEditPipeline
        from latentia.pipelines.instruct_pix2pix import StableDiffusionInstructPix2PixPipeline
        from latentia.pipelines.pipeline import DiffusionPipeline

        self.pipe: Any = DiffusionPipeline.from_pretrained(path).to(resolve_device(request.device))
        self.pipe.set_progress_bar_config(disable=True)
        self.seed, self.tell_task = request.seed, request.tell_task
        self.numbers = {case.key: number for number, case in enumerate(benchmark.cases)}
        given = {
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance,
            "image_guidance_scale": request.image_guidance,
        }
        self.options = {name: value for name, value in given.items() if value is not None}
        self.is_emu_edit = isinstance(self.pipe, EmuEditPipeline)
        if not self.is_emu_edit and not isinstance(self.pipe, StableDiffusionInstructPix2PixPipeline):
            raise InputError(f"{path} is a {type(self.pipe).__name__}, which takes no instructions")
        self.tasks: dict[str, str] = {}
        self.unsure = 0

    def __call__(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The edited pictures, of the sizes of those given."""
        instructions = [case.instruction for case in cases]
        pictures = [Image.fromarray(image) for image in images]
        numbers = [self.numbers[case.key] for case in cases]
        if self.is_emu_edit:
            tasks = [self._task(case) for case in cases] if self.tell_task else None
            with unsure_quietly():
                made = self.pipe(pictures, instructions, tasks, seed=self.seed, sample_indices=numbers, **self.options)
            self.unsure += sum(guess is not None and not guess.sure for guess in made.guesses)
            self.tasks |= {case.key: task for case, task in zip(cases, made.tasks, strict=True)}
            return [np.asarray(picture) for picture in made.images]
        results: list[np.ndarray] = []
        for instruction, picture, generator in zip(instructions, pictures, sample_generators(self.seed, numbers)):
            made = self.pipe(instruction, padded(picture), generator=generator, **self.options)
            results.append(np.asarray(made.images[0].crop((0, 0, *picture.size))))
        return results

    def _task(self, case: Case) -> str | None:
        """The benchmark's name of the task where the pipeline knows it, else None: it is then predicted."""
        return case.task if case.task in self.pipe.task_names else None

    def told_right(self, cases: Sequence[Case]) -> str | None:
        """How often the predicted task was the benchmark's own, in a sentence; None where that is not asked."""
        known = [(case.task, self.tasks[case.key]) for case in cases if case.key in self.tasks and self._task(case)]
        if self.tell_task or not known:
            return None
        right = sum(own == predicted for own, predicted in known) / len(known)
        unsure = f", and was not sure of {self.unsure}" if self.unsure else ""
        return f"the pipeline took {right:.1%} of {len(known)} instructions for the benchmark's task{unsure}"
