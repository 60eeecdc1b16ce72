"""`edit-scenes` with a handful of steps: everything is trained, saved, judged and told; and its overrides."""

import json

import numpy as np
import pytest
import torch

from latentia import DiffusionPipeline, EmuEditPipeline
from latentia.conditioners.prompts import token_ids
from latentia.errors import InputError
from latentia.methods.emu_edit.datasets import SceneRows
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES
from latentia.recipes.edit_scenes import TASKS, edit_scenes
from latentia.recipes.edit_scenes_judging import Story, measured, preview, tasks_for
from latentia.recipes.edit_scenes_words import Facts, FactsObjective, facts
from latentia.recipes.overrides import override
from latentia.recipes.recipe import Bench
from latentia.recipes.run import run_recipe

TINY = [
    *("steps=2", "batch_size=4", "image_size=32", "log_every=1", "preview_every=2", "precision=no"),
    *("text.steps=2", "text.batch_size=4", "text.width=16", "text.layers=1", "text.vocab_size=560", "text.examples=60"),
    *("editor.channels=8,8,16", "editor.groups=4", "editor.head_dim=8", "editor.task_dim=8"),
    *("predictor.steps=5", "predictor.examples=60", "predictor.batch_size=8"),
    *("judged=2", "calibrated=1", "sampling_steps=2"),
]
SOME = "tasks=add,segment,detect"


@pytest.fixture(scope="module", autouse=True)
def few_facts():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("latentia.recipes.edit_scenes_words.COLLECTED", 60)
        yield


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    out = tmp_path_factory.mktemp("edit_scenes")
    run_recipe(override(edit_scenes(), [*TINY, SOME]), out, progress=False)
    return out, json.loads((out / "numbers.json").read_text())


def test_names_are_the_tasks_of_the_world():
    assert TASKS == TASK_NAMES
    assert len(edit_scenes().drawn()) == len(TASKS)
    assert override(edit_scenes(), ["tasks=add,style"]).drawn() == (2.0, 0.35)


def test_every_task_is_judged_beside_copy_and_oracle(told):
    _, found = told
    assert list(found["tasks"]) == ["add", "detect", "segment"]
    for name, values in found["tasks"].items():
        assert values["n"] == 2
        assert values["copy"]["success"] == values["copy"]["gain"] == 0
        assert values["oracle"]["success"] == values["oracle"]["gain"] == 1
        assert 0 <= values["success"] <= 1
        assert values["group"] == ("region" if name == "add" else "vision")
    assert set(found["asked"]) == {"region success", "mask IoU", "box IoU", "PSNR outside"}
    assert found["reached"]["mask IoU"] == found["tasks"]["segment"]["mask_iou"]
    assert found["predictor"]["n"] == 1000
    assert 0 <= found["task_told_rightly"] <= 1
    assert len(found["guidance"]["tried"]) == 4
    assert set(found["training"]) == {"words", "editor", "predictor"}
    assert found["split"] == "test"


def test_pipeline_opens_and_edits(told):
    out, _ = told
    pipe = DiffusionPipeline.from_pretrained(out / "pipeline")
    assert isinstance(pipe, EmuEditPipeline)
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert pipe.scheduler.config.rescale_betas_zero_snr
    assert pipe.scheduler.config.prediction_type == "sample"
    assert pipe.task_predictor.tasks == ("add", "segment", "detect")
    pipe.set_progress_bar_config(disable=True)
    row = SceneRows("test", 1, 32, tasks=["add"]).row(0)
    (image,) = pipe(torch.from_numpy(row.image).movedim(-1, 0) / 255, row.instruction, task="add", seed=0).images
    assert image.size == (32, 32)


