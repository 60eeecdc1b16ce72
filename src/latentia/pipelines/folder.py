"""The pipeline folder: `model_index.json` and one sub-folder per component, as Diffusers writes it.

    {"_class_name": "LDMPipeline", "_diffusers_version": "…", "unet": ["diffusers", "UNet2DModel"], …}

A component is `[library, class]`, an absent one `[null, null]`; other values are constructor arguments.
Nothing is imported on the folder's word: a class is looked up in Latentia's own public table, or refused.
"""

import copy
import importlib
import inspect
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

import torch
from torch import nn

from latentia.core import transaction
from latentia.core.artifacts import parse_size, save_state_dict
from latentia.core.config import FORMAT_VERSION, ConfigMixin, to_json
from latentia.core.files import read_json, refused, write_text_atomic
from latentia.core.hub import resolve_folder
from latentia.core.model import ModelMixin
from latentia.core.weight_files import check_variant, index_name, locate, single_name, variants
from latentia.errors import ArtifactError, nearest

INDEX = "model_index.json"
LIBRARIES = {
    "Autoencoder": "latentia",
    "AutoregressivePipeline": "latentia",
    "AutoregressiveScheduler": "latentia",
    "AutoregressiveTransformer": "latentia",
    "CLIPTextModel": "transformers",
    "ContinuousFlowMo": "latentia",
    "ConvClassifier": "latentia",
    "EmuEditModel": "latentia",
    "EmuEditPipeline": "latentia",
    "FlowMo": "latentia",
    "LDMBertModel": "latent_diffusion",
    "LatentDiffusionPipeline": "latentia",
    "MaskedPipeline": "latentia",
    "MaskedScheduler": "latentia",
    "MaskedTransformer": "latentia",
    "ParameterAutoencoder": "latentia",
    "ParameterDiffusionPipeline": "latentia",
    "ParameterTemplate": "latentia",
    "ParameterTokenCodec": "latentia",
    "ParameterTokenTransformer": "latentia",
    "PatchDiscriminator": "latentia",
    "PhotoFeatures": "latentia",
    "T5TaskPredictor": "latentia",
    "TaskPredictor": "latentia",
    "UNet1D": "latentia",
}
"""Library under which a public class stands in an index, where it is not `diffusers`."""
OWN_LIBRARIES = ("diffusers", "latentia")
TRANSFORMERS = "transformers"
"""The library of tokenizers (`conditioners.tokenizers` knows which of its classes are loaded) and text encoders."""
TEXT_ENCODERS = ("BertModel", "CLIPTextModelWithProjection", "T5EncoderModel")
"""Text encoders of transformers that are loaded by transformers itself."""
UNUSED = {
    ("stable_diffusion", "StableDiffusionSafetyChecker"),
    ("transformers", "CLIPFeatureExtractor"),
    ("transformers", "CLIPImageProcessor"),
    ("transformers", "CLIPVisionModelWithProjection"),
}
"""(library, class) of components that Diffusers' folders hold and that no pipeline here runs."""

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
    if source_of(library, class_name) is None:
        raise ArtifactError(
            f"{path}: {name} asks for {class_name!r} of {library!r}, which Latentia does not load; libraries: "
            f"{', '.join([*OWN_LIBRARIES, *sorted(set(LIBRARIES.values()) - set(OWN_LIBRARIES))])}. "
            "Code in a model folder is never run"
        )
    return library, class_name


def source_of(library: str, class_name: str) -> str | None:
    """Who builds a component: `own`, `tokenizer`, `transformers`, nobody (`unused`); None for a refused class."""
    if library in OWN_LIBRARIES or LIBRARIES.get(class_name) == library:
        return "own"
    if (library, class_name) in UNUSED:
        return "unused"
    if library == TRANSFORMERS and class_name in TEXT_ENCODERS:
        return "transformers"
    tokenizes = class_name.endswith(("Tokenizer", "TokenizerFast", "TokenizersBackend"))
    return "tokenizer" if library == TRANSFORMERS and tokenizes else None


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
    names = [name for name, entry in index.components.items() if entry is not None and source_of(*entry) != "unused"]
    patterns = [f"{name}/{file}" for name in names for file in _files_of(index, name, variant)]
    folder = resolve([INDEX, *patterns], lambda found: all(_has_part(found, index, n, variant) for n in names))
    return read_index(folder)


def _files_of(index: PipelineIndex, name: str, variant: str | None) -> list[str]:
    """Patterns of the files that a component may consist of; the default weights stand in for a missing variant."""
    entry = index.components[name]
    if entry is not None and source_of(*entry) == "tokenizer":
        return ["*.json", "*.txt", "*.model"]
    stem = _stem(index, name)
    if stem is None:
        return ["*config.json"]
    files = ["*config.json"]
    for tag in {None, variant}:
        single = single_name(tag, stem)
        shards = single.replace(".safetensors", "-?????-of-?????.safetensors")
        files += [single, shards, index_name(tag, stem)]
    return files


def _stem(index: PipelineIndex, name: str) -> str | None:
    """First part of the weight files' names of a component; None for one without weights."""
    entry = index.components[name]
    source = entry and source_of(*entry)
    if entry is None or source in ("tokenizer", "unused"):
        return None
    if source == "transformers":
        return "model"
    found = public_class(entry[1], ConfigMixin, "component class", index.folder / INDEX)
    return found.weights_stem if issubclass(found, ModelMixin) else None


