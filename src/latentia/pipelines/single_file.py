"""Pipelines and models from one checkpoint file: CompVis, Stability, LDM, taming-transformers, or Diffusers' names."""

import importlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from latentia.core.files import read_json
from latentia.core.model import ModelMixin, one_dtype
from latentia.core.model_loading import SkipInit, check_fits, fill
from latentia.errors import ArtifactError, InputError, check_choice, unknown_choice
from latentia.formats.families import PART_OF
from latentia.formats.single_file import Converted, ConvertedPart, read_single_file
from latentia.pipelines.pipeline import DiffusionPipeline

DEFAULT_TOKENIZER = "CLIPTokenizer"


def load_single_file(
    path: str | os.PathLike[str],
    *,
    pipeline_class: type[DiffusionPipeline] | None = None,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    torch_dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    prediction_type: str | None = None,
    use_ema: bool = False,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ignore: Sequence[str] = (),
    **components: Any,
) -> Any:
    """The pipeline in a single checkpoint file, ready to call; no network.

    Args:
        path: `.safetensors`, or `.ckpt` (read with `weights_only`).
        pipeline_class: None: the one that the weights call for (text to image, inpainting, …).
        tokenizer: the tokenizer, or a folder that holds it: `tokenizer/` of any Stable Diffusion folder, or such a
            folder itself. A checkpoint file has none.
        dtype: floats are cast to it as they are read (Diffusers: `torch_dtype`). None: float32.
        device: where the weights go, tensor by tensor.
        prediction_type, use_ema, overrides, ignore: see `latentia.formats.single_file.read_single_file`.
        components: parts of the pipeline by name, used in place of the file's, such as `vae=` or `scheduler=`.

    Raises `InputError` without a tokenizer and for unknown components, `ArtifactError` for a file that is broken, of an
    unknown family, or lacks a part; all before a weight is read. What was guessed is a warning.
    """
    dtype = one_dtype(dtype, torch_dtype)
    file = read_single_file(
        Path(path), use_ema=use_ema, prediction_type=prediction_type, overrides=overrides, ignore=ignore
    )
    built = pipeline_class or pipeline_of(file)
    for name in components:
        if name not in (*built.roles, *built.value_names):
            raise unknown_choice(f"component of {built.__name__}", name, (*built.roles, *built.value_names))
    arguments = dict(components)
    if "tokenizer" in built.roles:
        arguments["tokenizer"] = _tokenizer(tokenizer, file)
    wanted = [name for name, role in built.roles.items() if role != "unused" and name not in arguments]
    needed = {name: part_of(name) for name in wanted if name != "scheduler" and name not in built.optional_components}
    lost = [name for name, part in needed.items() if part not in file.parts]
    if "scheduler" in wanted and file.scheduler is None:
        lost.append("scheduler")
    if lost:
        raise ArtifactError(
            f"{path} ({file.family.name}) lacks {', '.join(lost)} for {built.__name__}: "
            f"pass {', '.join(f'{name}=...' for name in lost)}"
        )
    for note in file.notes:
        warnings.warn(f"{path}: {note}", stacklevel=2)
    arguments |= {name: build_part(file, part, dtype, device) for name, part in needed.items()}
    if "scheduler" in wanted:
        arguments["scheduler"] = build_scheduler(file)
    return built(**arguments)


def load_part(
    path: str | os.PathLike[str],
    part: str | None = None,
    *,
    dtype: torch.dtype | None = None,
    torch_dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    use_ema: bool = False,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ignore: Sequence[str] = (),
) -> Any:
    """One model of a checkpoint file: `unet`, `vae` or `text_encoder`; None: the only one that it holds.

    The other parts are not read. Arguments as of `load_single_file`; raises `UnknownChoiceError` for a part that is
    not there.
    """
    file = read_single_file(Path(path), use_ema=use_ema, overrides=overrides, ignore=ignore)
    if part is None and len(file.parts) != 1:
        raise InputError(f"{path} holds {', '.join(file.parts)}: say which one")
    name = part or next(iter(file.parts))
    check_choice(f"part of {path}", name, file.parts)
    return build_part(file, name, one_dtype(dtype, torch_dtype), device)


def part_of(component: str) -> str:
    """The part of a file that is a pipeline's component."""
    return PART_OF.get(component, component)


def pipeline_of(file: Converted) -> type[DiffusionPipeline]:
    """The public class that runs a file's family; `ArtifactError` for files that are no pipeline."""
    if file.family.pipeline is None:
        raise ArtifactError(
            f"{file.path} is {file.family.name}, which no pipeline runs: load_part(path, name) reads its parts "
            f"({', '.join(file.parts)}); or name the pipeline_class and pass what it needs besides"
        )
    found: type[DiffusionPipeline] = getattr(importlib.import_module("latentia"), file.family.pipeline)
    return found


def build_part(
    file: Converted, name: str, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> ModelMixin:
    """The model of one part in evaluation mode: one copy of its weights in memory, read straight into place."""
    model = empty_part(file, name)
    fill(model, file.parts[name].tensors, dtype, device)
    return model.eval()


def empty_part(file: Converted, name: str) -> ModelMixin:
    """The model of one part before its weights are read; `ArtifactError` when they would not fit."""
    part: ConvertedPart = file.parts[name]
    target: type[ModelMixin] = getattr(importlib.import_module("latentia"), part.class_name)
    with SkipInit():
        model: ModelMixin = target.from_config(part.config)
    check_fits(model, part.tensors.on_meta(), f"{file.path} ({name})", strict=True)
    return model


def build_scheduler(file: Converted) -> Any:
    """The scheduler that the file's family was published with; the file must have one."""
    assert file.scheduler is not None
    class_name, arguments = file.scheduler
    return getattr(importlib.import_module("latentia"), class_name).from_config(arguments)


def _tokenizer(given: Any, file: Converted) -> Any:
    if given is None:
        raise InputError(
            f"{file.path} holds weights only, and a text pipeline needs a tokenizer: pass tokenizer=FOLDER, the "
            "tokenizer/ folder of any pipeline of this family (all Stable Diffusion 1 models share one, and so do all "
            "Stable Diffusion 2 models), or a tokenizer object"
        )
    return find_tokenizer(given, file.family.tokenizer) if isinstance(given, str | os.PathLike) else given


def find_tokenizer(given: str | os.PathLike[str], class_name: str | None = None) -> Any:
    """The tokenizer in a folder, or in the `tokenizer/` of a pipeline's folder.

    `class_name` is used when the folder does not say, or says what is not known.
    """
    from latentia.conditioners.tokenizers import TOKENIZER_CLASSES, load_tokenizer

    folder = Path(given)
    if (folder / "tokenizer").is_dir():
        folder = folder / "tokenizer"
    config = folder / "tokenizer_config.json"
    stated = read_json(config).get("tokenizer_class") if config.is_file() else None
    return load_tokenizer(folder, stated if stated in TOKENIZER_CLASSES else class_name or DEFAULT_TOKENIZER)
