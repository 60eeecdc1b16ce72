"""What lies at a path, told from names, JSON and safetensors headers alone: fast, without torch, running nothing."""

import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from latentia.core import transaction
from latentia.core.files import read_json
from latentia.core.weight_files import (
    PICKLES,
    STEM,
    Header,
    index_name,
    locate,
    read_header,
    single_name,
    variants,
)
from latentia.errors import ArtifactError, nearest

_TRANSFORMERS_STEM = "model"

_CONFIGS = {"scheduler_config.json": "scheduler", "tokenizer_config.json": "tokenizer", "config.json": "model"}
"""File → kind of folder that it marks, in order of precedence."""


@dataclass(slots=True)
class Description:
    """One thing on disk: what it is, how large, what is wrong with it, and its parts.

    Attributes:
        kind: pipeline, model, scheduler, tokenizer, run, safetensors, pickle, file, folder or missing.
        class_name: class that the config names.
        parameters: numbers in the tensors of one variant (the default one if present), parts included.
        dtypes: how many of them are of each dtype, by the format's names.
        bytes: size on disk of all files, parts included.
        variants: tags of the weights present; the default is called "default".
        problems: what will fail or mislead, with what to do.
    """

    path: Path
    kind: str
    class_name: str | None = None
    parameters: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    bytes: int = 0
    variants: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    parts: dict[str, "Description"] = field(default_factory=dict)

    def all_problems(self) -> list[str]:
        """The problems of this and every part, each with its part's name."""
        inner = [f"{name}: {text}" for name, part in self.parts.items() for text in part.all_problems()]
        return [*self.problems, *inner]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        values = {name: getattr(self, name) for name in self.__slots__ if name not in ("path", "parts")}
        parts = {name: part.to_dict() for name, part in self.parts.items()}
        return {"path": str(self.path), **values, "variants": list(self.variants), "parts": parts}


@dataclass(frozen=True, slots=True)
class Content:
    """What a single file of tensors holds, as a `Recogniser` sees it.

    Attributes:
        family: what the file is; None: unknown.
        parts: part → (class, names of its tensors in the file).
        variants: tags of the sets of weights.
        problems: what will fail or mislead.
    """

    family: str | None = None
    parts: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    variants: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)


Recogniser = Callable[[Header], Content]
"""Tells from a header what a file is; the knowledge of other projects' files lies above this floor."""


def describe(path: Path | str, recognise: Recogniser | None = None) -> Description:
    """Describe a file or folder; nothing raises, whatever is wrong stands in `problems`.

    `recognise` is asked about single safetensors files.
    """
    path = Path(path)
    try:
        return _describe(path, recognise)
    except OSError as error:
        kind = "folder" if path.is_dir() else "file"
        return Description(path, kind, problems=[f"cannot be read: {error.strerror or error} ({error.filename})"])


def _describe(path: Path, recognise: Recogniser | None) -> Description:
    if path.exists() and not path.is_dir():
        return _describe_file(path, recognise)
    if not path.is_dir():
        siblings = [p.name for p in path.absolute().parent.iterdir()] if path.absolute().parent.is_dir() else []
        match = nearest(path.name, siblings)
        return Description(
            path, "missing", problems=["nothing is there" + (f": did you mean {match!r}?" if match else "")]
        )
    present = transaction.names(path) if not _broken_journal(path) else {p.name for p in path.iterdir() if p.is_file()}
    found = _describe_folder(path, present)
    if found.kind == "folder":
        files = [name for name in sorted(present) if name.endswith(".safetensors")]
        found.parts = {name: describe(path / name, recognise) for name in files}
        _add_parts(found)
    found.bytes = _bytes(p for p in path.rglob("*") if p.is_file())
    found.problems += _leftovers(path)
    return found


def _describe_folder(path: Path, present: set[str]) -> Description:
    if "model_index.json" in present:
        return _describe_pipeline(path)
    if "metrics.jsonl" in present or (path / "checkpoints").is_dir():
        return _describe_run(path)
    weights = any(variants(present, stem) for stem in (STEM, _TRANSFORMERS_STEM))
    kind = next((kind for file, kind in _CONFIGS.items() if file in present), "model" if weights else "folder")
    found = Description(path, kind)
    if kind == "model":
        _describe_model(found, present)
    elif kind == "scheduler":
        _take_class(found, "scheduler_config.json")
    found.problems += [f"{name} is a pickle; it is not read" for name in sorted(present) if name.endswith(PICKLES)]
    return found


def _describe_file(path: Path, recognise: Recogniser | None) -> Description:
    size = path.stat().st_size
    if path.suffix in PICKLES:
        advice = f"convert to safetensors (latentia convert {path.name} {path.stem}.safetensors reads tensors alone)"
        return Description(path, "pickle", bytes=size, problems=[f"pickles can run code when read: {advice}"])
    if path.suffix != ".safetensors":
        found = Description(path, "file", bytes=size)
        if _begins(path, b"GGUF"):
            found.problems.append("a GGUF file (quantised weights), which is not read: find it as safetensors")
        return found
    found = Description(path, "safetensors", bytes=size)
    try:
        header = read_header(path)
    except ArtifactError as error:
        found.problems.append(str(error))
        return found
    _count(found, [header])
    if recognise is not None:
        _add_content(found, header, recognise(header))
    return found


def _begins(path: Path, magic: bytes) -> bool:
    if not path.is_file():  # a device or a pipe may never end
        return False
    with open(path, "rb") as file:
        return file.read(len(magic)) == magic


