"""Pictures from a saved pipeline, shared out over processes: picture i of a seed is the same wherever it is made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from PIL.PngImagePlugin import PngInfo

from latentia.core.files import write_atomic
from latentia.core.images import grid, to_pil
from latentia.data.folder import SUFFIXES
from latentia.errors import InputError, check_choice
from latentia.pipelines.checks import class_indices
from latentia.pipelines.distributed import call, rank_and_world, sample_sharded, shard_indices
from latentia.recipes.samplers import make_sampler
from latentia.recipes.sources import resolve_device

DTYPES = ("float32", "bfloat16", "float16")
STEPS = 20
"""Steps of a sampler from noise, when none are asked for."""

if TYPE_CHECKING:
    from PIL import Image

    from latentia.pipelines.image_pipeline import ImagePipeline
    from latentia.pipelines.text_pipeline import TextPipeline

    AnyPipeline = ImagePipeline | TextPipeline


@dataclass(frozen=True, slots=True)
class Request:
    """What to make.

    Attributes:
        count: pictures in all.
        classes: class of each picture, repeated as needed: picture i gets classes[i mod len]; names or numbers.
            Empty: every class in turn where the network has classes.
        prompts: text of each picture for pipelines that read texts: picture i gets prompts[i mod len].
        negative: what to steer away from, for these.
        inputs: further arguments of the pipeline's call: `image`, `strength`, `height`, …
        steps: steps of the sampler; None: `STEPS`, or as many as a pipeline of tokens takes by itself.
        scheduler: short name from `SAMPLERS`; None keeps the pipeline's own.
        seed: picture i is drawn from its own generator, derived from (seed, i).
        guidance: classifier-free guidance scale, 1 for none; None: the pipeline's default.
        batch_size: pictures that go through the network together.
        device: auto, cpu, cuda, …
        dtype: float32, float16 or bfloat16.
        loras: LoRA files or folders to load, each with its weight.
        size: (width, height) that made pictures are cut to, right and below; None: they are not cut.
    """

    count: int = 16
    classes: Sequence[int | str] = ()
    prompts: Sequence[str] = ()
    negative: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    scheduler: str | None = None
    seed: int = 0
    guidance: float | None = None
    batch_size: int = 64
    device: str = "auto"
    dtype: str = "float32"
    loras: Sequence[tuple[str, float]] = ()
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        for name, value in (("n", self.count), ("steps", self.steps), ("batch size", self.batch_size)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}")
        if self.seed < 0:
            raise InputError(f"seed must not be negative, got {self.seed}")
        check_choice("dtype", self.dtype, DTYPES)


def open_pipeline(path: str | os.PathLike[str], request: Request, task: str | None = None) -> AnyPipeline:
    """Load a pipeline folder or Hub id (or the `pipeline` of a run) with the sampler that was asked for.

    `task` (`image2image`, `inpainting`) asks for the class of that task on the folder's components.
    """
    from latentia.pipelines import auto
    from latentia.pipelines.image_pipeline import ImagePipeline
    from latentia.pipelines.pipeline import DiffusionPipeline
    from latentia.pipelines.text_pipeline import TextPipeline

    device = resolve_device(request.device)
    inner = Path(path) / "pipeline"
    tasks = {"image2image": auto.AutoPipelineForImage2Image, "inpainting": auto.AutoPipelineForInpainting}
    opened = DiffusionPipeline if task is None else tasks[task]
    pipe = opened.from_pretrained(
        inner if (inner / "model_index.json").is_file() else path, dtype=getattr(torch, request.dtype)
    )
    if not isinstance(pipe, ImagePipeline | TextPipeline):
        raise InputError(f"{path} is a {type(pipe).__name__}, which draws no pictures")
    _load_loras(pipe, request.loras)
    if request.scheduler is not None:
        pipe.scheduler = make_sampler(request.scheduler, pipe.scheduler)
    return pipe.to(device)


def read_picture(path: Path) -> Image.Image:
    """The picture at `path`, upright, in RGB. Raises `InputError` for a file that is none, or of 32 bits."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith("I;16"):  # `convert` would cut greys off at 255
                upright = Image.fromarray((np.asarray(upright) // 257).astype(np.uint8))
            if upright.mode in ("F", "I"):
                raise InputError(f"{path} is a picture of mode {upright.mode!r}: save it with 8 bits (RGB or L) first")
            return upright.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise InputError(f"{path} cannot be read as a picture: {error}") from error


def padded(picture: Image.Image, multiple: int = 8) -> Image.Image:
    """The picture with its last column and row repeated until both sides are a `multiple` of pixels."""
    from PIL import Image

    right, below = (-side % multiple for side in picture.size)
    return Image.fromarray(np.pad(np.asarray(picture), ((0, below), (0, right), (0, 0)), mode="edge"))


def _load_loras(pipe: AnyPipeline, loras: Sequence[tuple[str, float]]) -> None:
    from latentia.pipelines.lora import LoraMixin

    if not loras:
        return
    if not isinstance(pipe, LoraMixin):
        raise InputError(f"a {type(pipe).__name__} takes no LoRA")
    names = [f"lora_{i}" for i in range(len(loras))]
    for name, (path, _) in zip(names, loras):
        pipe.load_lora_weights(path, adapter_name=name)
    pipe.set_adapters(names, [weight for _, weight in loras])


def entries(pipe: AnyPipeline, request: Request) -> dict[str, list[Any]]:
    """What each picture is made of, by argument of the pipeline's call: one entry per picture.

    Raises `InputError` for a text without a pipeline that reads it, and the reverse.
    """
    from latentia.pipelines.text_pipeline import TextPipeline

    if isinstance(pipe, TextPipeline):
        if request.classes:
            raise InputError(f"a {type(pipe).__name__} knows no classes: say what to draw, with --prompt")
        if not request.prompts:
            raise InputError(f"a {type(pipe).__name__} draws what a text says: give one, with --prompt")
        return {"prompt": [request.prompts[i % len(request.prompts)] for i in range(request.count)]}
    if request.prompts or request.negative is not None:
        raise InputError(f"a {type(pipe).__name__} reads no texts: leave --prompt out, or name a class with --class")
    labels = labels_of(pipe, request)
    return {} if labels is None else {"class_labels": labels}


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


def steps_of(pipe: AnyPipeline, request: Request) -> int | None:
    """Steps of the pipeline's calls; None leaves them to a pipeline of tokens, which knows best."""
    from latentia.pipelines.tokens import TokenPipeline

    return request.steps if request.steps is not None or isinstance(pipe, TokenPipeline) else STEPS


def options_of(pipe: AnyPipeline, request: Request) -> dict[str, Any]:
    """What of a request is passed on to every pipeline call."""
    asked = {
        "guidance_scale": request.guidance,
        "negative_prompt": request.negative,
        "num_inference_steps": steps_of(pipe, request),
    }
    return {
        "seed": request.seed,
        "max_batch": request.batch_size,
        **request.inputs,
        **{name: value for name, value in asked.items() if value is not None},
    }


def sample(pipe: AnyPipeline, request: Request) -> torch.Tensor:
    """All pictures of the request, (count, C, H, W) in [-1, 1] on the CPU; each process makes its share."""
    options = {**options_of(pipe, request), **entries(pipe, request)}
    made = sample_sharded(pipe, request.count, **options)
    return made.cpu() * 2 - 1


def sample_to(pipe: AnyPipeline, request: Request, out: Path, scale: int | None = None) -> list[Path]:
    """Make the pictures and write them: a grid when `out` ends in .png, else a folder of one PNG each.

    A single picture of a text is written as it is.
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
            if request.size is not None:
                pictures = pictures[..., : request.size[1], : request.size[0]]
            if request.count == 1 and request.prompts and scale is None:
                save_png(to_pil(pictures)[0], out, describe(pipe, request))
            else:
                save_png(grid(pictures, scale=size), out, describe(pipe, request))
            return [out]
        return _write_folder(pipe, request, shard_indices(request.count, rank, world), out)


def _check_out(out: Path) -> None:
    """Raise `InputError` unless `out` can be the PNG of a grid or a folder."""
    suffix = out.suffix.lower()
    if suffix in SUFFIXES and suffix != ".png":
        raise InputError(f"pictures are written as PNG, not {suffix}: give NAME.png for one grid, or a folder")
    if suffix != ".png" and out.is_file():
        raise InputError(f"{out} is a file: give NAME.png for one grid, or a folder")


def _write_folder(pipe: AnyPipeline, request: Request, mine: range, out: Path) -> list[Path]:
    """One PNG for each of `mine`, written as soon as its batch is done."""
    given = entries(pipe, request)
    written: list[Path] = []
    for start in range(mine.start, mine.stop, request.batch_size):
        rows = range(start, min(start + request.batch_size, mine.stop))
        mine_now = {name: [values[i] for i in rows] for name, values in given.items()}
        pictures = call(pipe, rows, **mine_now, **options_of(pipe, request)).images
        for i, picture in zip(rows, pictures, strict=True):
            label = {"class": given["class_labels"][i]} if "class_labels" in given else {}
            text = {"prompt": given["prompt"][i]} if "prompt" in given else {}
            path = out / (f"{i:05d}-{label['class']}.png" if label else f"{i:05d}.png")
            picture = picture if request.size is None else picture.crop((0, 0, *request.size))
            save_png(picture, path, describe(pipe, request) | {"index": i} | label | text)
            written.append(path)
    return written


def describe(pipe: AnyPipeline, request: Request) -> dict[str, Any]:
    """What made a picture, for its PNG text."""
    asked = {
        "steps": steps_of(pipe, request),
        "guidance": request.guidance,
        "scheduler": request.scheduler,
        "negative": request.negative,
        "prompts": list(request.prompts) or None,
        "loras": [list(lora) for lora in request.loras] or None,
    }
    return {"seed": request.seed} | {name: value for name, value in asked.items() if value is not None}


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
