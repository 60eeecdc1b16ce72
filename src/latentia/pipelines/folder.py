"""The pipeline folder: `model_index.json` and one sub-folder per component, as Diffusers writes it.

    {"_class_name": "LDMPipeline", "_diffusers_version": "…", "unet": ["diffusers", "UNet2DModel"], …}

A component is `[library, class]`, an absent one `[null, null]`; other values are constructor arguments.
Nothing is imported on the folder's word: a class is looked up in Latentia's own public table, or refused.
"""

import importlib
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch

from latentia.core.config import FORMAT_VERSION, ConfigMixin, to_json
from latentia.core.files import read_json, refused, write_text_atomic
from latentia.core.hub import resolve_folder
from latentia.core.model import ModelMixin
from latentia.core.weight_files import index_name, locate, single_name
from latentia.errors import ArtifactError, nearest

INDEX = "model_index.json"
LATENTIA_ONLY = frozenset({"Autoencoder", "ConvClassifier", "LatentDiffusionPipeline"})
"""Public classes that Diffusers does not have; their library in the index is `latentia`."""
OWN_LIBRARIES = ("diffusers", "latentia")
FOREIGN: dict[tuple[str, str], Callable[[Path], Any]] = {}
"""(library, class) → loader, for components of other libraries such as `("transformers", "CLIPTextModel")`."""

Base = TypeVar("Base")


@dataclass(frozen=True, slots=True)
class PipelineIndex:
    """What a `model_index.json` says, checked: nothing in it leads out of the folder or to foreign code."""

    folder: Path
    class_name: str
    components: dict[str, tuple[str, str] | None]
    values: dict[str, Any]


def read_index(folder: Path) -> PipelineIndex:
    """Read and check the index of `folder`. Raises `ArtifactError` for a missing, broken or hostile one."""
    loaded = read_json(folder / INDEX)
    path = folder / INDEX
    class_name = loaded.get("_class_name")
    if not isinstance(class_name, str):
        what = (
            f"names code of its own ({class_name!r}), which is never run" if class_name else "names no pipeline class"
        )
        raise ArtifactError(f"{path} {what}: load it with a class of Latentia, or ask its author for a plain pipeline")
    components: dict[str, tuple[str, str] | None] = {}
    values: dict[str, Any] = {}
    for name, value in loaded.items():
        if name.startswith("_"):
            continue
        if not name.isidentifier():
            raise ArtifactError(f"{path} has a component {name!r}, which is no plain name inside the folder")
        if isinstance(value, list) and len(value) == 2 and all(v is None or isinstance(v, str) for v in value):
            components[name] = _entry(path, name, value)
        else:
            values[name] = value
    return PipelineIndex(folder, class_name, components, values)


def _entry(path: Path, name: str, value: list[str | None]) -> tuple[str, str] | None:
    library, class_name = value
    if library is None and class_name is None:
        return None
    if library is None or class_name is None:
        raise ArtifactError(f"{path}: {name} is {value!r}: expected [library, class], or [null, null] for none")
    if library not in OWN_LIBRARIES and (library, class_name) not in FOREIGN:
        known = ", ".join([*OWN_LIBRARIES, *sorted({lib for lib, _ in FOREIGN})])
        raise ArtifactError(
            f"{path}: {name} asks for {class_name!r} of {library!r}, which Latentia does not load; libraries: {known}. "
            f"Code in a model folder is never run"
        )
    return library, class_name


def fetch_index(
    name_or_path: str | os.PathLike[str],
    variant: str | None,
    revision: str | None,
    local_files_only: bool,
    cache_dir: str | os.PathLike[str] | None = None,
) -> PipelineIndex:
    """The index of a folder or Hub id; from the Hub only the index, then only the files of the parts it names, come."""

    def resolve(patterns: list[str], complete: Callable[[Path], bool]) -> Path:
        return resolve_folder(
            name_or_path,
            revision=revision,
            local_files_only=local_files_only,
            allow_patterns=patterns,
            complete=complete,
            cache_dir=cache_dir,
        )

    folder = resolve([INDEX], lambda found: (found / INDEX).is_file())
    index = read_index(folder)
    if Path(name_or_path).expanduser().is_dir():
        return index
    names = [name for name, entry in index.components.items() if entry is not None]
    single = single_name(variant)
    weights = [single, single.replace(".safetensors", "-?????-of-?????.safetensors"), index_name(variant)]
    patterns = [f"{name}/{file}" for name in names for file in ("*config.json", *weights)]
    folder = resolve([INDEX, *patterns], lambda found: all(_has_part(found, index, n, variant) for n in names))
    return read_index(folder)


