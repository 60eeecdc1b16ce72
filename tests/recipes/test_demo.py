"""The demo, told with a handful of steps: every part of the story is there, and the numbers are what they say."""

import json
import warnings

import pytest

from latentia import AutoencoderKL, ConvClassifier, DiffusionPipeline
from latentia.errors import InputError
from latentia.recipes.demo import digits_demo
from latentia.recipes.overrides import override
from latentia.recipes.run import run_recipe

TINY = [
    *("steps=3", "vae.steps=2", "judge_steps=20", "batch_size=8", "vae.batch_size=4", "log_every=1"),
    *("unet.channels=8,8", "unet.groups=4", "unet.head_dim=4", "vae.channels=4,4,8", "vae.groups=4"),
    *("pictures=40", "chain_pictures=20", "chain_steps=3"),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*singular and the distance biased")
        run_recipe(override(digits_demo(), TINY), out, progress=False)
    return out, json.loads((out / "report.json").read_text())


def test_every_model_and_sampler_is_judged(told):
    _, report = told
    rows = [(row["model"], row["sampler"], row["weights"], row["guidance"], row["n"]) for row in report["rows"]]
    assert rows[:2] == [
        ("autoencoder", "decode N(0, I)", "raw", None, 40),
        ("KL-VAE", "decode N(0, I)", "raw", None, 40),
    ]
    expected = {
        ("latent diffusion", sampler, weights, guidance, n)
        for sampler, n in (("DDIM 20", 40), ("DPM-Solver++ 10", 40), ("DDPM 3", 20))
        for weights in ("EMA", "raw")
        for guidance in (1.0, 2.0)
    }
    assert set(rows[2:]) == expected
    assert len(rows) == 14


def test_numbers_carry_n_seed_seconds_and_floor(told):
    _, report = told
    assert set(report["training"]) == {"judge", "autoencoder", "vae", "unet"}
    for row in report["rows"]:
        numbers, floors = row["numbers"], report["floors"][str(row["n"])]
        assert numbers["frechet_digits"]["n_generated"] == row["n"]
        assert numbers["frechet_digits"]["n_real"] == 1797
        assert row["seed"] == 0
        assert row["seconds"] > 0
        value = numbers["frechet_digits"]["value"]
        assert row["times_floor"] == pytest.approx(value / floors["random"]["value"])
        assert row["times_balanced_floor"] == pytest.approx(value / floors["balanced"]["value"])
        assert floors["balanced"]["value"] < floors["random"]["value"] < report["ceiling"]["value"]
    real = report["references"]["real, never trained on"]
    assert real["nearest_pixels_ratio"]["value"] == 1.0
    assert report["references"]["copies of training images"]["nearest_pixels_ratio"]["value"] < 1e-3


def test_the_page_and_everything_behind_it_are_there(told):
    out, _ = told
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 13
    assert page.count("<svg") == 4
    assert (out / "overview.png").read_bytes()[:4] == b"\x89PNG"
    assert {line["phase"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())} == {
        *("judge", "autoencoder", "vae", "unet")
    }
    assert list((out / "tensorboard").rglob("events.*"))
    assert ConvClassifier.from_pretrained(out / "judge").name == "digits"
    assert isinstance(DiffusionPipeline.from_pretrained(out / "pipeline").vae, AutoencoderKL)


@pytest.mark.parametrize("setting", ["data=photos", "num_classes=0", "image_channels=3", "codec=somewhere"])
def test_a_demo_of_something_else_is_refused_before_it_trains(setting):
    changed = [setting, "objective.label_dropout=0"]
    with pytest.raises(InputError, match="the demo tells of digits and trains its own codec"):
        override(digits_demo(), changed)


def test_the_dry_run_counts_every_phase():
    assert {work.phase for work in digits_demo().work() if work.trained} == {"judge", "autoencoder", "vae", "unet"}
