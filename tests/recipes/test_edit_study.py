"""`edit-study` with editors of random weights: stages, what they share, claims, the page; one real, tiny training."""

import json

import numpy as np
import pytest

import tiny_editor
from latentia.core.files import read_json
from latentia.errors import InputError
from latentia.methods.emu_edit.predictor import TaskPredictor
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES
from latentia.methods.emu_edit.thresholding import Thresholding
from latentia.recipes import edit_study_runs as sub
from latentia.recipes import edit_study_stages as stages
from latentia.recipes import edit_study_turns as turns
from latentia.recipes.edit_inversion_judging import edited
from latentia.recipes.edit_study import SIZES, STAGES, Size, edit_study
from latentia.recipes.edit_study_baselines import sdedit
from latentia.recipes.edit_study_claims import HOLDS, NOT, OPEN, Difference, claims
from latentia.recipes.overrides import override
from latentia.recipes.run import load_recipe, run_recipe
from tiny_editor import editor

TASKS = ("texture", "remove", "style", "segment")
EDITOR = (
    *("image_size=16", "batch_size=2", "editor.channels=8,16", "editor.groups=4", "editor.attention=1,"),
    *("editor.head_dim=8", "text.width=16", "text.steps=1", "text.batch_size=2", "text.vocab_size=400"),
    *(
        "text.heads=2",
        "text.layers=1",
        "text.length=96",
        "text.examples=20",
        "predictor.steps=2",
        "predictor.examples=40",
        "predictor.batch_size=4",
    ),
)
TINY = Size(
    steps=2,
    main_steps=3,
    settings=EDITOR,
    tasks=TASKS,
    fewer=(("remove",), ("segment",)),
    judged=2,
    sampling_steps=2,
    counts=(1, 2),
    inversion_steps=2,
    expert_steps=2,
    expert_examples=3,
    tune_steps=2,
    pictures=2,
    text_scales=(1.0, 2.0),
    image_scales=(1.0, 1.5),
    strengths=(0.5, 1.0),
)


@pytest.fixture(autouse=True, scope="module")
def tiny_size():
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SIZES, "tiny", TINY)
        patched.setattr("latentia.recipes.edit_scenes_words.COLLECTED", 20)
        patched.setattr(turns, "TURNS", 3)
        patched.setattr(stages, "UNSEEN", ("inpaint",))
        patched.setattr(tiny_editor, "LENGTH", 96)
        yield


def tiny(*more, seeds=2):
    return override(edit_study(), ["size=tiny", "device=cpu", f"seeds={seeds}", *more])


def drawn(study, name, out):
    """An editor as `train_editor` leaves it, untrained."""
    folder = out / "stages" / sub.RUNS / name
    if not folder.is_dir():
        recipe = dict(sub.runs(study))[name]
        made = editor(gate=True, task_predictor=TaskPredictor(recipe.tasks, buckets=64, width=4, hidden=8).eval())
        made.save_pretrained(folder / "pipeline")
    return folder


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sub, "train_editor", drawn)
        run_recipe(tiny(), out, progress=False)
    return out, read_json(out / "report.json")


def test_every_stage_is_kept_and_told(done):
    out, report = done
    assert list(report["stages"]) == list(STAGES)
    assert {file.stem for file in (out / "stages").glob("*.json")} == set(STAGES)
    page = (out / "report.html").read_text()
    for heading in ("Task embedding", "Vision tasks left out", "Task inversion", "Ten turns", "Baselines", "Guidance"):
        assert f"<h2>{heading}</h2>" in page
    for claim in report["claims"]:
        assert claim["verdict"] in (HOLDS, NOT, OPEN)
        assert claim["verdict"] in page
    assert page.count("data:image/png") == 2
    assert (out / "stages/pictures/thresholding.png").is_file()


def test_numbers_of_the_stages(done):
    found = done[1]["stages"]
    assert set(found["main"]["predicted"]["tasks"]) == set(TASKS)
    assert found["main"]["n"] == 2 * len(TASKS)
    assert {name: len(runs) for name, runs in found["task-embedding"].items()} == {"none": 2, "predicted": 2, "true": 2}
    assert set(found["vision"]["with"][0]["tasks"]) == {"texture", "remove"}
    assert set(found["experts"]["experts"]) == set(TASKS)
    assert [each["removed"] for each in found["number-of-tasks"]["sets"]] == [0, 1, 2]
    rows = found["inversion"]["inpaint"]
    assert [(row["mode"], row["examples"]) for row in rows] == [
        ("invert", 1),
        ("invert", 2),
        ("finetune", 2),
        ("scratch", 3),
    ]
    assert len(found["thresholding"]["rules"]) == 3
    assert all(len(rule["outside"]) == 3 for rule in found["thresholding"]["rules"].values())
    editors = found["baselines"]["editors"]
    assert all(each["gain"] == 0 for each in editors["copy"].values())
    assert all(each["success"] == 1 for each in editors["oracle"].values())
    assert [(row["image"], row["text"]) for row in found["guidance"]["rows"]] == [(1, 1), (1, 2), (1.5, 1), (1.5, 2)]


