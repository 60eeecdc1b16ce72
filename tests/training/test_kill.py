"""kill -9 at any moment of training, saving included, then resume: the run of one never killed."""

import os
import random
from pathlib import Path

import pytest

import latentia.training.checkpoint as checkpoint
from latentia.training import log

KILLED = 9


def phases(lab):
    return [lab.denoise(2, "first"), lab.denoise(4, "second")]


def settings(lab):
    return lab.quiet(save_every=2, log_every=1)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return {}


def uninterrupted(lab, tmp_path, reference):
    if not reference:
        out = tmp_path / "whole"
        reference["weights"] = lab.weights(lab.train(phases(lab), out, settings(lab)))
        reference["lines"] = lab.lines(out)
    return reference


def check(lab, out, expected):
    results = lab.train(phases(lab), out, settings(lab), resume=True)
    lab.assert_same(lab.weights(results), expected["weights"])
    assert lab.lines(out) == expected["lines"]
    assert sorted(p.relative_to(out / "checkpoints").as_posix() for p in (out / "checkpoints").glob("*/*")) == [
        "first/final",
        "second/final",
    ]


def die_at(n):
    """Make the n-th touch of the disk the process's last: before it, or halfway through a file."""
    count = 0

    def deadly(function, halfway=False):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == n:
                if halfway:
                    Path(args[1]).write_bytes(b"\x08\0\0\0")
                os._exit(KILLED)
            return function(*args, **kwargs)

        return call

    checkpoint.save_file = deadly(checkpoint.save_file, halfway=True)
    checkpoint.sync_folder = deadly(checkpoint.sync_folder)
    checkpoint.discard = deadly(checkpoint.discard)
    checkpoint.shutil.rmtree = deadly(checkpoint.shutil.rmtree)
    Path.rename = deadly(Path.rename)
    Path.mkdir = deadly(Path.mkdir)
    Path.write_text = deadly(Path.write_text)
    log.MetricsFile.write = deadly(log.MetricsFile.write)


@pytest.mark.parametrize("part", range(4))
def test_killed_at_every_touch_of_the_disk(lab, tmp_path, reference, part):
    expected = uninterrupted(lab, tmp_path, reference)
    killed = 0
    for n in range(1 + part, 1000, 4):
        out = tmp_path / str(n)

        def run(out=out, n=n):
            die_at(n)
            lab.train(phases(lab), out, settings(lab))

        if lab.in_child(run) == 0:
            break
        killed += 1
        check(lab, out, expected)
    assert killed > 10


def test_killed_at_random_moments(lab, tmp_path, reference):
    expected = uninterrupted(lab, tmp_path, reference)
    choose = random.Random(0)
    codes = []
    for i in range(8):
        out = tmp_path / f"random{i}"

        def run(out=out):
            lab.train(phases(lab), out, settings(lab), resume=True)

        for _ in range(5):
            codes.append(lab.in_child(run, kill_after=choose.uniform(0, 0.03)))
        check(lab, out, expected)
    assert codes.count(-9) > 4
