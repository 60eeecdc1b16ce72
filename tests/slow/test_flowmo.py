"""FlowMo on digits for two CPU minutes: far from done, but what the article says of its sampler can be seen already."""

import json

import pytest

from latentia.recipes.flowmo_digits import flowmo_digits
from latentia.recipes.overrides import override
from latentia.recipes.run import run_recipe

pytestmark = pytest.mark.slow


def test_flowmo_learns_digits_and_its_sampler_helps(tmp_path):
    short = ["regression_steps=500", "steps=500", "post.steps=0", "preview_every=0", "ema.decay=0.998"]
    recipe = override(flowmo_digits(), [*short, "perceptual.kind=none"])
    run_recipe(recipe, tmp_path / "run", progress=False)
    numbers = json.loads((tmp_path / "run/numbers.json").read_text())["stages"]["pretraining"]
    psnr = {name: row["psnr"] for name, row in numbers.items() if name != "usage"}
    frechet = {name: row["frechet"]["frechet_digits"] for name, row in numbers.items() if name != "usage"}
    assert numbers["usage"]["used"] >= 200  # of 256
    assert psnr["10 steps"] > 25.5
    assert frechet["10 steps"] < 1.0
    assert frechet["linear"] == frechet["10 steps"] < frechet["shifted"]  # so early the article's grid does not pay
    assert psnr["10 steps"] > psnr["no guidance"]
    assert psnr["1 steps"] > psnr["no guidance"]  # the mean of p(x | c) has less error than a sample that is not guided
