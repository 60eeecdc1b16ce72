"""The digit recipes reach the numbers that their docstrings state. Minutes each: `make test-slow`."""

import json

import pytest
import torch

from latentia.data.digits import digits
from latentia.metrics.evaluate import Judge
from latentia.pipelines.pipeline import DiffusionPipeline
from latentia.recipes import demo
from latentia.recipes.judge import train_judge
from latentia.recipes.registry import recipe
from latentia.recipes.run import run_recipe
from latentia.recipes.sampling import Request, sample

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(autouse=True)
def all_cores():
    """Trainings use what the machine has; fast tests use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_demo(tmp_path):
    demo.run(tmp_path, seed=0, progress=False)
    report = json.loads((tmp_path / "report.json").read_text())
    rows = {(row["model"], row["sampler"], row["weights"], row["guidance"]): row for row in report["rows"]}
    best = rows["latent diffusion", "DPM-Solver++ 10", "EMA", 1.0]
    assert best["n"] == 540
    assert best["numbers"]["accuracy_digits"]["value"] >= 0.97
    assert best["times_floor"] <= 1.2
    assert 0.9 <= best["numbers"]["nearest_pixels_ratio"]["value"] <= 1.1
    for sampler in ("DDIM 20", "DPM-Solver++ 10"):
        averaged = rows["latent diffusion", sampler, "EMA", 1.0]
        raw = rows["latent diffusion", sampler, "raw", 1.0]
        assert averaged["times_floor"] < raw["times_floor"]
    assert report["references"]["real, never trained on"]["accuracy_digits"]["value"] >= 0.975
    assert report["reconstructions"]["KL-VAE"]["psnr"]["value"] >= 36
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 12
    assert "http" not in page.replace("http://www.w3.org", "")


def test_digits_ddpm(tmp_path):
    run_recipe(recipe("digits-ddpm"), tmp_path, progress=False)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    everything = digits("all", 16)
    classifier, _ = train_judge("digits", digits("train", 16), digits("test", 16), progress=False)
    judge = Judge(classifier, everything.tensors["x"], everything.tensors["label"])
    found = judge(sample(pipe, Request(count=540, steps=50)), torch.arange(540) % 10)
    assert found["accuracy_digits"].value >= 0.96
    assert found["frechet_digits"].value <= 1.3 * judge.floor(540, balanced=False, draws=50).value