def _add_content(found: Description, header: Header, content: Content) -> None:
    found.class_name, found.variants = content.family, content.variants
    found.problems += content.problems
    for name, (class_name, tensors) in content.parts.items():
        part = Description(found.path, "model", class_name)
        held = {name: header.tensors[name] for name in tensors if name in header.tensors}
        _count(part, [Header(held, {}, 0)])
        part.bytes = sum(entry.end - entry.begin for entry in held.values())
        found.parts[name] = part


def _describe_pipeline(path: Path) -> Description:
    found = Description(path, "pipeline")
    listed = _take_class(found, "model_index.json")
    for name, value in sorted(listed.items()):
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2:
            continue
        library, class_name = value
        if class_name is None:
            continue
        if not transaction.is_plain_name(name):
            found.problems.append(f"model_index.json names the part {name!r}, which lies outside: it will be refused")
        elif not (path / name).is_dir():
            found.problems.append(f"part {name!r} ({class_name}) has no folder: copy the pipeline again, whole")
        else:
            part = describe(path / name)
            found.parts[name] = part
            if library == "diffusers" and part.class_name not in (None, class_name):
                part.problems.append(f"model_index.json says {class_name}, its own config {part.class_name}")
    _add_parts(found)
    return found


def _describe_run(path: Path) -> Description:
    found = Description(path, "run")
    for inner in sorted(p for p in path.iterdir() if p.is_dir() and (p / "model_index.json").is_file()):
        found.parts[inner.name] = describe(inner)
    codec = path / "pipeline"
    if codec.is_dir() and "pipeline" not in found.parts:
        found.parts["pipeline"] = describe(codec)
    if "pipeline" not in found.parts:
        found.problems.append("no pipeline folder yet: the run is not finished; continue it with --resume")
    _add_parts(found)
    return found


def _describe_model(found: Description, present: set[str]) -> None:
    if "config.json" in present:
        config = _take_class(found, "config.json")
    else:
        config = {}
        found.problems.append("no config.json: the class and its arguments are unknown")
    foreign = "architectures" in config or (found.class_name is None and variants(present, _TRANSFORMERS_STEM))
    stem = _TRANSFORMERS_STEM if foreign else STEM
    if foreign and isinstance(config.get("architectures"), list) and config["architectures"]:
        found.class_name = str(config["architectures"][0])
        found.problems = [text for text in found.problems if "_class_name" not in text]
    tags = variants(present, stem)
    found.variants = tuple(sorted(tag or "default" for tag in tags))
    if not tags:
        found.problems.append(f"no {single_name(None, stem)}")
    for number, tag in enumerate(sorted(tags, key=lambda tag: tag or "")):
        _describe_variant(found, tag, stem, set(tags[tag]), counted=number == 0)


def _describe_variant(found: Description, tag: str | None, stem: str, files: set[str], counted: bool) -> None:
    try:
        located = locate(found.path, tag, stem)
        headers = [read_header(file) for file in located.files]
    except ArtifactError as error:
        found.problems.append(str(error))
        return
    if counted:
        _count(found, headers)
    if located.weight_map is not None:
        held = {name for header in headers for name in (*header.tensors, *header.metadata)}
        lost = sorted(set(located.weight_map) - held)
        if lost:
            found.problems.append(f"the shards lack {', '.join(lost)}: copy the folder again, whole")
    used = set(located.weight_map.values()) if located.weight_map else {single_name(tag, stem)}
    stale = files - used - ({index_name(tag, stem)} if located.index else set())
    if stale:
        found.problems.append(f"left from another save and not read: {', '.join(sorted(stale))}; save again or delete")


def _take_class(found: Description, name: str) -> dict[str, Any]:
    try:
        config = read_json(transaction.current(found.path / name))
    except ArtifactError as error:
        found.problems.append(str(error))
        return {}
    class_name = config.get("_class_name")
    if not isinstance(class_name, str):
        found.problems.append(
            f"{name} has no _class_name that is a name, but {json.dumps(class_name)}: no class to build"
        )
        return config
    found.class_name = class_name
    known = importlib.import_module("latentia").__all__
    if class_name not in known:
        match = nearest(class_name, known)
        found.problems.append(f"Latentia has no class {class_name}" + (f" (nearest: {match})" if match else ""))
    return config


def _count(found: Description, headers: Iterable[Header]) -> None:
    counts: Counter[str] = Counter(found.dtypes)
    for header in headers:
        for entry in header.tensors.values():
            counts[entry.dtype] += prod(entry.shape)
    found.dtypes = dict(counts)
    found.parameters = counts.total()


def _add_parts(found: Description) -> None:
    counts: Counter[str] = Counter()
    for part in found.parts.values():
        counts.update(part.dtypes)
    found.dtypes, found.parameters = dict(counts), counts.total()


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _broken_journal(path: Path) -> bool:
    try:
        transaction.names(path)
    except ArtifactError:
        return True
    return False


def _leftovers(path: Path) -> list[str]:
    problems = []
    if (path / transaction.JOURNAL).exists():
        problems.append("a save was interrupted here: it reads as complete; saving again tidies the files")
        if _broken_journal(path):
            problems[0] = f"{transaction.JOURNAL} is broken or unsafe: delete it"
        return problems
    orphans = sorted(p.name for p in path.glob(".*.tmp"))
    if orphans:
        problems.append(f"unfinished files of an interrupted save: {', '.join(orphans)}; delete them")
    return problems
