"""`latentia params`: networks from a saved p-diff pipeline, one safetensors state dict each."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentia.core.artifacts import write_safetensors
from latentia.core.files import read_json, write_atomic, write_text_atomic
from latentia.errors import InputError
from latentia.recipes.samplers import make_sampler
from latentia.recipes.sources import resolve_device

if TYPE_CHECKING:
    import torch

    from latentia.methods.pdiff.condition import Given
    from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline

RECORD = "networks.json"
"""Beside the networks: of which pipeline, seed and sampler they are."""


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
    condition: Given | None = None,
    guidance_scale: float = 1.0,
) -> list[Path]:
    """Generate networks number `start` … `start + count − 1` of `seed` into `folder`: `00017.safetensors` and so on.

    Every file is a whole state dict for `load_state_dict`: tied tensors stand in it under each of their names. Network
    i is the same whatever else is generated. Each batch is written before the next is generated, and what the folder
    holds of the same pipeline, seed and sampler is not generated again: a stopped call goes on when it is repeated.
    A conditional pipeline is told one `condition` for all, text such as `3,7` or numbers.

    Raises `InputError` when `folder` is a file, or holds networks that were made otherwise, and for a condition that
    does not fit.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder for the networks")
    numbers = range(start, start + count)
    files = {number: folder / f"{number:05d}.safetensors" for number in numbers}
    record: dict[str, Any] = {"seed": seed, "steps": steps, "pipeline": fingerprint(pipe)}
    told = told_networks(pipe, condition, guidance_scale)
    record |= {name: value if isinstance(value, float) else value.tolist() for name, value in told.items()}
    known = check_record(folder, record, list(files.values()))
    missing = [number for number, file in files.items() if not (known and file.is_file())]
    for at in range(0, len(missing), batch_size):
        some = missing[at : at + batch_size]
        try:
            made: Any = pipe(num_samples=len(some), seed=seed, sample_indices=some, num_inference_steps=steps, **told)
            if not at:  # the call was right: now there is something to write
                write_text_atomic(folder / RECORD, json.dumps(record, indent=2) + "\n")
            for number, state in zip(some, made.state_dicts):
                write_atomic(files[number], writer(state))
        except KeyboardInterrupt:
            done = sum(file.is_file() for file in files.values()) if known or at else 0
            raise KeyboardInterrupt(
                f"interrupted: {done} of {count} networks are in {folder}; the same command goes on"
            ) from None
    return list(files.values())


def told_networks(pipe: ParameterDiffusionPipeline, condition: Given | None, guidance_scale: float) -> dict[str, Any]:
    """What a call tells the pipeline: nothing, or one condition for all networks and how strongly it counts.

    Raises `InputError` for a condition that is missing or not wanted, of another width, or more than one.
    """
    from latentia.methods.pdiff.condition import conditions_of_call

    numbers = conditions_of_call(pipe.unet.config, pipe.template.condition, None, condition)
    if numbers is None:
        return {} if guidance_scale == 1 else {"guidance_scale": float(guidance_scale)}
    if len(numbers) != 1:
        raise InputError(f"give one condition for all networks, got {len(numbers)}: generate each on its own")
    return {"condition": numbers[0], "guidance_scale": float(guidance_scale)}


def check_record(folder: Path, record: dict[str, Any], files: list[Path]) -> bool:
    """Whether `folder` holds networks of this record. Raises `InputError` when it holds others."""
    path = folder / RECORD
    if path.is_file():
        before = read_json(path)
        differ = [key for key, value in record.items() if before.get(key) != value]
        if differ:
            listed = ", ".join(f"{key} {before.get(key)!r} there, {record[key]!r} here" for key in differ)
            raise InputError(f"{folder} holds networks that were made otherwise ({listed}): choose another folder")
        return True
    taken = next((file.name for file in files if file.exists()), None)
    if taken is not None:
        raise InputError(f"{folder} holds {taken}, which was not generated here: choose another folder")
    return False


def fingerprint(pipe: ParameterDiffusionPipeline) -> str:
    """A digest of everything that decides what network i of a seed is: all tensors, and the sampler's settings."""
    import torch

    digest = hashlib.blake2b(digest_size=8)
    digest.update(type(pipe.scheduler).__name__.encode())
    digest.update(json.dumps(dict(pipe.scheduler.config), sort_keys=True, default=str).encode())
    for part in (pipe.autoencoder, pipe.unet, pipe.template):
        for name, tensor in part.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def writer(state: dict[str, torch.Tensor]) -> Callable[[Path], None]:
    """What writes one state dict."""
    return lambda path: write_safetensors(path, {n: t.contiguous() for n, t in state.items()}, {})
