"""`latentia params`: networks from a saved p-diff pipeline, one safetensors state dict each."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentia.core.artifacts import write_safetensors
from latentia.core.files import write_atomic
from latentia.errors import InputError
from latentia.recipes.samplers import make_sampler
from latentia.recipes.sources import resolve_device

if TYPE_CHECKING:
    import torch

    from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline


def open_parameters(
    path: str | os.PathLike[str], scheduler: str | None = None, device: str = "auto"
) -> ParameterDiffusionPipeline:
    """Load the pipeline of a run (or a pipeline's own folder), with the sampler that was asked for.

    Raises `InputError` for a pipeline of another kind, `ArtifactError` for a folder that holds none.
    """
    from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline
    from latentia.pipelines.pipeline import DiffusionPipeline

    inner = Path(path) / "pipeline"
    pipe = DiffusionPipeline.from_pretrained(inner if (inner / "model_index.json").is_file() else path)
    if not isinstance(pipe, ParameterDiffusionPipeline):
        raise InputError(f"{path} is a {type(pipe).__name__}, which generates no networks: train pdiff-digits for one")
    if scheduler is not None:
        pipe.scheduler = make_sampler(scheduler, pipe.scheduler)
    return pipe.to(resolve_device(device))


def write_networks(
    pipe: ParameterDiffusionPipeline,
    count: int,
    folder: Path,
    *,
    steps: int = 250,
    seed: int = 0,
    batch_size: int = 256,
    start: int = 0,
) -> list[Path]:
    """Generate networks number `start` … `start + count − 1` of `seed` into `folder`: `00017.safetensors` and so on.

    Every file is a whole state dict for `load_state_dict`: tied tensors stand in it under each of their names. Network
    i is the same whatever else is generated.

    Raises `InputError` when `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the networks")
    numbers = range(start, start + count)
    made: Any = pipe(
        num_samples=count, seed=seed, sample_indices=list(numbers), num_inference_steps=steps, max_batch=batch_size
    )
    files = []
    for number, state in zip(numbers, made.state_dicts):
        files.append(folder / f"{number:05d}.safetensors")
        write_atomic(files[-1], writer(state))
    return files


def writer(state: dict[str, torch.Tensor]) -> Callable[[Path], None]:
    """What writes one state dict."""
    return lambda path: write_safetensors(path, {n: t.contiguous() for n, t in state.items()}, {})
