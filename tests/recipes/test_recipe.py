import subprocess
import sys

import pytest

from latentia.errors import ConfigError, InputError, UnknownChoiceError
from latentia.recipes import registry
from latentia.recipes.overrides import keys, override
from latentia.recipes.recipe import Bench, flatten
from latentia.recipes.run import load_recipe


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(UnknownChoiceError, match="unknown recipe 'digits-lmd': did you mean 'digits-ldm'"):
        registry.recipe("digits-lmd")


def test_recipes_keys_and_samplers_do_not_import_torch():
    code = (
        "import sys\n"
        "from latentia.recipes import registry, samplers, show\n"
        "from latentia.recipes.overrides import keys, override\n"
        "for name in registry.names():\n"
        "    recipe = override(registry.recipe(name), ['steps=3'])\n"
        "    assert type(recipe).from_json(recipe.to_json()) == recipe and keys(recipe)\n"
        "    show.recipe_page(registry.builder(name))\n"
        "heavy = {'torch', 'numpy', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_from_json_names_every_field_that_does_not_fit():
    text = (
        registry.recipe("digits-ddpm")
        .to_json()
        .replace('"steps"', '"stops"')
        .replace('"batch_size": 64', '"batch_size": 0')
    )
    with pytest.raises(ConfigError, match="no saved DigitsDDPM") as caught:
        registry.recipe("digits-ddpm").from_json(text)
    assert "steps: field required" in str(caught.value)
    assert "stops: extra inputs are not permitted" in str(caught.value)
    assert "batch_size: input should be greater than 0, got 0" in str(caught.value)


def test_differences_are_dotted():
    recipe = registry.recipe("digits-ddpm")
    other = override(recipe, ["optim.lr=0.5", "steps=7"])
    assert recipe.differences(other) == {"optim.lr": (recipe.optim.lr, 0.5), "steps": (recipe.steps, 7)}


def test_flatten():
    assert flatten({"a": 1, "b": {"c": 2, "d": {"e": (3, 4)}}}) == {"a": 1, "b.c": 2, "b.d.e": (3, 4)}


def test_a_batch_must_split_into_its_accumulated_parts():
    with pytest.raises(InputError, match="batch_size 64 does not split into accumulate=3"):
        override(registry.recipe("digits-ddpm"), ["accumulate=3"])


def test_bench_says_what_it_has():
    bench = Bench()
    bench.keep("vae", object())
    with pytest.raises(InputError, match="no 'unet' yet; it has: vae"):
        bench.module("unet")


def test_a_broken_saved_recipe_is_an_error(tmp_path):
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(OSError, match="no saved recipe: it may be truncated"):
        load_recipe(tmp_path)
    with pytest.raises(OSError, match="is this the --out folder of a run"):
        load_recipe(tmp_path / "nothing")


def test_settings_carry_the_recipe_over():
    recipe = override(registry.recipe("digits-ddpm"), ["seed=5", "precision=bf16", "save_every=7", "device=cpu"])
    settings = recipe.settings(progress=False)
    assert (settings.seed, settings.precision, settings.save_every, settings.device) == (5, "bf16", 7, "cpu")
    assert settings.progress is False


def test_published_sizes_are_the_papers():
    cifar = registry.recipe("ddpm-cifar10")
    assert (cifar.steps, cifar.batch_size, cifar.optim.lr, cifar.ema.decay) == (800_000, 128, 2e-4, 0.9999)
    assert cifar.noise.variance_type == "fixed_large"
    faces = registry.recipe("ldm-celebahq")
    assert faces.optim.lr == pytest.approx(2e-6 * faces.batch_size)
    assert (faces.noise.beta_schedule, faces.noise.beta_start, faces.noise.beta_end) == (
        "scaled_linear",
        0.0015,
        0.0195,
    )
    assert registry.recipe("ldm4-imagenet").vae.factor == 4
    assert registry.recipe("ldm8-imagenet").vae.factor == 8


def test_type_names_are_readable():
    types = {key.name: key.type_name for key in keys(registry.recipe("digits-ldm"))}
    assert types["steps"] == "int > 0"
    assert types["precision"] == "no | bf16 | fp16 | auto"
    assert types["optim.clip"] == "float > 0 | none"
    assert types["unet.channels"] == "tuple(int > 0, …)"
    assert types["codec"] == "text | none"