def test_page_and_previews(told):
    out, _ = told
    page = (out / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    assert "Task by task" in page
    assert (out / "overview.png").is_file()
    assert list((out / "samples").iterdir())


def test_what_a_removed_thing_hides_is_told_beside_it(tmp_path):
    run_recipe(override(edit_scenes(), [*TINY, "tasks=remove"]), tmp_path, progress=False)
    found = json.loads((tmp_path / "numbers.json").read_text())["filled_in_where_told"]["remove"]
    assert found["n"] == 2
    assert found["psnr_outside"] == 60
    assert f"succeeds in {found['success']:.2f}" in (tmp_path / "report.html").read_text()


def test_without_task_embedding_nothing_tells_tasks(tmp_path):
    recipe = override(edit_scenes(), [*TINY, "tasks=remove,color", "task_embedding=none"])
    run_recipe(recipe, tmp_path, progress=False)
    found = json.loads((tmp_path / "numbers.json").read_text())
    assert set(found["training"]) == {"words", "editor"}
    assert found["predictor"] == {}
    pipe = EmuEditPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.task_predictor is None
    assert not pipe.model.to_time.weight.any()
    assert tasks_for(recipe, pipe, [1, 2]) == ["none", "none"]


def test_true_tasks_are_taken_as_given(told):
    out, _ = told
    pipe = EmuEditPipeline.from_pretrained(out / "pipeline")
    rows = [SceneRows("test", 2, 32, tasks=["detect"]).row(i) for i in range(2)]
    assert tasks_for(override(edit_scenes(), ["task_embedding=true"]), pipe, rows) == ["detect", "detect"]
    guessed = tasks_for(edit_scenes(), pipe, rows)
    assert guessed == [guess.task for guess in pipe.task_predictor.predict([row.instruction for row in rows])]


def test_preview_shows_input_edit_and_target():
    recipe, bench = override(edit_scenes(), [*TINY, SOME]), Bench()
    for _, build in recipe.phases(bench)[:2]:
        build()
    shown = preview(recipe, bench)
    assert shown.shape == (8, 3, 32, 96)
    assert shown.abs().max() <= 1


def test_facts_say_what_the_instruction_says():
    rows = SceneRows("train", 400, 16)
    by_task = {}
    for i in range(400):
        row = rows.row(i)
        by_task.setdefault(row.task, []).append((row, facts(row)))
    for row, found in by_task["local"]:
        assert "task:local" in found
        if row.meta["kind"] == "local/recolour":
            (colour,) = [fact for fact in found if fact.startswith("new colour:")]
            assert colour.removeprefix("new colour:") in row.instruction
    for row, found in by_task["text"]:
        if row.meta["kind"] == "text/replace":
            assert f"written word:{row.meta['after'].writing.word}" in found
    for _, found in by_task["add"]:
        assert len([fact for fact in found if fact.startswith(("new colour:", "new shape:", "new size:"))]) == 3


def test_words_are_learnt_from_the_maximum_of_the_tokens():
    recipe = override(edit_scenes(), [*TINY, SOME])
    tokenizer = recipe.tokenizer()
    data = Facts(lambda texts: token_ids(tokenizer, texts)[:, 0], 100, 0, recipe.tasks, recipe.drawn())
    batch = data.batch([3, 5])
    assert batch["input_ids"].shape == (2, 36)
    assert batch["facts"].shape == (2, len(data.places))
    assert batch["facts"][0].sum() >= 3
    untold = Facts(data.encode, 100, 0, recipe.tasks, recipe.drawn(), tell_task=False).places
    assert set(data.places) - set(untold) == {fact for fact in data.places if fact.startswith(("task:", "kind:"))}
    assert "task:add" in data.places
    torch.manual_seed(0)
    objective = FactsObjective(recipe.text.build(), torch.nn.Linear(16, len(data.places)))
    loss = objective(batch)
    assert float(loss.total.detach()) == pytest.approx(len(data.places) * np.log(2), rel=0.5)
    assert 0 <= loss.parts["found"] <= 1


def test_editor_keeps_what_tells_facts():
    recipe, bench = override(edit_scenes(), [*TINY, SOME, "editor.facts=true"]), Bench()
    for _, build in recipe.phases(bench)[:2]:
        build()
    model, head = bench.module("model"), bench.module("facts")
    assert model.config.facts == head.out_features > 10
    assert torch.equal(model.facts.weight, head.weight)
    assert not model.facts.weight.requires_grad
    assert model.of_facts.weight.requires_grad


def test_means_and_what_a_copy_beats():
    story = Story(edit_scenes(), [])
    story.table = {
        "add": {"success": 0.5, "gain": 0.4, "psnr_outside": 30.0},
        "remove": {"success": 0.7, "gain": 0.6, "psnr_outside": 40.0},
        "color": {"success": 0.0, "gain": 0.0},
    }
    story.copy = {name: {"success": 0.0, "gain": 0.0} for name in story.table}
    reached = story.means()
    assert reached["region success"] == pytest.approx(0.6)
    assert reached["PSNR outside"] == pytest.approx(35)
    assert reached["success"] == pytest.approx(0.4)
    assert "mask IoU" not in reached
    assert story.beaten() == ["color"]


def test_edits_are_measured_in_order():
    rows = [SceneRows("test", 1, 16, tasks=[name]).row(0) for name in ("remove", "segment")]
    table = measured(rows, [rows[0].target, rows[1].image])
    assert table["remove"]["success"] == 1
    assert table["segment"]["success"] == 0


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["tasks=add,segmant"], "segmant"),
        (["tasks=add,add"], "different"),
        (["weights=1,2"], "2 numbers for 16 tasks"),
        (["editor.copy_gate=false"], "goes with noise.prediction_type=v_prediction"),
        (["editor.copy_gate=false", "noise.prediction_type=v_prediction"], "gate_weight"),
        (
            ["editor.copy_gate=false", "noise.prediction_type=v_prediction", "objective.gate_weight=0"],
            "editor.affine and editor.paints need",
        ),
        (["image_size=60"], "image_size=60"),
        (["task_embedding=maybe"], "task_embedding"),
    ],
)
def test_bad_settings_are_explained(assignments, message):
    with pytest.raises(InputError, match=message):
        override(edit_scenes(), assignments)


def test_the_papers_plain_unet_is_an_override():
    recipe = override(
        edit_scenes(),
        [
            *(*TINY, "editor.copy_gate=false", "editor.affine=false", "editor.paints=0"),
            *("noise.prediction_type=v_prediction", "objective.gate_weight=0"),
        ],
    )
    model = recipe.editor.build(32, 16, recipe.text)
    assert model.prediction_type is None
    assert recipe.scheduler().config.prediction_type == "v_prediction"
