"""`latentia edit` as it is typed: one edit, several turns, a session taken up again, and all that may be wrong."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentia import LDMTextToImagePipeline
from latentia.methods.emu_edit.embedding_file import TaskEmbedding
from tiny_editor import editor, model, picture
from tiny_text import ldm

TEXT = "remove the red square"
FAST = ("--steps", 2, "--device", "cpu")


def opened(file):
    with Image.open(file) as shown:
        shown.load()
        return shown


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with an editor of 16 × 16 in it."""
    run = tmp_path_factory.mktemp("edit") / "run"
    editor().save_pretrained(run / "pipeline")
    return run


@pytest.fixture
def shot(tmp_path):
    file = tmp_path / "picture.png"
    Image.fromarray(picture(20, 31)).save(file)
    return file


@pytest.fixture
def edit(cli, folder, tmp_path):
    """`edit(picture, words, ...)` → the command's result and the picture it wrote."""

    def call(*arguments, name="out.png"):
        out = tmp_path / name
        result = cli("edit", *arguments, "--pipeline", folder, "--out", out, *FAST)
        return result, opened(out) if out.is_file() else None

    return call


def test_one_edit(edit, shot, folder, tmp_path):
    result, made = edit(shot, TEXT, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert made.size == (31, 20)
    pipe = editor()
    expected = pipe(opened(shot), TEXT, num_inference_steps=2, seed=3)
    assert np.array_equal(np.asarray(made), np.asarray(expected.images[0]))
    guess = expected.guesses[0]
    assert f"1. {TEXT}: {guess.task} (probability {guess.probability:.2f}), " in result.output
    assert " of the pixels changed\nsaved " in result.output
    assert TEXT in made.text["latentia"]


def test_options_reach_the_pipeline(edit, shot, folder):
    plain = np.asarray(edit(shot, TEXT, "--task", "add")[1])
    for number, options in enumerate(
        (("--guidance", 2), ("--image-guidance", 3), ("--seed", 1), ("--size", 24), ("--scheduler", "ddpm"))
    ):
        result, made = edit(shot, TEXT, "--task", "add", *options, name=f"{number}.png")
        assert result.exit_code == 0, result.output
        assert not np.array_equal(np.asarray(made), plain), options
        assert f"{TEXT}: add (as given)" in result.output
    kept = edit(shot, TEXT, "--threshold", 9, name="kept.png")
    assert np.array_equal(np.asarray(kept[1]), np.asarray(opened(shot)))
    assert "0.0% of the pixels changed" in kept[0].output


def test_a_learned_task_says_it_all(edit, shot, tmp_path):
    pipe = editor()
    vector = pipe.model.tasks.weight[3].detach()
    file = TaskEmbedding.of(pipe.model, vector, "mine", instruction=TEXT).save(tmp_path / "mine.safetensors")
    result, made = edit(shot, "--task", file)
    assert result.exit_code == 0, result.output
    assert "1. its own instruction: mine (as given)" in result.output
    assert np.array_equal(np.asarray(made), np.asarray(edit(shot, TEXT, "--task", "remove", name="b.png")[1]))


def test_several_turns_and_on_with_the_session(edit, shot, tmp_path, folder):
    kept = tmp_path / "kept"
    result, made = edit(shot, TEXT, "-i", "make the background grey", "--session", kept, "--seed", 2)
    assert result.exit_code == 0, result.output
    assert "1. remove the red square: " in result.output
    assert "2. make the background grey: " in result.output
    assert [file.name for file in sorted(kept.iterdir())] == ["000.png", "001.png", "002.png", "history.json"]
    session = editor().session(opened(shot), seed=2, num_inference_steps=2)
    session.edit(TEXT)
    assert np.array_equal(np.asarray(session.edit("make the background grey")), np.asarray(made))
    result, third = edit(kept, "add a green star", name="third.png")
    assert result.exit_code == 0, result.output
    assert np.array_equal(np.asarray(session.edit("add a green star")), np.asarray(third))
    assert (kept / "003.png").is_file()
    two = edit(shot, "-i", TEXT, "-i", TEXT, "--task", "add", "--task", "remove", name="two.png")[0]
    assert f"1. {TEXT}: add (as given)" in two.output
    assert f"2. {TEXT}: remove (as given)" in two.output


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "I;16", "1", "P"])
def test_pictures_of_every_mode(edit, tmp_path, mode):
    if mode == "I;16":
        given = Image.fromarray(picture(7, 90)[..., 0].astype(np.uint16) * 257)
    else:
        given = Image.fromarray(picture(7, 90)).convert(mode)
        if mode == "RGBA":
            given.putalpha(128)
    file = tmp_path / ("given.tif" if mode == "CMYK" else "given.png")
    given.save(file)
    result, made = edit(file, TEXT)
    assert result.exit_code == 0, result.output
    assert made.size == (90, 7)
    assert made.mode == ("RGBA" if mode == "RGBA" else "RGB")


