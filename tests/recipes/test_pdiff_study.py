"""`pdiff-study` with a handful of steps: stages are kept, left out and taken up again."""

import json

import pytest

from latentia.errors import InputError
from latentia.recipes import pdiff_stages
from latentia.recipes.overrides import override
from latentia.recipes.pdiff_study import STAGES, PDiffStudy, pdiff_study
from latentia.recipes.run import load_recipe, run_recipe

TINY = [
    *("steps=3", "batch_size=4", "codec.steps=3", "codec.batch_size=4", "unet.channels=8,", "log_every=1"),
    *("originals.count=6", "originals.main.epochs=1", "originals.skip=0", "task.train=64", "samples=4"),
    *("sampling_steps=4", "device=cpu", "runs=1", "norms=false", "sweep=1,3,6", "seeds=4", "seed_epochs=1"),
    *("seed_codec.told=2", "seed_codec.steps=2", "seed_codec.batch_size=2", "seed_codec.width=16", "seed_steps=2"),
]


def tiny(*more: str) -> PDiffStudy:
    return override(pdiff_study(), [*TINY, *more])


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    run_recipe(tiny("stages=k_sweep,baselines,seeds"), out, progress=False)
    return out, json.loads((out / "report.json").read_text())


def test_only_the_stages_asked_for_are_done(started):
    out, report = started
    assert set(report["stages"]) == {"k_sweep", "baselines", "seeds"}
    assert sorted(file.name for file in (out / "stages").iterdir()) == ["baselines.json", "k_sweep.json", "seeds.json"]
    page = (out / "report.html").read_text()
    assert "Number of originals" in page
    assert "Patterns of parameters" not in page


def test_a_finished_stage_is_not_done_again(started, monkeypatch):
    out, report = started
    done = []
    for name in STAGES:
        stage = pdiff_stages.STAGES[name]
        monkeypatch.setitem(
            pdiff_stages.STAGES, name, lambda recipe, bench, n=name, s=stage: done.append(n) or s(recipe, bench)
        )
    run_recipe(
        load_recipe(out).model_copy(update={"stages": ("k_sweep", "patterns")}), out, resume=True, progress=False
    )
    assert done == ["patterns"]
    again = json.loads((out / "report.json").read_text())["stages"]
    assert set(again) == {*report["stages"], "patterns"}
    assert again["k_sweep"] == report["stages"]["k_sweep"]
    assert "Patterns of parameters" in (out / "report.html").read_text()


def test_one_original_comes_back_and_more_do_not(started):
    sweep = started[1]["stages"]["k_sweep"]
    assert set(sweep["by_k"]) == {"1", "3", "6"}
    assert sweep["nearest"]["1"] == [1.0] * 4
    assert sweep["by_k"]["1"]["best"] == sweep["by_k"]["1"]["mean"]
    assert all(0 <= row["mean"] <= row["best"] <= 1 for row in sweep["by_k"].values())


def test_baselines_and_seeds_say_what_they_are(started):
    stages = started[1]["stages"]
    assert list(stages["baselines"]) == ["originals", "p-diff", "fine-tuned", "noise 0.5", "noise 1", "noise 2"]
    assert [len(group) for group in stages["baselines"].values()] == [6, 4, 6, 25, 25, 25]
    sizes = {"convnet3": 5450, "mlp3": 4785, "resnet": 5122}
    assert {name: row["parameters"] for name, row in stages["seeds"].items()} == sizes
    assert [len(row["runs"]) for row in stages["seeds"].values()] == [1, 1, 1]


def test_depth_noise_and_protocol_have_a_row_each():
    recipe = tiny()
    depths = pdiff_stages.depth(recipe, None)
    assert set(depths) == {"layer1", "layer2", "layer3"}
    assert all(set(kinds) == {"originals", "p-diff"} for kinds in depths.values())
    assert len({kinds["originals"]["mean"] for kinds in depths.values()}) > 1  # each depth has originals of its own
    assert set(pdiff_stages.noise(recipe, None)) == {"none", "parameters", "latents", "both"}


@pytest.mark.parametrize(("typed", "words"), [("k_swep", "did you mean 'k_sweep'"), ("depth,all", "no stage 'all'")])
def test_a_stage_that_is_none_is_refused(typed, words):
    with pytest.raises(InputError, match=words):
        tiny(f"stages={typed}")


def test_one_stage_needs_no_comma():
    assert tiny("stages=depth").stages == ("depth",)
