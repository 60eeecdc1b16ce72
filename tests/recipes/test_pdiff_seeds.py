"""`pdiff-seeds` with a handful of steps: every phase runs and resumes, and what is saved makes networks that load."""

import json

import pytest
import torch

from latentia import DiffusionPipeline
from latentia.errors import InputError
from latentia.methods.pdiff.networks import build
from latentia.recipes import pdiff_seeds_judging as judging
from latentia.recipes import registry
from latentia.recipes.overrides import override
from latentia.recipes.parameters import open_parameters, write_networks
from latentia.recipes.pdiff_seeds import SeedDiffusion, pdiff_seeds
from latentia.recipes.pdiff_seeds_judging import CENTRE, CODES, OURS, PCA, PLAIN, REBUILT, SeedSummary
from latentia.recipes.recipe import Bench
from latentia.recipes.run import run_recipe

TINY = [
    *("steps=3", "batch_size=4", "unet.channels=16,", "log_every=1", "device=cpu", "task.train=64", "width=4"),
    *("seeds=6", "fitting.epochs=1", "codec.told=3", "codec.steps=2", "codec.batch_size=3", "codec.width=16"),
    *("codec.num_images=8", "samples=4", "sampling_steps=4", "plain.steps=2", "plain.codec.steps=2"),
]


def tiny(*more: str) -> SeedDiffusion:
    return override(pdiff_seeds(), [*TINY, *more])


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    out = tmp_path_factory.mktemp("seeds")
    run_recipe(tiny("network=resnet", "runs=2"), out, progress=False)
    return out, json.loads((out / "report.json").read_text())


def test_everything_is_judged_in_every_run(told):
    out, report = told
    summary = SeedSummary.model_validate(report["summary"])
    names = [
        "originals",
        OURS,
        PLAIN,
        "matched average",
        PCA,
        CENTRE,
        CODES,
        REBUILT,
        "matched noise",
        "prediction ensemble",
    ]
    assert list(summary.populations) == names
    assert [run.seed for run in summary.runs] == [0, 1]
    assert [each.n for each in summary.runs[0].populations] == [6, 4, 4, 1, 4, 1, 4, 6, 4, 1]
    assert all([each.control for each in run.comparisons] == [n for n in names if n != OURS] for run in summary.runs)
    assert 0 < summary.runs[0].explained < 1
    gap = summary.comparisons[0].accuracy
    assert gap.value == pytest.approx(
        summary.populations[OURS]["mean"].mean - summary.populations["originals"]["mean"].mean
    )
    assert [goal.bound for goal in summary.targets] == [-0.01, 0]
    page = (out / "report.html").read_text()
    assert summary.overall in page
    assert page.count("<svg") == 2 + 2


def test_the_saved_pipeline_makes_networks_with_statistics_of_their_own(told, tmp_path):
    out, _ = told
    pipe = open_parameters(out, device="cpu")
    made = pipe(num_samples=3, seed=0, num_inference_steps=4)
    recipe = tiny("network=resnet")
    network = recipe.build()
    images = recipe.task.build().fit[0]
    network.load_state_dict(made.state_dicts[2])
    network.eval()
    hidden = network.conv1(images)
    torch.testing.assert_close(network.bn1.running_mean, hidden.mean((0, 2, 3)))
    _, test = judging.scorers(recipe, recipe.checkpoints(Bench(out=out)))
    x, y = recipe.task.build().test
    accuracy = (network(x).argmax(1) == y).float().mean()
    assert float(test.accuracies(made.vectors)[2]) == pytest.approx(float(accuracy), abs=1e-6)
    (file,) = write_networks(pipe, 1, tmp_path, steps=4, start=2)
    assert file.name == "00002.safetensors"
    again = DiffusionPipeline.from_pretrained(out / "pipeline")
    torch.testing.assert_close(again.template.images, images)


def test_a_finished_run_is_read_again_and_a_stopped_one_goes_on(told, monkeypatch):
    out, report = told
    monkeypatch.setattr(judging, "judge_run", None)  # nothing is left to judge
    run_recipe(tiny("network=resnet", "runs=2"), out, resume=True, progress=False)
    assert json.loads((out / "report.json").read_text())["summary"] == report["summary"]
    monkeypatch.undo()
    (out / "runs" / "resnet-0.json").unlink()
    (out / "report.json").unlink()
    run_recipe(tiny("network=resnet", "runs=2"), out, resume=True, progress=False)
    assert json.loads((out / "report.json").read_text())["summary"] == report["summary"]


@pytest.mark.parametrize(("network", "size"), [("mlp3", 4785), ("convnet3", 506)])
def test_other_networks_load_too(network, size):
    recipe = tiny(f"network={network}")
    bench = Bench()
    made = recipe.fit(bench)(num_samples=2, seed=0, num_inference_steps=4)
    assert made.vectors.shape == (2, size) == (2, recipe.layout().size)
    build(network, **recipe.sizes()).load_state_dict(made.state_dicts[1])
    assert recipe.measuring_images() is None
    assert len(recipe.checkpoints(bench)) == 6


def test_runs_have_other_networks():
    first, second = (tiny(f"seed={seed}").checkpoints(Bench()).meta["seeds"] for seed in (0, 1))
    assert not set(first) & set(second)


def test_too_many_codes_are_refused():
    with pytest.raises(InputError, match=r"codec\.told=120 needs more networks than seeds=120"):
        override(pdiff_seeds(), ["codec.told=120"])


def test_the_dry_run_counts_all_three():
    rows = registry.recipe("pdiff-seeds").plan(measure=False).rows
    assert [(row.phase, row.network) for row in rows] == [("codec", "convnet3"), ("codec", "codec"), ("unet", "unet")]
    assert rows[1].output_shape == (5450,)
