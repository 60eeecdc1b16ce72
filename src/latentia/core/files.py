"""Files written whole or not at all, and JSON that explains itself when it cannot be read."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentia.errors import ArtifactError


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, fsync it, then rename it over `path`.

    A reader sees the old file or the new one, never half of either. Raises `ArtifactError` when the
    disk refuses (full, read-only), leaving the old file untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        beside = Path(name)
        try:
            write(beside)
            sync(beside)
            os.chmod(beside, 0o666 & ~_umask())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        if isinstance(error, ArtifactError):
            raise
        raise ArtifactError(
            f"could not write {path}: {error.strerror or error}. Nothing was changed there; "
            "free some space or choose another folder"
        ) from error


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8 through `write_atomic`."""
    write_atomic(path, lambda beside: _write_text(beside, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """fsync a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; `ArtifactError` says when it is missing, broken or not an object."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"no {path.name} in {path.parent}: is this a saved model, pipeline or run?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}): it may be truncated; save or copy it again") from None
    if not isinstance(loaded, dict):
        raise ArtifactError(f"{path} holds a {type(loaded).__name__}, expected a JSON object")
    return loaded
