"""What edits, from a path: a pipeline, a folder of pictures, a published table of results, or a baseline by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from latentia.core.rng import sample_generators
from latentia.errors import InputError
from latentia.methods.emu_edit.benchmarks.benchmark import Benchmark, Case, Editor
from latentia.methods.emu_edit.benchmarks.results import BASELINES, FolderOfResults, TableOfResults, oracle
from latentia.methods.emu_edit.benchmarks.tables import open_tables
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
        if not isinstance(self.pipe, StableDiffusionInstructPix2PixPipeline) and not _is_emu_edit(self.pipe):
            raise InputError(f"{path} is a {type(self.pipe).__name__}, which takes no instructions")

    def __call__(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The edited pictures, of their own sizes; pictures of one size go through the network together."""
        results: dict[int, np.ndarray] = {}
        for size in {image.shape for image in images}:
            places = [i for i, image in enumerate(images) if image.shape == size]
            pictures = [Image.fromarray(images[i]) for i in places]
            chosen = [cases[i] for i in places]
            generators = sample_generators(self.seed, [self.numbers[case.key] for case in chosen])
            made = self._edited(chosen, pictures, generators)
            results |= {i: np.asarray(picture.convert("RGB")) for i, picture in zip(places, made, strict=True)}
        return [results[i] for i in range(len(images))]

    def _edited(
        self, cases: Sequence[Case], pictures: list[Image.Image], generators: list[torch.Generator]
    ) -> list[Image.Image]:
        instructions = [case.instruction for case in cases]
        if _is_emu_edit(self.pipe):
            tasks = [case.task for case in cases] if self.tell_task else None
            made = self.pipe(pictures, instructions, task=tasks, generator=generators, **self.options)
            return list(made.images)
        made = self.pipe(instructions, [padded(each) for each in pictures], generator=generators, **self.options)
        return [image.crop((0, 0, *given.size)) for image, given in zip(made.images, pictures, strict=True)]


def _is_emu_edit(pipe: object) -> bool:
    return type(pipe).__name__ == "EmuEditPipeline"
