"""Stable Diffusion 1.5 at its own size, with random weights: the same keys and the same latents as Diffusers.

Takes some minutes on two cores, 6 GB of memory and 5 GB of disk; needs no network.
"""

import pytest
from safetensors.torch import load_file

from full_size_sd import PARAMETERS, SCHEDULERS, measure, save_full_size_sd

pytest.importorskip("diffusers")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Library → what `measure` found, and its latents."""
    root = tmp_path_factory.mktemp("sd15")
    folder, found = save_full_size_sd(root / "sd15"), {}
    for library in ("latentia", "diffusers"):
        found[library] = measure(library, folder, root / f"{library}.safetensors")
        found[library]["latents"] = load_file(root / f"{library}.safetensors")
        print(library, {key: found[library][key] for key in ("load_seconds", "baseline", "peak", "seconds")})
    return found["latentia"], found["diffusers"]


def test_same_keys_and_sizes(runs):
    ours, theirs = runs
    assert ours["parameters"] == theirs["parameters"] == PARAMETERS
    for name in PARAMETERS:
        mine = {key.removeprefix("text_model."): shape for key, shape in ours["keys"][name].items()}
        assert mine == {key.removeprefix("text_model."): shape for key, shape in theirs["keys"][name].items()}


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_same_latents(runs, scheduler):
    ours, theirs = (run["latents"][scheduler] for run in runs)
    assert ours.shape == (1, 4, 32, 32)
    assert 0.1 < theirs.std() < 5
    difference = float((ours - theirs).abs().max())
    print(f"{scheduler}: largest difference {difference:.1e}, standard deviation {float(theirs.std()):.2f}")
    assert difference < 1e-4


def test_loads_in_place(runs):
    """Never two copies: the peak is the weights and a tenth."""
    ours, _ = runs
    assert ours["peak"] - ours["baseline"] < 1.1 * 4 * sum(PARAMETERS.values())
