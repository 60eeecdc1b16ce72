import errno
import json
import os
from pathlib import Path

import pytest

from latentia.core import transaction
from latentia.core.transaction import JOURNAL, current, names, write_together
from latentia.errors import ArtifactError

OLD = {"a": "old a", "b": "old b", "gone": "old gone", "bystander": "mine"}
NEW = {"a": "new a", "b": "new b", "c": "new c", "bystander": "mine"}


def lay(folder: Path, content: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    return folder


def save(folder: Path) -> None:
    writes = {name: (lambda path, text=NEW[name]: path.write_text(text)) for name in ("a", "b", "c")}
    write_together(folder, writes, ["gone", "never there"])


def read(folder: Path) -> dict[str, str]:
    return {name: current(folder / name).read_text() for name in names(folder) if not name.endswith(".tmp")}


def on_disk(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in folder.iterdir()}


def test_all_files_change(tmp_path):
    save(lay(tmp_path / "d", OLD))
    assert on_disk(tmp_path / "d") == NEW
    save(tmp_path / "fresh")
    assert on_disk(tmp_path / "fresh") == {k: NEW[k] for k in "abc"}


def test_writers_run_in_order_and_one_file_needs_no_journal(tmp_path, monkeypatch):
    order: list[str] = []
    write_together(tmp_path, {n: (lambda p, n=n: order.append(n)) for n in ("z", "a", "m")})
    assert order == ["z", "a", "m"]
    replaced: list[str] = []
    real = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (replaced.append(Path(b).name), real(a, b)))
    write_together(tmp_path, {"a": lambda p: p.write_text("x")})
    assert replaced == ["a"]


@pytest.mark.parametrize("k", range(5))
def test_failed_rename_reads_as_old_or_new(tmp_path, monkeypatch, k):
    folder = lay(tmp_path / "d", OLD)
    real, count = os.replace, 0

    def replace(a, b):
        nonlocal count
        count += 1
        if count - 1 == k:
            raise OSError(errno.EIO, "Input/output error")
        real(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        if k == 4:  # the journal and three files: there is no fifth rename
            save(folder)
        else:
            with pytest.raises(ArtifactError, match="Nothing was changed" if k == 0 else "complete and will be read"):
                save(folder)
    assert read(folder) == (OLD if k == 0 else NEW)
    if k == 0:
        assert on_disk(folder) == OLD
    save(folder)
    assert on_disk(folder) == NEW


def test_failing_writer_changes_nothing(tmp_path):
    folder = lay(tmp_path / "d", OLD)

    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ArtifactError, match="No space left"):
        write_together(folder, {"a": lambda p: p.write_text("new"), "b": full}, ["gone"])
    assert on_disk(folder) == OLD


def test_kill_at_every_moment_leaves_old_or_new(tmp_path, crash):
    results = []
    for step in range(100):
        folder = lay(tmp_path / str(step), OLD)
        if not crash(step, lambda folder=folder: save(folder)):
            break
        seen = read(folder)
        assert seen in (OLD, NEW)
        results.append(seen == NEW)
        save(folder)
        assert {n: t for n, t in on_disk(folder).items() if not n.endswith(".tmp")} == NEW
    else:
        pytest.fail("the save never finished")
    assert results == sorted(results), "old, then new, and never back"
    assert len(results) > 10
    assert 0 < sum(results) < len(results)


@pytest.mark.parametrize(
    ("journal", "message"),
    [
        ({"replace": {"a": "../../etc/passwd"}, "remove": []}, "not a file of this folder"),
        ({"replace": {"/etc/passwd": "a"}, "remove": []}, "not a file of this folder"),
        ({"replace": {}, "remove": ["../x"]}, "not a file of this folder"),
        ({"replace": {"a": 3}, "remove": []}, "not a file of this folder"),
        ({"replace": []}, "not the journal"),
    ],
)
def test_hostile_journal_is_refused(tmp_path, journal, message):
    (tmp_path / JOURNAL).write_text(json.dumps(journal))
    for act in (lambda: names(tmp_path), lambda: current(tmp_path / "a"), lambda: transaction.finish(tmp_path)):
        with pytest.raises(ArtifactError, match=message):
            act()
