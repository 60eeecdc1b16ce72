"""`pdiff-digits` with a handful of steps: everything is judged, shown and saved, and the numbers are what they say."""

import json

import pytest
import torch

from latentia import DiffusionPipeline
from latentia.errors import InputError, TrainingError
from latentia.methods.pdiff.checkpoints import Checkpoints
from latentia.methods.pdiff.networks import ConvNet3
from latentia.methods.pdiff.protocol import (
    AVERAGE,
    AVERAGES,
    ENSEMBLE,
    GAUSSIAN,
    GENERATED,
    NOISE,
    ORIGINALS,
    PCA,
    SINGLE,
)
from latentia.recipes import registry
from latentia.recipes.overrides import override
from latentia.recipes.pdiff_digits import PDiffDigits, pdiff_digits
from latentia.recipes.pdiff_judging import scorers
from latentia.recipes.recipe import Bench
from latentia.recipes.run import run_recipe

TINY = [
    *("steps=3", "batch_size=4", "codec.steps=3", "codec.batch_size=4", "unet.channels=8,", "log_every=1"),
    *("originals.count=6", "originals.main.epochs=1", "originals.skip=0", "task.train=64", "samples=4"),
    *("sampling_steps=4", "device=cpu"),
]
CONTROLS = {AVERAGE, AVERAGES, GAUSSIAN, PCA, NOISE, ENSEMBLE, SINGLE}


def tiny(*more: str) -> PDiffDigits:
    return override(pdiff_digits(), [*TINY, *more])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    out = tmp_path_factory.mktemp("pdiff")
    run_recipe(tiny("runs=2", "norms=false"), out, progress=False)
    return out, json.loads((out / "report.json").read_text())


def test_every_control_is_judged_in_every_run(told):
    _, report = told
    (setting,) = report["settings"]
    assert setting["parameters"] == 1578
    assert len(setting["summary"]["runs"]) == len(setting["explained_variance"]) == 2
    for run in setting["summary"]["runs"]:
        assert {each["name"] for each in run["populations"]} == {ORIGINALS, GENERATED} | CONTROLS
        assert {each["control"] for each in run["comparisons"]} == {ORIGINALS} | CONTROLS
    assert [run["seed"] for run in setting["summary"]["runs"]] == [0, 1]
    assert len(setting["targets"]) == 4
    assert all({"value", "se", "bound", "met"} <= set(target) for target in setting["targets"])


def test_the_originals_numbers_are_those_of_the_saved_checkpoints(told):
    out, report = told
    originals = Checkpoints.load(out / "originals")
    accuracy = scorers(tiny(), originals)[1].accuracies(originals.vectors)
    first = report["settings"][0]["summary"]["runs"][0]["populations"][0]
    assert first["mean"] == pytest.approx(float(accuracy.mean()))
    assert first["best"] == pytest.approx(float(accuracy.max()))


def test_k_1_gives_its_checkpoint_back(told):
    out, _ = told
    originals = Checkpoints.load(out / "originals")
    made = tiny().regenerate(originals.vectors[2:3], originals)
    assert made.shape == (4, 1578)
    torch.testing.assert_close(made, originals.vectors[2:3].expand(4, -1), rtol=0, atol=1e-6)


def test_the_saved_pipeline_makes_networks(told):
    out, _ = told
    pipe = DiffusionPipeline.from_pretrained(out / "pipeline")
    made = pipe(num_samples=2, seed=0, num_inference_steps=4)
    network = ConvNet3()
    network.load_state_dict(made.state_dicts[1])
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_the_page_shows_the_article_s_pictures(told):
    out, report = told
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 3 + 1 + 2 + 1 + 3 + 2
    assert report["settings"][0]["summary"]["overall"] in page.replace("&#x27;", "'")
    assert report["settings"][0]["summary"]["novelty"][:40] in page.replace("&#x27;", "'")
    for text in ("train-selected", "Novelty at equal accuracy", "Critics", "t-SNE", "number to reach", "matched noise"):
        assert text in page


def test_a_finished_run_is_read_again_and_another_is_refused(told):
    out, report = told
    before = (out / "originals" / "meta.json").stat().st_mtime_ns
    run_recipe(tiny("runs=2", "norms=false"), out, resume=True, progress=False)
    assert (out / "originals" / "meta.json").stat().st_mtime_ns == before
    again = json.loads((out / "report.json").read_text())["settings"][0]["summary"]
    assert again == report["settings"][0]["summary"]
    with pytest.raises(TrainingError, match=r"originals\.every was 2, now 3"):
        run_recipe(tiny("runs=2", "norms=false", "originals.every=3"), out, resume=True, progress=False)


def test_the_article_s_layers_are_the_last_two_norms():
    recipe = tiny().norm_layers()
    assert recipe.originals.size() == 128
    assert recipe.originals.count == 6
    originals = recipe.checkpoints(Bench())
    assert originals.layout.names == tuple(
        f"layer3.0.{norm}.{part}" for norm in ("bn1", "bn2") for part in ("weight", "bias")
    )
    assert recipe.codec.build(128).latents == (8, 16)


def test_more_sampling_steps_than_there_are_is_refused():
    with pytest.raises(InputError, match="sampling_steps=1001 is more than"):
        override(pdiff_digits(), ["sampling_steps=1001"])


def test_the_dry_run_counts_the_originals_too():
    rows = registry.recipe("pdiff-digits").work()
    assert [row.network for row in rows] == ["convnet3", "codec", "unet"]