def _has_part(folder: Path, index: PipelineIndex, name: str, variant: str | None) -> bool:
    part, stem = folder / name, _stem(index, name)
    if stem is None or not part.is_dir():
        return part.is_dir()
    try:
        locate(part, _present_variant(part, variant, stem), stem)
    except ArtifactError:
        return False
    return (part / ModelMixin.config_name).is_file()


def _present_variant(part: Path, variant: str | None, stem: str) -> str | None:
    """`variant` where the part has it, else the default: few folders hold every part in every variant."""
    return variant if variant in variants(transaction.names(part), stem) else None


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


def load_components(
    index: PipelineIndex, names: Iterable[str], dtype: torch.dtype | None, variant: str | None
) -> dict[str, Any]:
    """Build the components `names`, each from its sub-folder; None where the index has `[null, null]`.

    A part without the `variant` is read in the default one. Raises `ArtifactError` when no part has it, and for all
    missing folders at once.
    """
    present = [name for name in names if index.components[name] is not None]
    lost = [name for name in present if not (index.folder / name).is_dir()]
    if lost:
        raise ArtifactError(
            f"{index.folder / INDEX} names {', '.join(map(repr, lost))}, but {_folders(index, lost)} missing: "
            "copy or download the whole folder"
        )
    weighted = {name: stem for name in present if (stem := _stem(index, name))}
    tags = {name: _present_variant(index.folder / name, variant, stem) for name, stem in weighted.items()}
    if variant is not None and not any(tags.values()):
        held = {tag or "default" for name, stem in weighted.items() for tag in _variants(index.folder / name, stem)}
        raise ArtifactError(
            f"no part of {index.folder} has the variant {variant!r}; there are: {', '.join(sorted(held)) or 'none'}"
        )
    return {name: _load_component(index, name, dtype, tags.get(name)) for name in names}


def _folders(index: PipelineIndex, names: list[str]) -> str:
    return ", ".join(str(index.folder / name) for name in names) + (" is" if len(names) == 1 else " are")


def _variants(part: Path, stem: str) -> Iterable[str | None]:
    return variants(transaction.names(part), stem)


def _load_component(index: PipelineIndex, name: str, dtype: torch.dtype | None, variant: str | None) -> Any:
    entry = index.components[name]
    if entry is None:
        return None
    folder = index.folder / name
    source = source_of(*entry)
    if source == "tokenizer":
        from latentia.conditioners.tokenizers import load_tokenizer

        return load_tokenizer(folder, entry[1])
    if source == "transformers":
        return _load_transformers(folder, entry[1], dtype, variant)
    found = public_class(entry[1], ConfigMixin, "component class", index.folder / INDEX)
    if issubclass(found, ModelMixin):
        return found.from_pretrained(folder, dtype=dtype, variant=variant)
    return found.from_config(found.load_config(folder))


def _load_transformers(folder: Path, class_name: str, dtype: torch.dtype | None, variant: str | None) -> Any:
    """A text encoder by transformers, from safetensors and without its progress bar."""
    import transformers

    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        kind = getattr(transformers, class_name)
        return kind.from_pretrained(
            folder, dtype=dtype or torch.float32, variant=variant, use_safetensors=True, local_files_only=True
        ).eval()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} cannot be read as a {class_name}: {error}") from error
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()


def uncompiled(component: Any) -> Any:
    """The network itself, of one that `torch.compile` wraps."""
    return component._modules.get("_orig_mod", component) if isinstance(component, nn.Module) else component


def entry_of(component: object) -> list[str | None]:
    """`[library, class]` for the index."""
    component = uncompiled(component)
    if component is None:
        return [None, None]
    name = type(component).__name__
    if isinstance(component, ConfigMixin):
        return [library_of(name), name]
    return [type(component).__module__.split(".")[0], name]


def library_of(class_name: str) -> str:
    """The library under which a public class stands in an index."""
    return LIBRARIES.get(class_name, "diffusers")


def save_component(component: Any, folder: Path, variant: str | None, max_shard_size: int | str) -> None:
    """Write one component into its own sub-folder."""
    component = uncompiled(component)
    if isinstance(component, ModelMixin):
        component.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
    elif isinstance(component, ConfigMixin):
        component.save_config(folder)
    elif isinstance(component, nn.Module):
        _save_transformers(component, folder, variant, max_shard_size)
    elif component is not None:
        from latentia.conditioners.tokenizers import save_tokenizer

        save_tokenizer(component, folder)


def _save_transformers(encoder: Any, folder: Path, variant: str | None, max_shard_size: int | str) -> None:
    """A text encoder of transformers, written by us: its own `save_pretrained` deletes other variants' shards."""
    config = copy.deepcopy(encoder.config)
    config.architectures, config.dtype = [type(encoder).__name__], encoder.dtype
    with tempfile.TemporaryDirectory() as made:
        config.save_pretrained(made)
        texts = {file.name: file.read_text(encoding="utf-8") for file in Path(made).iterdir()}
    save_state_dict(
        encoder.state_dict(), folder, variant=variant, max_shard_size=max_shard_size, stem="model", texts=texts
    )


def check_target(folder: Path, components: Mapping[str, Any], variant: str | None, max_shard_size: int | str) -> None:
    """Raise for what a save would refuse half-way: while the old pipeline in `folder` is still whole."""
    check_variant(variant)
    parse_size(max_shard_size)
    for name, component in components.items():
        if isinstance(component, ModelMixin):
            component.check_other_variants(folder / name, variant)


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