def test_tiny_and_long_pictures(edit, tmp_path):
    for size in ((1, 1), (2000, 3)):
        Image.new("RGB", size, (9, 99, 200)).save(tmp_path / "given.png")
        result, made = edit(tmp_path / "given.png", TEXT)
        assert result.exit_code == 0, result.output
        assert made.size == size


def test_what_is_wrong_is_told_in_one_line(cli, edit, shot, folder, tmp_path, monkeypatch):
    other = TaskEmbedding.of(model(task_dim=8), torch.zeros(8), "mine").save(tmp_path / "other.safetensors")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(shot.read_bytes()[:300])
    (tmp_path / "folder").mkdir()
    for arguments, words in (
        ((shot, ""), "the instruction is empty: say what to change"),
        ((shot, "  "), "the instruction is empty"),
        ((shot,), "the instruction is empty"),
        ((shot, "remove the red square and " * 30), "is too long"),
        ((shot, TEXT, "--task", "remvoe"), "did you mean 'remove'"),
        ((shot, TEXT, "--task", tmp_path / "none.safetensors"), "no file"),
        ((shot, TEXT, "--task", other), "task vectors of 8"),
        ((shot, TEXT, "--task", shot), "safetensors"),
        ((shot, TEXT, "-i", ""), "the instruction number 2 is empty"),
        ((shot, TEXT, "-i", TEXT, "--task", "add", "--task", "ad"), "did you mean 'add'"),
        ((shot, TEXT, "--task", "add", "--task", "remove"), "2 tasks for 1 instructions"),
        ((tmp_path / "text.png", TEXT), "cannot be read as a picture"),
        ((tmp_path / "cut.png", TEXT), "cannot be read as a picture"),
        ((tmp_path / "absent.png", TEXT), "absent.png"),
        ((tmp_path / "folder", TEXT), "no history.json"),
        ((shot, TEXT, "--guidance", -1), "--guidance"),
        ((shot, TEXT, "--guidance", "inf"), "guidance_scale"),
        ((shot, TEXT, "--size", 17), "multiples of 4"),
        ((shot, TEXT, "--scheduler", "eular"), "euler"),
        ((shot, TEXT, "--session", shot), "is a file"),
    ):
        result, made = edit(*arguments)
        assert result.exit_code == 2, arguments
        assert words in " ".join(result.output.split()), result.output
        assert "Traceback" not in result.output
        assert made is None
    for out, words in (
        ("out.jpg", "written as PNG"),
        ("folder", "written as PNG"),
        ("text.png/out.png", "could not write"),
    ):
        result = cli("edit", shot, TEXT, "--pipeline", folder, "--out", tmp_path / out, *FAST)
        assert (result.exit_code, words in result.output) == (2, True), result.output
    other = ldm(LDMTextToImagePipeline).save_pretrained(tmp_path / "ldm")
    for pipeline, words in ((other, "which is no editor"), (tmp_path / "folder", "model_index.json")):
        result = cli("edit", shot, TEXT, "--pipeline", pipeline, "--out", tmp_path / "out.png", *FAST)
        assert (result.exit_code, words in result.output) == (2, True), result.output
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "too large" in edit(shot, TEXT)[0].output


def test_info_tells_of_an_editor(cli, folder):
    result = cli("info", folder / "pipeline")
    assert result.exit_code == 0
    for words in ("EmuEditPipeline", "EmuEditModel", "TaskPredictor", "DDIMScheduler"):
        assert words in result.output


def test_nothing_is_asked_of_a_sampler(cli, folder, tmp_path):
    result = cli("sample", folder, "--out", tmp_path / "out.png")
    assert result.exit_code == 2
    assert "draws no pictures" in result.output
