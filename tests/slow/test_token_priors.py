"""The priors over tokens reach what their docstrings state. About five minutes each: `make test-slow`."""

import json

import pytest

from latentia.recipes.registry import recipe
from latentia.recipes.run import run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("name", ["maskgit-digits", "gpt-digits"])
def test_digits_are_what_they_were_asked_to_be(name, tmp_path):
    run_recipe(recipe(name), tmp_path, progress=False)
    told = json.loads((tmp_path / "report.json").read_text())
    best = told["rows"][0]["numbers"]
    assert best["accuracy_digits"]["n_generated"] == 540
    assert best["accuracy_digits"]["value"] >= 0.95
    assert best["nearest_pixels_ratio"]["value"] >= 0.85  # not copies
    assert best["frechet_digits"]["value"] < 0.2 * told["ceiling"]["value"]
