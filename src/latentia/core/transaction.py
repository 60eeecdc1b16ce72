"""Several files of one folder replaced as one: after a crash at any moment all are old, or all are new.

1. Every new file is written and fsynced under a hidden name beside its target.
2. A journal, itself renamed into place, lists the renames and removals still to be done. This is the one
   moment of change: before it the folder reads as old, after it as new.
3. The renames and removals are done and the journal goes.

A reader asks `current(path)`, which follows a journal that a crash left behind, and changes nothing on disk.
The next writer finishes such a journal first.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from latentia.core.files import new_beside, read_json, refused, sync, sync_folder, write_atomic, write_text
from latentia.errors import ArtifactError

JOURNAL = ".latentia-save.json"
"""Name of the journal of an unfinished save."""


def write_together(folder: Path, writes: Mapping[str, Callable[[Path], None]], remove: Iterable[str] = ()) -> None:
    """Write the named files of `folder` and remove others, all or nothing.

    `writes` maps a file's plain name to the function that fills the path it is given, in the order in which
    the files shall appear. One writer at a time per folder. Raises `ArtifactError` when the disk refuses.
    """
    gone = [name for name in remove if name not in writes]
    beside: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        finish(folder)
        try:
            for name, write in writes.items():
                beside[name] = new_beside(folder / name)
                write(beside[name])
                sync(beside[name])
            if len(writes) == 1 and not gone:
                ((name, path),) = beside.items()
                os.replace(path, folder / name)
                sync_folder(folder)
                return
            plan = {"replace": {name: path.name for name, path in beside.items()}, "remove": gone}
            write_atomic(folder / JOURNAL, lambda path: write_text(path, json.dumps(plan)))
        except BaseException:
            if not (folder / JOURNAL).exists():  # not committed: nothing has changed
                _discard(beside.values())
            raise
    except OSError as error:
        raise refused(folder, error) from error
    finish(folder)


def finish(folder: Path) -> bool:
    """Carry out what an interrupted save left undone in `folder`; True when there was something."""
    plan = _plan(folder)
    if plan is None:
        return False
    try:
        for name, beside in plan[0].items():
            with contextlib.suppress(FileNotFoundError):  # renamed before the crash
                os.replace(folder / beside, folder / name)
        for name in plan[1]:
            (folder / name).unlink(missing_ok=True)
        sync_folder(folder)
        (folder / JOURNAL).unlink(missing_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"the new files in {folder} are complete and will be read, but could not all be moved to their "
            f"names: {error.strerror or error}. Make the folder writable and save again"
        ) from error
    sync_folder(folder)
    return True


def current(path: Path) -> Path:
    """The file that holds `path` now: `path` itself, unless an interrupted save left its successor beside it."""
    plan = _plan(path.parent)
    beside = plan[0].get(path.name) if plan else None
    return path.with_name(beside) if beside and path.with_name(beside).exists() else path


def names(folder: Path) -> set[str]:
    """Names of the files in `folder` as they read now, an interrupted save followed to its end."""
    with os.scandir(folder) as entries:
        found = {entry.name for entry in entries if not entry.is_dir()}
    plan = _plan(folder)
    if plan:
        found = (found - set(plan[1]) - set(plan[0].values()) - {JOURNAL}) | set(plan[0])
    return found


def _plan(folder: Path) -> tuple[dict[str, str], list[str]] | None:
    journal = folder / JOURNAL
    if not journal.exists():
        return None
    try:
        loaded = read_json(journal)
    except ArtifactError:
        if not journal.exists():  # a writer finished between the two lines
            return None
        raise
    replace, remove = loaded.get("replace"), loaded.get("remove")
    if not isinstance(replace, dict) or not isinstance(remove, list):
        raise ArtifactError(f"{journal} is not the journal of a save: delete it if it is not yours")
    # The journal may have come with a downloaded folder: it may speak of files of this folder only.
    for name in (*replace, *replace.values(), *remove):
        if not isinstance(name, str) or not is_plain_name(name):
            raise ArtifactError(f"{journal} names {name!r}, which is not a file of this folder: delete the journal")
    return replace, remove


def is_plain_name(name: str) -> bool:
    """Whether `name` names a file of the folder it is found in: no path, no drive, no way up."""
    return name not in ("", ".", "..") and not any(c in name for c in "/\\:\0")


def _discard(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
