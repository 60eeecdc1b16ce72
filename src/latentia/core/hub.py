"""A folder or a Hub id → a local folder. Local first, cache second, network last and only when allowed."""

import os
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path

from latentia.errors import ArtifactError, InputError

SAFE_PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model")
"""What is downloaded unless the caller narrows it: no pickles, no Python files."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def resolve_folder(
    name_or_path: str | os.PathLike[str],
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
    allow_patterns: Sequence[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    complete: Callable[[Path], bool] | None = None,
) -> Path:
    """The local folder of a model or pipeline.

    An existing folder is used as it is, without a look at the network. A Hub id `owner/name` is looked up in the
    Hub's cache, and downloaded only when it is not there (or `complete(folder)` says that what is there does not
    suffice) and neither `local_files_only` nor `HF_HUB_OFFLINE` forbids it. `allow_patterns` are file names or
    patterns inside `subfolder`. Raises `ArtifactError` when there is no such folder, `InputError` for a bad argument.
    """
    if not isinstance(name_or_path, str | os.PathLike) or not os.fspath(name_or_path):
        raise InputError(f"expected a folder or a Hub id 'owner/name', got {name_or_path!r}")
    _check_subfolder(subfolder)
    name = os.fspath(name_or_path)
    path = Path(name).expanduser()
    if path.is_dir():
        return _inside(path, subfolder, name)
    if path.exists():
        raise ArtifactError(f"{name} is a file: give the folder that holds the saved model")
    if not isinstance(name_or_path, str) or not _ID.fullmatch(name) or ".." in name:
        raise ArtifactError(_no_folder(path))
    wanted = [f"{subfolder}/{p}" if subfolder else p for p in (allow_patterns or SAFE_PATTERNS)]

    def enough(root: Path) -> bool:
        folder = root / subfolder if subfolder else root
        return folder.is_dir() and (complete is None or complete(folder))

    # A mistyped `runs/demo` must not become a question to the Hub: with a folder `runs` here only the cache is asked.
    online = not (local_files_only or _offline() or path.parent.is_dir())
    cached = _cached(name, revision, wanted, cache_dir)
    if cached is not None and (enough(cached) or not online):
        return _inside(cached, subfolder, name)
    if not online:
        raise ArtifactError(_not_here(name, path))
    return _inside(_download(name, revision, wanted, cache_dir), subfolder, name)


def _check_subfolder(subfolder: str | None) -> None:
    if subfolder is not None and (not subfolder or Path(subfolder).is_absolute() or ".." in Path(subfolder).parts):
        raise InputError(f"subfolder must be a relative path inside the model's folder, got {subfolder!r}")


def _inside(root: Path, subfolder: str | None, name: str) -> Path:
    folder = root / subfolder if subfolder else root
    if folder.is_dir():
        return folder
    present = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "none"
    raise ArtifactError(f"{name} has no subfolder {subfolder!r}; subfolders there: {present}")


def _no_folder(path: Path) -> str:
    there = path.absolute().parent
    while not there.is_dir():  # the deepest folder that exists
        path, there = there, there.parent
    siblings = sorted(p.name for p in there.iterdir() if p.is_dir())
    near = get_close_matches(path.name, siblings, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    return f"no folder {path.name!r} in {there}: {hint}folders there: {', '.join(siblings[:20]) or 'none'}"


def _not_here(name: str, path: Path) -> str:
    how = f"To use a Hub repository offline, run `hf download {name}` once where there is a network, or pass its folder"
    if path.parent.is_dir():
        return f"{_no_folder(path)}. {how}"
    return f"{name!r} is not a folder here and not in the Hub's cache, and the network is not allowed. {how}"


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _cached(
    name: str, revision: str | None, patterns: Sequence[str], cache_dir: str | os.PathLike[str] | None
) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=list(patterns), cache_dir=cache_dir, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ArtifactError(f"{name!r} is neither a folder here nor a Hub id: {error}") from None
    return Path(found)


def _download(
    name: str, revision: str | None, patterns: Sequence[str], cache_dir: str | os.PathLike[str] | None
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), cache_dir=cache_dir))
    except Exception as error:  # whatever the HTTP library of the day raises
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise ArtifactError(
            f"{name!r} is not a folder here and could not be fetched from the Hub "
            f"({type(error).__name__}: {reason}). Check the name and revision; "
            f"without a network, run `hf download {name}` where there is one, copy the folder, and pass its path"
        ) from error