def test_a_finished_stage_is_not_done_again(done, monkeypatch):
    out, report = done
    (out / "stages" / "guidance.json").unlink()
    asked = []
    for name in STAGES:
        stage = stages.FUNCTIONS[name]
        monkeypatch.setitem(stages.FUNCTIONS, name, lambda r, b, n=name, s=stage: asked.append(n) or s(r, b))
    monkeypatch.setattr(sub, "train_editor", drawn)
    run_recipe(load_recipe(out).model_copy(update={"stages": ("main", "guidance")}), out, resume=True, progress=False)
    assert asked == ["guidance"]
    assert read_json(out / "report.json")["stages"] == report["stages"]


def test_trainings_are_shared_and_no_longer_than_they_should():
    study = tiny()
    named = dict(sub.runs(study))
    assert named["main"].steps == 3
    assert {named[name].steps for name in named if name.startswith(("told", "untold-0"))} == {2}
    assert named["untold-0"].task_embedding == "none"
    assert (named["told-0"].seed, named["told-1"].seed) == (0, 1)
    assert named["no-vision-0"].tasks == ("texture", "remove", "style")
    longer = dict(sub.runs(tiny("run_steps=40")))
    assert 10 < longer["no-vision-short-0"].steps < 40
    assert longer["expert-style"].steps == 10
    assert named["expert-remove"].tasks == ("remove",)
    assert {"tasks-3", "tasks-2"} <= set(named)
    assert named["untold-editing"].steps == 3
    few = dict(sub.runs(tiny("stages=task-embedding", "base=runs/edit")))
    assert set(few) == {"told-0", "told-1", "untold-0", "untold-1"}
    quick = override(edit_study(), ["size=quick", "run_steps=40"])
    assert dict(sub.runs(quick))["told-0"].steps == 40
    small = dict(sub.runs(override(edit_study(), ["run_settings=image_size=32, text.steps=7"])))
    assert {(run.image_size, run.text.steps) for run in small.values()} == {(32, 7)}
    full = dict(sub.runs(edit_study()))
    assert set(full["told-0"].tasks) == set(TASK_NAMES)
    assert sum(name.startswith("expert-") for name in full) == 16


def test_an_editor_is_really_trained(tmp_path):
    study = tiny("stages=task-embedding", seeds=1)
    folder = sub.train_editor(study, "told-0", tmp_path)
    pipe = sub.open_editor(folder)
    assert tuple(pipe.task_predictor.tasks) == TASKS
    assert load_recipe(folder).steps == 2
    study = tiny("stages=experts")  # another editor reads in the same pieces
    alone = sub.open_editor(sub.train_editor(study, "expert-remove", tmp_path))
    assert alone.tokenizer("make it neon")["input_ids"] == pipe.tokenizer("make it neon")["input_ids"]
    before = (folder / "pipeline/model_index.json").stat().st_mtime_ns
    assert sub.train_editor(study, "told-0", tmp_path) == folder
    assert (folder / "pipeline/model_index.json").stat().st_mtime_ns == before


def test_chains_of_turns_are_exact():
    one = turns.chain(32, 0, 3)
    assert one.instructions == turns.chain(32, 0, 3).instructions
    assert len(one.instructions) == len(one.targets) == len(one.masks)
    before = one.image
    for target, mask in zip(one.targets, one.masks, strict=True):
        assert np.array_equal(before[~mask], target[~mask])
        assert not np.array_equal(before, target)
        before = target
    assert all((later >= earlier).all() for earlier, later in zip(one.masks, one.masks[1:]))
    assert turns.outside([one], [[each] for each in one.targets]) == [0.0] * len(one.targets)
    assert turns.inside([one], [[each] for each in one.targets]) == pytest.approx([1.0] * len(one.targets))
    noisy = np.clip(one.image.astype(int) + 10, 0, 255).astype(np.uint8)
    assert 0 < turns.outside([one], [[noisy]])[0] <= 10.001 / 255


