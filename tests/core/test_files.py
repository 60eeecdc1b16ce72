import errno
import os
import stat
import threading
import time
from pathlib import Path

import pytest

from latentia.core import files
from latentia.core.files import read_json, write_atomic, write_text_atomic
from latentia.errors import ArtifactError


def refuse(number):
    def raises(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return raises


def test_new_file_has_the_permissions_of_any_other(tmp_path):
    write_text_atomic(tmp_path / "deep" / "a.txt", "one\ntwo\n")
    (tmp_path / "plain").write_text("x")
    mode, plain = ((tmp_path / p).stat().st_mode for p in ("deep/a.txt", "plain"))
    assert stat.S_IMODE(mode) == stat.S_IMODE(plain)
    assert (tmp_path / "deep" / "a.txt").read_bytes() == b"one\ntwo\n"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_refusal_keeps_the_old_file_and_leaves_nothing_beside(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, call, refuse(errno.ENOSPC))
    with pytest.raises(ArtifactError, match=r"No space left on device.*free some space"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_failing_writer_keeps_the_old_file_and_its_own_error(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(beside: Path) -> None:
        beside.write_text("ha")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write_atomic(path, write)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_folder_that_is_a_file_is_an_artifact_error(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(ArtifactError, match="could not write"):
        write_text_atomic(tmp_path / "f" / "a.txt", "x")


def test_folder_sync_is_skipped_where_the_system_cannot(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            refuse(errno.EINVAL)()
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text_atomic(tmp_path / "a", "x")
    assert len(calls) == 2
    assert (tmp_path / "a").read_text() == "x"


def test_dead_leftovers_are_swept_and_living_ones_kept(tmp_path):
    dead, living, other = (tmp_path / n for n in (".a[1].txt.dead.tmp", ".a[1].txt.live.tmp", ".b.txt.dead.tmp"))
    for path in (dead, living, other):
        path.write_text("")
    for path in (dead, other):
        os.utime(path, (time.time() - 2 * files.ORPHAN_AGE,) * 2)
    write_text_atomic(tmp_path / "a[1].txt", "x")
    assert {p.name for p in tmp_path.iterdir()} == {"a[1].txt", living.name, other.name}


def test_many_threads_write_one_file_whole(tmp_path):
    path = tmp_path / "a.txt"
    texts = [str(i) * 5000 for i in range(8)]
    threads = [threading.Thread(target=write_text_atomic, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1', "not valid JSON.*truncated"),
        (b"", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1, 2]", "holds a list, expected a JSON object"),
    ],
)
def test_broken_json_says_what_is_wrong(tmp_path, content, message):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        read_json(tmp_path / "c.json")


def test_missing_json_says_where(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ArtifactError, match=f"no c.json in {folder}"):
            read_json(folder / "c.json")
    (tmp_path / "c.json").mkdir()
    with pytest.raises(ArtifactError, match="could not read"):
        read_json(tmp_path / "c.json")
