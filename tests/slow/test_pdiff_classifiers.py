"""A ResNet-18 at an eighth of its width on noisy digits: generated networks are as good as their originals."""

import json

import pytest

from latentia.recipes.registry import recipe
from latentia.recipes.run import run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_resnet18_at_reduced_width(tmp_path):
    run_recipe(recipe("pdiff-classifiers-digits"), tmp_path, progress=False)
    setting = json.loads((tmp_path / "report.json").read_text())["setting"]
    numbers = setting["summary"]["populations"]
    assert setting["parameters"] == 256
    assert 0.8 <= numbers["originals"]["mean"]["mean"] <= 0.95
    assert numbers["p-diff"]["mean"]["mean"] >= numbers["originals"]["mean"]["mean"] - 0.002
    assert setting["explained_variance"][0] >= 0.9
    assert all(target["met"] for target in setting["targets"])