def _has_part(folder: Path, index: PipelineIndex, name: str, variant: str | None) -> bool:
    entry = index.components[name]
    part = folder / name
    if entry is None or entry in FOREIGN or not part.is_dir():
        return entry is None or part.is_dir()
    if not issubclass(public_class(entry[1], ConfigMixin, "component class", index.folder / INDEX), ModelMixin):
        return True
    try:
        locate(part, variant)
    except ArtifactError:
        return False
    return (part / ModelMixin.config_name).is_file()


def public_class(name: str, base: type[Base], kind: str, path: Path) -> type[Base]:
    """The public Latentia class called `name`, a subclass of `base`. Raises `ArtifactError` with the nearest match."""
    public = importlib.import_module("latentia")
    found = getattr(public, name) if name in public.__all__ else None
    if _is_kind(found, base):
        return found
    match = nearest(name, [known for known in public.__all__ if _is_kind(getattr(public, known), base)])
    hint = f"did you mean {match!r}? " if match else ""
    raise ArtifactError(f"{path}: unknown {kind} {name!r}: {hint}nothing else than Latentia's public classes is loaded")


def _is_kind(found: Any, base: type[Base]) -> TypeGuard[type[Base]]:
    return isinstance(found, type) and issubclass(found, base) and not inspect.isabstract(found)


def load_component(index: PipelineIndex, name: str, dtype: torch.dtype | None, variant: str | None) -> Any:
    """Build one component from its sub-folder; None where the index has `[null, null]`."""
    entry = index.components[name]
    if entry is None:
        return None
    folder = index.folder / name
    if not folder.is_dir():
        raise ArtifactError(f"{index.folder / INDEX} names {name!r}, but {folder} is missing: copy the whole folder")
    if entry in FOREIGN:
        return FOREIGN[entry](folder)
    found = public_class(entry[1], ConfigMixin, "component class", index.folder / INDEX)
    if issubclass(found, ModelMixin):
        return found.from_pretrained(folder, dtype=dtype, variant=variant)
    return found.from_config(found.load_config(folder))


def entry_of(component: object) -> list[str | None]:
    """`[library, class]` for the index."""
    if component is None:
        return [None, None]
    name = type(component).__name__
    if isinstance(component, ConfigMixin):
        return [library_of(name), name]
    return [type(component).__module__.split(".")[0], name]


def library_of(class_name: str) -> str:
    """The library under which a public class stands in an index."""
    return "latentia" if class_name in LATENTIA_ONLY else "diffusers"


def save_component(component: Any, folder: Path, variant: str | None, max_shard_size: int | str) -> None:
    """Write one component into its own sub-folder."""
    if isinstance(component, ModelMixin):
        component.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
    elif isinstance(component, ConfigMixin):
        component.save_config(folder)
    elif component is not None:
        component.save_pretrained(folder)


def remove_index(folder: Path) -> None:
    """Make `folder` no pipeline while its parts are being replaced. Raises `ArtifactError`."""
    try:
        (folder / INDEX).unlink(missing_ok=True)
    except OSError as error:
        raise refused(folder, error) from error


def write_index(folder: Path, class_name: str, components: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Write `model_index.json`; call it last, so that a folder that has one is whole."""
    entries = {name: entry_of(component) for name, component in components.items()}
    header = {"_class_name": class_name, "_diffusers_version": FORMAT_VERSION}
    write_text_atomic(folder / INDEX, to_json({**header, **values, **entries}))
