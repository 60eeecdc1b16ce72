"""`latentia convert`: checkpoint file → folder, folder → checkpoint file, pickle → safetensors, LoRA ↔ LoRA."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentia.core.config import FORMAT_VERSION, to_json
from latentia.core.files import write_text_atomic
from latentia.core.weight_files import PICKLES
from latentia.errors import ArtifactError, InputError, check_choice
from latentia.formats.detect import foreign_family
from latentia.formats.single_file import Converted, read_single_file
from latentia.formats.tensors import TensorFile, open_tensors
from latentia.pipelines import folder as layout
from latentia.pipelines.single_file import (
    build_part,
    build_scheduler,
    empty_part,
    find_tokenizer,
    part_of,
    pipeline_of,
)
from latentia.recipes.convert_back import folder_to_file, save_checkpoint

DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
SUFFIX = ".safetensors"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is converted into what.

    Attributes:
        source: a checkpoint file, or the folder of a pipeline or model.
        target: `NAME.safetensors`, or a folder.
        tokenizer: folder of the tokenizer that a pipeline needs and a checkpoint file lacks.
        dtype: name of a floating dtype, a key of `DTYPES`; None: the source's.
        use_ema: take the averaged weights.
        prediction_type: what the network predicts, where the file cannot tell.
        ignore: beginnings of names of tensors to leave out.
        force: overwrite what is at `target`.
    """

    source: Path
    target: Path
    tokenizer: Path | None = None
    dtype: str | None = None
    use_ema: bool = False
    prediction_type: str | None = None
    ignore: tuple[str, ...] = ()
    force: bool = False


def convert(request: Request, say: Say = print) -> None:
    """Carry out `request`, telling each part as it is written.

    Raises `ArtifactError` for a source that is missing, broken or of an unknown family, and for a target that exists
    (unless forced); `InputError` for options that mean nothing here.
    """
    if request.dtype is not None:
        check_choice("dtype", request.dtype, DTYPES)
    dtype = DTYPES[request.dtype] if request.dtype else None
    _check_places(request)
    to_file = request.target.suffix == SUFFIX
    if request.source.is_dir():
        _refuse(request, "a folder")
        folder_to_file(request.source, request.target, dtype, say)
    elif to_file:
        _refuse(request, "a file that stays a file")
        _file_to_file(open_tensors(request.source), request.target, dtype, say)
    else:
        file_to_folder(request, dtype, say)


def _check_places(request: Request) -> None:
    source, target = request.source, request.target
    if not source.exists():
        raise ArtifactError(f"nothing at {source}")
    if source.is_dir() and target.suffix != SUFFIX:
        raise InputError(f"{source} is a folder: give a file NAME{SUFFIX} to convert it into, got {target}")
    if target.suffix in PICKLES:
        raise InputError(f"{target}: nothing is pickled; give a file NAME{SUFFIX} or a folder")
    if target.exists() and source.resolve() == target.resolve():
        raise InputError(f"{source} cannot be converted into itself: name another place")
    if target.exists() and source.is_dir() and source.resolve() in target.resolve().parents:
        raise InputError(f"{target} is one of the files of {source}: name a new file")
    if target.is_dir() and target.suffix == SUFFIX:
        raise InputError(f"{target} is a folder: give another name")
    if target.is_file() and target.suffix != SUFFIX:
        raise InputError(f"{target} is a file: give a folder or a file NAME{SUFFIX}")
    occupied = any(target.iterdir()) if target.is_dir() else target.exists()
    if occupied and not request.force:
        raise ArtifactError(f"{target} is there already: give --force to overwrite it, or another name")


def _refuse(request: Request, what: str) -> None:
    """Raise `InputError` for options that only mean something when a file becomes a folder."""
    options = {
        "--tokenizer": request.tokenizer,
        "--ema": request.use_ema,
        "--prediction-type": request.prediction_type,
        "--ignore": request.ignore,
    }
    given = [name for name, value in options.items() if value]
    if given:
        raise InputError(f"{', '.join(given)} means nothing for {what} ({request.source})")


