"""Files written whole or not at all, and JSON that explains itself when it cannot be read."""

import contextlib
import errno
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentia.errors import ArtifactError

ORPHAN_AGE = 3600.0
"""Seconds without a write after which an unfinished file is taken for one that a killed process left behind."""


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, fsync it, then rename it over `path`.

    A reader sees the old file or the new one, never half of either. Raises `ArtifactError` when the
    disk refuses (full, read-only), leaving the old file untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = new_beside(path)
        try:
            write(beside)
            sync(beside)
            os.replace(beside, path)
        finally:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
    except OSError as error:
        raise refused(path, error) from error
    sync_folder(path.parent)


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8 through `write_atomic`."""
    write_atomic(path, lambda beside: write_text(beside, text))


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, with the newlines it has."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def refused(path: Path, error: OSError) -> ArtifactError:
    """The error for a disk that would not take `path`; an `ArtifactError` passes unchanged."""
    if isinstance(error, ArtifactError):
        return error
    return ArtifactError(
        f"could not write {path}: {error.strerror or error}. Nothing was changed there; "
        "free some space or choose another folder"
    )


def new_beside(path: Path) -> Path:
    """Make an empty hidden file beside `path` for its successor, and sweep away long-dead ones of the same name."""
    for orphan in path.parent.glob(f".{_escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - orphan.stat().st_mtime > ORPHAN_AGE:
                orphan.unlink()
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    # Opened by hand: mkstemp would give mode 0600, and reading the umask to undo that is not thread-safe.
    os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    return beside


def _escape(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def sync(path: Path) -> None:
    """fsync a file or folder."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows wants to write to what it syncs
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """fsync a folder, so that renames inside it survive a power cut, where the system can do that."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            raise ArtifactError(f"{path} was written but may not survive a power cut: {error.strerror}") from error
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; `ArtifactError` says when it is missing, broken or not an object."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"no {path.name} in {path.parent}: is this a saved model, pipeline or run?") from None
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}): it may be truncated; save or copy it again") from None
    except OSError as error:
        raise ArtifactError(f"could not read {path}: {error.strerror or error}") from error
    if not isinstance(loaded, dict):
        raise ArtifactError(f"{path} holds a {type(loaded).__name__}, expected a JSON object")
    return loaded
