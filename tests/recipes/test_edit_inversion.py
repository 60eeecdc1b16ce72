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


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("task=remove", "task"),
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
