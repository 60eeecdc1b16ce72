"""`edit-inversion` on the tiniest editor: three modes, what they leave behind, what they refuse."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from latentia import EmuEditPipeline
from latentia.core.files import read_json
from latentia.errors import ConfigError, InputError
from latentia.methods.emu_edit.embedding_file import TaskEmbedding
from latentia.recipes.edit_inversion import edit_inversion
from latentia.recipes.edit_inversion_pairs import PairRows
from latentia.recipes.overrides import override
from latentia.recipes.run import load_recipe, run_recipe
from tiny_editor import editor, picture

SMALL = ("batch_size=2", "judged=2", "sampling_steps=2", "device=cpu", "save_every=2", "log_every=2")
CALL = {"num_inference_steps": 2, "seed": 1, "output_type": "np"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "edit"
    editor(gate=True).save_pretrained(folder / "pipeline")
    return folder


def run(base, out, *more, steps=4, resume=False):
    recipe = override(edit_inversion(), [*SMALL, f"base={base}", f"steps={steps}", *more])
    run_recipe(recipe, out, progress=False, resume=resume)
    return out


@pytest.fixture(scope="module")
def inverted(base, tmp_path_factory):
    return run(base, tmp_path_factory.mktemp("inverted") / "run", "task=inpaint", "examples=3")


def test_an_inversion_leaves_a_small_file_that_edits(base, inverted):
    file = inverted / "inpaint.safetensors"
    assert file.stat().st_size < 8192
    pipe = EmuEditPipeline.from_pretrained(base / "pipeline")
    learned = TaskEmbedding.load(file, pipe.model)
    assert (learned.name, learned.examples, learned.instruction) == ("inpaint", 3, "fill in the grey rectangle")
    image = Image.fromarray(picture())
    made = pipe(image, learned.instruction, task=str(file), **CALL).images
    grown = EmuEditPipeline.from_pretrained(inverted / "pipeline")
    assert grown.task_names["inpaint"] == 16
    assert np.array_equal(made, grown(image, learned.instruction, task="inpaint", **CALL).images)
    state, before = grown.model.state_dict(), pipe.model.state_dict()
    assert torch.equal(state["tasks.weight"][:-1], before["tasks.weight"])
    assert all(torch.equal(state[k], v) for k, v in before.items() if k != "tasks.weight")


def test_numbers_stand_beside_start_null_and_copy(inverted):
    told = read_json(inverted / "numbers.json")
    assert list(told["numbers"]) == ["learned", "start", "no task", "copy"]
    assert (told["mode"], told["examples"], told["n"], told["steps"]) == ("invert", 3, 2, 4)
    assert told["learned"] == EmuEditPipeline.from_pretrained(inverted / "pipeline").model.task_dim
    assert told["start"] == min(told["start_losses"], key=told["start_losses"].get)
    assert told["numbers"]["copy"]["success"] == told["numbers"]["copy"]["gain"] == 0
    page = (inverted / "report.html").read_text()
    assert "One task vector" in page
    assert f"<td>{told['numbers']['learned']['gain']:.3f}</td>" in page


def test_fine_tuning_moves_all_weights_and_scratch_knows_one_task(base, tmp_path):
    tuned = run(base, tmp_path / "tuned", "task=contour", "mode=finetune", "examples=3")
    before = EmuEditPipeline.from_pretrained(base / "pipeline")
    after = EmuEditPipeline.from_pretrained(tuned / "pipeline")
    assert after.task_names["contour"] == 16
    moved = [
        k for k, v in before.model.state_dict().items() if not torch.equal(v, after.model.state_dict()[k][: len(v)])
    ]
    assert "unet.conv_in.weight" in moved
    assert not (tuned / "contour.safetensors").exists()
    scratch = run(base, tmp_path / "scratch", "task=contour", "mode=scratch", "examples=5")
    alone = EmuEditPipeline.from_pretrained(scratch / "pipeline")
    assert alone.task_names == {"contour": 0}
    assert alone.task_predictor is None
    assert list(read_json(scratch / "numbers.json")["numbers"]) == ["learned", "copy"]


def test_a_stopped_run_goes_on_bit_for_bit(base, tmp_path):
    chosen = ("task=inpaint", "examples=3", "optim.schedule=constant")  # a rate that does not depend on the end
    whole = run(base, tmp_path / "whole", *chosen)
    run(base, tmp_path / "run", *chosen, steps=2)
    again = run(base, tmp_path / "run", *chosen, resume=True)
    one, other = (TaskEmbedding.load(folder / "inpaint.safetensors").vector for folder in (whole, again))
    assert torch.equal(one, other)


def test_latents_are_inverted_too(tmp_path):
    editor(latent=True).save_pretrained(tmp_path / "base")
    out = run(tmp_path / "base", tmp_path / "run", "task=super_resolution", "examples=2")
    assert (out / "super-resolution.safetensors").is_file()
    assert load_recipe(out).task == "super-resolution"


def pairs(folder, count=3, **leave_out):
    folder.mkdir()
    lines = []
    for i in range(count):
        before, after = picture(20, 24, seed=i), picture(20, 24, seed=i)
        after[4:12, 4:12] = 255 - after[4:12, 4:12]
        Image.fromarray(before).save(folder / f"{i}a.png")
        Image.fromarray(after).save(folder / f"{i}b.png")
        if "conditioning_image" in leave_out:
            (folder / f"{i}a.png").unlink()
        line = {"file_name": f"{i}b.png", "conditioning_image": f"{i}a.png", "text": "turn the middle over"}
        lines.append({key: value for key, value in line.items() if key not in leave_out})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_a_task_of_ones_own_is_learned_from_pictures(base, tmp_path):
    data = pairs(tmp_path / "data")
    out = run(base, tmp_path / "run", "task=turned", f"data={data}", "examples=2")
    learned = TaskEmbedding.load(out / "turned.safetensors")
    assert (learned.name, learned.examples, learned.instruction) == ("turned", 2, "turn the middle over")
    told = read_json(out / "numbers.json")
    assert told["n"] == 2
    assert told["numbers"]["copy"]["gain"] == 0
    assert "learned from" in (out / "report.html").read_text()
    rows = PairRows(str(data), "turned", 16)
    assert len(rows) == 3
    row = rows.row(1)
    assert row.image.shape == row.target.shape == (16, 16, 3)
    assert 0 < row.mask.mean() < 0.7
    assert np.abs(row.image.astype(int) - row.target)[~row.mask].max() < 8


def test_examples_of_ones_own_that_will_not_do(base, tmp_path):
    with pytest.raises(InputError, match="no data called"):
        run(base, tmp_path / "a", "task=mine", f"data={tmp_path / 'nothing'}")
    with pytest.raises(InputError, match="no caption"):
        run(base, tmp_path / "b", "task=mine", f"data={pairs(tmp_path / 'silent', text=True)}")
    with pytest.raises(InputError, match="conditioning_image"):
        run(base, tmp_path / "c", "task=mine", f"data={pairs(tmp_path / 'half', conditioning_image=True)}")
    said = run(base, tmp_path / "d", "task=mine", f"data={tmp_path / 'silent'}", "instruction=turn it")
    assert TaskEmbedding.load(said / "mine.safetensors").instruction == "turn it"
    long = "turn " * 30
    with pytest.raises(InputError, match="too long for"):
        run(base, tmp_path / "e", "task=mine", f"data={tmp_path / 'silent'}", f"instruction={long}")
    with pytest.raises(InputError, match="letters, digits"):
        override(edit_inversion(), ["data=somewhere", "task=../mine"])


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("task=inpant", "did you mean 'inpaint'"),
        ("mode=train", "mode"),
        ("examples=0", "examples"),
    ],
)
def test_what_is_not_there_is_refused(typed, words):
    with pytest.raises(InputError, match=words):
        override(edit_inversion(), [typed])
    assert json.loads(edit_inversion().to_json())["task"] == "super-resolution"


def test_bases_that_will_not_do(base, inverted, tmp_path):
    with pytest.raises(InputError, match="train edit-scenes"):
        run(tmp_path / "nothing", tmp_path / "run")
    with pytest.raises(InputError, match="knows 'inpaint' already"):
        run(inverted, tmp_path / "run2", "task=inpaint")
    with pytest.raises(InputError, match="start"):
        run(base, tmp_path / "run3", "start=remov")
    with pytest.raises((InputError, ConfigError), match="scratch"):
        override(edit_inversion(), ["mode=scratch", "start=mean"])