def test_thresholding_is_calibrated_and_keeps_what_it_should():
    pipe = editor()
    chains = [turns.chain(16, 0, i, turns=2) for i in range(3)]
    how = {"num_inference_steps": 2}
    first = turns.take_turns(pipe, chains, None, 0, "local", **how)[0]
    rule = turns.calibrated(pipe, chains, first)
    assert rule.alpha > 0
    free = turns.outside(chains, turns.take_turns(pipe, chains, None, 0, "local", **how))
    held = turns.outside(chains, turns.take_turns(pipe, chains, Thresholding(2.0), 0, "local", **how))
    assert held == [0.0, 0.0]
    assert free[1] > 0


def test_sdedit_starts_where_it_is_told():
    pipe = editor()
    rows = [stages.held_out("remove", 3, 16, 0, "test")[i] for i in range(3)]
    made = sdedit(pipe, rows, 0.5, 4)
    assert [each.shape for each in made] == [(16, 16, 3)] * 3
    assert np.array_equal(made[1], sdedit(pipe, rows, 0.5, 4)[1])
    assert np.array_equal(sdedit(pipe, rows[:1], 0.5, 4)[0], made[0])
    assert not np.array_equal(made[0], sdedit(pipe, rows, 1.0, 4)[0])
    assert sdedit(editor(latent=True), rows, 0.5, 2)[0].shape == (16, 16, 3)


def test_rows_are_told_their_own_task_or_one_for_all():
    pipe = editor(gate=True)
    rows = [*stages.held_out("remove", 1, 16, 0, "test"), *stages.held_out("segment", 1, 16, 0, "test")]
    how = {"num_inference_steps": 2, "seed": 0}
    own, removed = edited(pipe, rows, "own", **how), edited(pipe, rows, "remove", **how)
    assert np.array_equal(own[0], removed[0])
    assert not np.array_equal(own[1], removed[1])


def test_differences_are_judged_by_their_spread():
    assert Difference.of([1.0, 1.1, 1.2], [0.5, 0.6, 0.7]).above == HOLDS
    assert Difference.of([0.5, 0.6, 0.7], [1.0, 1.1, 1.2]).above == NOT
    assert Difference.of([0.5, 1.5, 0.4], [1.0, 0.9, 0.5]).above == OPEN
    assert Difference.of([0.5], [0.1]).above == OPEN


def run(success, gain):
    means = {"success": success, "gain": gain}
    return {"tasks": {}, "all": means, "region": means}


def test_claims_say_what_was_found():
    found = claims(
        {
            "task-embedding": {
                "none": [run(0.4, 0.5), run(0.42, 0.5)],
                "predicted": [run(0.6, 0.7), run(0.61, 0.7)],
                "true": [run(0.61, 0.7), run(0.62, 0.7)],
            },
            "experts": {
                "multi-task": {"add": {"success": 0.5, "gain": 0.6}, "remove": {"success": 0.5, "gain": 0.2}},
                "experts": {"add": {"success": 0.4, "gain": 0.5}, "remove": {"success": 0.5, "gain": 0.4}},
            },
            "thresholding": {
                "n": 4,
                "turns": 10,
                "rules": {
                    "without": {"outside": [0.01, 0.1], "inside": [0.5, 0.6]},
                    "α = 0.03": {"outside": [0.01, 0.04], "inside": [0.5, 0.6]},
                },
            },
        }
    )
    by_name = {each.claim: each for each in found}
    assert by_name["a task embedding makes edits better (success)"].verdict == HOLDS
    assert by_name["a predicted task is nearly as good as the true one (success)"].verdict == HOLDS
    assert by_name["one multi-task editor beats experts of equal total training (success)"].verdict == HOLDS
    assert by_name["one multi-task editor beats experts of equal total training (gain)"].verdict == OPEN
    halved = by_name["thresholding, α = 0.03: error outside grows at most half as fast"]
    assert halved.verdict == HOLDS
    assert "0.40 ×" in halved.here
    assert json.dumps([each.to_dict() for each in found])


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("stages=task-embeding", "did you mean 'task-embedding'"),
        ("size=huge", "no size 'huge': choose from quick, full"),
        ("seeds=0", "seeds"),
    ],
)
def test_what_is_not_there_is_refused(typed, words):
    with pytest.raises(InputError, match=words):
        override(edit_study(), [typed])


def test_settings_that_do_not_fit_are_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(InputError, match="did you mean 'image_size'"):
        run_recipe(tiny("run_settings=imagesize=32"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_base_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="no run of edit-scenes"):
        run_recipe(tiny(f"base={tmp_path}"), tmp_path / "run", progress=False)