def file_to_folder(request: Request, dtype: torch.dtype | None, say: Say) -> None:
    """A checkpoint file → the folder of a pipeline, or of a model when it holds a single one.

    A family without a pipeline becomes a folder of its models. One without a tokenizer becomes a pipeline folder that
    lacks its `tokenizer/`, and says so: that folder can be copied in later, or passed as `tokenizer=`.
    """
    file = read_single_file(
        request.source,
        use_ema=request.use_ema,
        prediction_type=request.prediction_type,
        ignore=request.ignore,
    )
    tokenizer = find_tokenizer(request.tokenizer, file.family.tokenizer) if request.tokenizer else None
    for note in file.notes:
        warnings.warn(f"{request.source}: {note}", stacklevel=2)
    say(f"{request.source}: {file.family.name}")
    for name in file.parts:
        empty_part(file, name)  # a part that does not fit is said before any is written
    if len(file.parts) == 1:
        (name,) = file.parts
        _write_part(file, name, request.target, dtype, say)
        return
    layout.remove_index(request.target)
    if file.family.pipeline is None:
        for name in file.parts:
            _write_part(file, name, request.target / name, dtype, say)
        say(f"no pipeline runs {file.family.name}: {request.target} holds its models, without {layout.INDEX}")
        return
    _write_pipeline(file, request.target, tokenizer, dtype, say)


def _write_pipeline(file: Converted, target: Path, tokenizer: Any, dtype: torch.dtype | None, say: Say) -> None:
    built = pipeline_of(file)
    entries: dict[str, Any] = {}
    lost = []
    for component, role in built.roles.items():
        part, folder = part_of(component), target / component
        entries[component] = [None, None]
        if role == "tokenizer":
            entries[component] = ["transformers", file.family.tokenizer]
            if tokenizer is not None:
                layout.save_component(tokenizer, folder, None, "10GB")
                entries[component] = layout.entry_of(tokenizer)
        elif role == "scheduler":
            scheduler = build_scheduler(file)
            scheduler.save_config(folder)
            entries[component] = layout.entry_of(scheduler)
        elif part in file.parts:
            entries[component] = _write_part(file, part, folder, dtype, say)
        elif role != "unused":
            lost.append(component)
    if lost:
        say(f"the file has no {', '.join(lost)}: {target} holds what there is, without {layout.INDEX}")
        return
    values = {name: False for name in built.value_names if name == "requires_safety_checker"}
    header = {"_class_name": built.__name__, "_diffusers_version": FORMAT_VERSION}
    write_text_atomic(target / layout.INDEX, to_json({**header, **values, **entries}))
    say(f"saved {target}: {built.__name__}")
    if file.family.tokenizer and tokenizer is None:
        say(
            f"{target / 'tokenizer'} is missing, for checkpoint files have none: copy the tokenizer/ folder of any "
            f"{file.family.name} pipeline there, or convert again with --tokenizer FOLDER"
        )


def _write_part(file: Converted, name: str, folder: Path, dtype: torch.dtype | None, say: Say) -> list[str | None]:
    model = build_part(file, name, dtype or file.parts[name].tensors.dtype)
    model.save_pretrained(folder)
    say(f"{folder}: {type(model).__name__}, {model.num_parameters():,} parameters, {_short(model.dtype)}")
    return layout.entry_of(model)


def _file_to_file(file: TensorFile, target: Path, dtype: torch.dtype | None, say: Say) -> None:
    """A pickle or safetensors file → safetensors under the same names; a LoRA in the other project's names."""
    state = {name: file.read(name) for name in file.entries}
    if foreign_family(state) == "a LoRA":
        from latentia.recipes.convert_lora import convert_lora

        layout = convert_lora(state, file.metadata, target, dtype)
        say(f"saved {target}: the LoRA in the layout of {layout}")
        return
    save_checkpoint(state, target, dtype)
    kinds = {_short(t.dtype if dtype is None or not t.is_floating_point() else dtype) for t in state.values()}
    numbers = sum(tensor.numel() for tensor in state.values())
    say(f"saved {target}: {len(state):,} tensors, {numbers:,} numbers, {', '.join(sorted(kinds))}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
