"""Pictures from a saved pipeline, shared out over processes: picture i of a seed is the same wherever it is made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from PIL.PngImagePlugin import PngInfo

from latentia.core.files import write_atomic
from latentia.core.images import grid
from latentia.data.folder import SUFFIXES
from latentia.errors import InputError
from latentia.pipelines.checks import class_indices
from latentia.pipelines.distributed import rank_and_world, sample_sharded, shard_indices
from latentia.recipes.samplers import make_sampler
from latentia.recipes.sources import resolve_device

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from latentia.pipelines.image_pipeline import ImagePipeline


@dataclass(frozen=True, slots=True)
class Request:
    """What to make.

    Attributes:
        count: pictures in all.
        classes: class of each picture, repeated as needed: picture i gets classes[i mod len]; names or numbers.
            Empty: every class in turn where the network has classes.
        steps: steps of the sampler.
        scheduler: short name from `SAMPLERS`; None keeps the pipeline's own.
        seed: picture i is drawn from its own generator, derived from (seed, i).
        guidance: classifier-free guidance scale, 1 for none.
        batch_size: pictures that go through the network together.
        device: auto, cpu, cuda, …
    """

    count: int = 16
    classes: Sequence[int | str] = ()
    steps: int = 20
    scheduler: str | None = None
    seed: int = 0
    guidance: float = 1.0
    batch_size: int = 64
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, value, least in (("n", self.count, 1), ("steps", self.steps, 1), ("batch size", self.batch_size, 1)):
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if self.seed < 0:
            raise InputError(f"seed must not be negative, got {self.seed}")


def open_pipeline(path: str | os.PathLike[str], request: Request) -> ImagePipeline:
    """Load a pipeline folder or Hub id (or the `pipeline` of a run) with the sampler that was asked for."""
    from latentia.pipelines.image_pipeline import ImagePipeline
    from latentia.pipelines.pipeline import DiffusionPipeline

    device = resolve_device(request.device)
    inner = Path(path) / "pipeline"
    pipe = DiffusionPipeline.from_pretrained(inner if (inner / "model_index.json").is_file() else path)
    if not isinstance(pipe, ImagePipeline):
        raise InputError(f"{path} is a {type(pipe).__name__}, which draws no pictures")
    if request.scheduler is not None:
        pipe.scheduler = make_sampler(request.scheduler, pipe.scheduler)
    return pipe.to(device)


def labels_of(pipe: ImagePipeline, request: Request) -> list[int] | None:
    """The class of every picture, None for a network without classes. Raises `InputError` for an unknown class."""
    if not pipe.num_classes:
        if set(request.classes) - {"all"}:
            raise InputError(f"class {request.classes[0]!r} was asked for, but this pipeline is unconditional")
        return None
    asked = [_number_or_name(c, pipe.labels) for c in request.classes if c != "all"]
    if asked and len(asked) < len(request.classes):
        raise InputError(f"class 'all' and class {asked[0]!r} together: give one or the other")
    everything = list(range(pipe.num_classes))
    cycle = class_indices(asked, pipe.num_classes, pipe.null_class, pipe.labels) if asked else everything
    return [cycle[i % len(cycle)] for i in range(request.count)]


def _number_or_name(text: int | str, names: Mapping[str, int]) -> int | str:
    """A word that is no class name but reads as a number is a number."""
    return int(text) if isinstance(text, str) and text not in names and text.lstrip("-").isdecimal() else text


def options_of(request: Request) -> dict[str, Any]:
    """What of a request is passed on to every pipeline call."""
    return {
        "seed": request.seed,
        "num_inference_steps": request.steps,
        "guidance_scale": request.guidance,
        "max_batch": request.batch_size,
    }


def sample(pipe: ImagePipeline, request: Request) -> torch.Tensor:
    """All pictures of the request, (count, C, H, W) in [-1, 1] on the CPU; each process makes its share."""
    made = sample_sharded(pipe, request.count, class_labels=labels_of(pipe, request), **options_of(request))
    return made.cpu() * 2 - 1


def sample_to(pipe: ImagePipeline, request: Request, out: Path, scale: int | None = None) -> list[Path]:
    """Make the pictures and write them: a grid when `out` ends in .png, else a folder of one PNG each.

    Files that are there are overwritten. A folder's files are `00017.png` (`00017-7.png` with classes) and carry what
    made them as a PNG text `latentia`. Small pictures are enlarged `scale` times in a grid (default: to 64 pixels).
    Under `torchrun` every process makes its share; returns what this process wrote. Raises `InputError`, before any
    work, when `out` names a picture that is no PNG, or a file where a folder is to be.
    """
    _check_out(out)
    with processes() as (rank, world):
        pipe.set_progress_bar_config(disable=True if rank else None, desc="sampling", leave=False)
        if out.suffix.lower() == ".png":
            pictures = sample(pipe, request)
            if rank > 0:
                return []
            size = scale or max(1, 64 // pictures.shape[-1])
            save_png(grid(pictures, scale=size), out, describe(request))
            return [out]
        return _write_folder(pipe, request, shard_indices(request.count, rank, world), out)


def _check_out(out: Path) -> None:
    """Raise `InputError` unless `out` can be the PNG of a grid or a folder."""
    suffix = out.suffix.lower()
    if suffix in SUFFIXES and suffix != ".png":
        raise InputError(f"pictures are written as PNG, not {suffix}: give NAME.png for one grid, or a folder")
    if suffix != ".png" and out.is_file():
        raise InputError(f"{out} is a file: give NAME.png for one grid, or a folder")


def _write_folder(pipe: ImagePipeline, request: Request, mine: range, out: Path) -> list[Path]:
    """One PNG for each of `mine`, written as soon as its batch is done."""
    labels = labels_of(pipe, request)
    written: list[Path] = []
    for start in range(mine.start, mine.stop, request.batch_size):
        rows = range(start, min(start + request.batch_size, mine.stop))
        chosen = None if labels is None else [labels[i] for i in rows]
        made = pipe(batch_size=len(rows), sample_indices=rows, class_labels=chosen, **options_of(request))
        for i, picture in zip(rows, made.images, strict=True):
            label = {} if labels is None else {"class": labels[i]}
            path = out / (f"{i:05d}.png" if labels is None else f"{i:05d}-{labels[i]}.png")
            save_png(picture, path, describe(request) | {"index": i} | label)
            written.append(path)
    return written


def describe(request: Request) -> dict[str, Any]:
    """What made a picture, for its PNG text."""
    values = {"seed": request.seed, "steps": request.steps, "guidance": request.guidance}
    return values | ({"scheduler": request.scheduler} if request.scheduler else {})


def save_png(picture: Image.Image, path: Path, made_by: dict[str, Any]) -> None:
    """Write a PNG, whole or not at all, with `made_by` in its text."""
    text = PngInfo()
    text.add_text("latentia", json.dumps(made_by))
    write_atomic(path, lambda beside: picture.save(beside, format="PNG", pnginfo=text))


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """(rank, how many) of the processes that `torchrun` started; (0, 1) without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield rank_and_world()
        return
    dist.init_process_group("gloo")
    try:
        yield rank_and_world()
        dist.barrier()
    finally:
        dist.destroy_process_group()
