"""Edits in turn: undo, redo, the rule that keeps, and a history that can be saved and taken up again."""

import json

import numpy as np
import pytest
from PIL import Image

from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from latentia.methods.emu_edit.session import EditSession, Turn
from latentia.methods.emu_edit.thresholding import Thresholding
from tiny_editor import editor, picture

TEXTS = ["remove the red square", "make the background grey", "add a green star"]
FAST = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def pipe():
    return editor(alpha=0.2)


def arrays(*pictures):
    return [np.asarray(each) for each in pictures]


def rgb(width=24, height=20):
    return Image.fromarray(picture(height, width))


def test_turns_follow_each_other(pipe):
    session = pipe.session(rgb(), seed=3, **FAST)
    made = [session.edit(text) for text in TEXTS]
    assert session.image is made[-1]
    assert [turn.instruction for turn in session.history] == TEXTS
    image = rgb()
    for number, text in enumerate(TEXTS):
        (image,) = pipe(image, text, seed=3, sample_indices=[number], thresholding=Thresholding(0.2), **FAST).images
        assert np.array_equal(*arrays(image, made[number]))
    turn = session.history[-1]
    guess = pipe.task_predictor.predict(TEXTS[-1])[0]
    assert (turn.task, turn.probability) == (guess.task, guess.probability)
    assert turn.changed == (np.asarray(made[2]) != np.asarray(made[1])).any(-1).mean()


def test_undo_redo_and_another_way(pipe):
    session = pipe.session(rgb(), **FAST)
    first, second = session.edit(TEXTS[0], "remove"), session.edit(TEXTS[1], "background")
    assert session.undo() is first
    assert session.redo() is second
    assert session.undo() is first
    assert np.array_equal(*arrays(session.edit(TEXTS[1], "background"), second))  # the same turn, the same picture
    session.undo()
    other = session.edit(TEXTS[2], "add")
    assert [turn.instruction for turn in session.history] == [TEXTS[0], TEXTS[2]]
    assert session.history[-1] == Turn(TEXTS[2], "add", None, session.history[-1].changed)
    with pytest.raises(InputError, match="nothing to redo"):
        session.redo()
    session.undo()
    session.undo()
    assert np.array_equal(*arrays(session.image, rgb()))
    with pytest.raises(InputError, match="nothing to undo"):
        session.undo()
    assert session.redo() is first
    assert session.redo() is other


def test_the_rule_is_on_and_can_be_another(pipe):
    kept = pipe.session(rgb(), thresholding=9.0, **FAST)
    assert np.array_equal(*arrays(kept.edit(TEXTS[0]), rgb()))
    assert kept.history[0].changed == 0
    assert pipe.session(rgb()).thresholding == Thresholding(0.2)
    assert pipe.session(rgb(), thresholding=None).thresholding is None
    rule = Thresholding(0.1, "box", 3.0, "max")
    assert pipe.session(rgb(), thresholding=rule).thresholding is rule
    free, ruled = (pipe.session(Image.fromarray(picture(16, 16)), thresholding=each, **FAST) for each in (None, 0.3))
    free.edit(TEXTS[0])
    ruled.edit(TEXTS[0])
    assert ruled.history[0].changed < free.history[0].changed


def test_a_failed_turn_leaves_everything(pipe):
    session = pipe.session(rgb(), **FAST)
    session.edit(TEXTS[0])
    with pytest.raises(UnknownChoiceError, match="did you mean 'remove'"):
        session.edit(TEXTS[1], "remov")
    with pytest.raises(InputError, match="is empty"):
        session.edit("")
    with pytest.raises(InputError, match="one instruction"):
        session.edit(TEXTS)
    assert (session.position, len(session.pictures), len(session.turns)) == (1, 2, 1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_saved_and_taken_up_again(pipe, tmp_path, mode):
    given = Image.fromarray(picture(20, 24, len(mode)))
    session = pipe.session(given, seed=4, **FAST)
    for text in TEXTS:
        session.edit(text)
    session.undo()
    folder = session.save(tmp_path / "kept")
    assert sorted(file.name for file in folder.iterdir()) == [
        "000.png",
        "001.png",
        "002.png",
        "003.png",
        "history.json",
    ]
    again = EditSession.load(folder, pipe, **FAST)
    assert (again.turns, again.position, again.seed) == (session.turns, 2, 4)
    for mine, theirs in zip(session.pictures, again.pictures, strict=True):
        assert np.array_equal(*arrays(mine.convert(mode), theirs.convert(mode)))
    assert np.array_equal(*arrays(session.redo(), again.redo()))
    assert np.array_equal(*arrays(session.edit(TEXTS[0]), again.edit(TEXTS[0])))
    assert EditSession.load(folder, pipe, seed=9).seed == 9


def test_folders_that_hold_no_session(pipe, tmp_path):
    session = pipe.session(rgb(), **FAST)
    session.edit(TEXTS[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file"):
        session.save(tmp_path / "file")
    with pytest.raises(ArtifactError, match=r"no history\.json"):
        EditSession.load(tmp_path, pipe)
    folder = session.save(tmp_path / "kept")
    record = json.loads((folder / "history.json").read_text())
    for change, words in (
        ({"version": 2}, "version 2"),
        ({"turns": [{"instruction": "x"}]}, "damaged"),
        ({"turns": None}, "damaged"),
        ({"position": 5}, "position 5 of 1"),
        ({"seed": -1}, "damaged"),
    ):
        (folder / "history.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(ArtifactError, match=words):
            EditSession.load(folder, pipe)
    (folder / "history.json").write_text(json.dumps(record))
    (folder / "001.png").unlink()
    with pytest.raises(ArtifactError, match=r"lacks 001\.png"):
        EditSession.load(folder, pipe)
    (folder / "001.png").write_bytes(b"none")
    with pytest.raises(InputError, match="cannot be read"):
        EditSession.load(folder, pipe)


def test_bad_arguments_are_refused(pipe):
    for arguments, words in (
        (([rgb(), rgb()],), "one picture, got 2"),
        ((None,), "image is missing"),
    ):
        with pytest.raises(InputError, match=words):
            pipe.session(*arguments)
    for options, words in (
        ({"seed": -1}, "seed"),
        ({"task": "add"}, "gives 'task' itself"),
        ({"thresholding": "strong"}, "unknown thresholding"),
    ):
        with pytest.raises(InputError, match=words):
            pipe.session(rgb(), **options)
    with pytest.raises(InputError, match="unknown argument 'strenght'"):
        pipe.session(rgb(), strenght=1).edit(TEXTS[0])
