"""The paper's classifiers from collecting to `load_state_dict` at tiny sizes, and the paper recipes as published."""

import json
import re

import pytest
import torch

from latentia import DiffusionPipeline
from latentia.errors import ArtifactError, InputError
from latentia.methods.pdiff.architectures import ARCHITECTURES
from latentia.methods.pdiff.dataset_scoring import DatasetScorer
from latentia.methods.pdiff.presets import V1, V2
from latentia.recipes import registry
from latentia.recipes.overrides import override
from latentia.recipes.pdiff_classifiers import PDiffPaper
from latentia.recipes.pdiff_tables import FIRST, SOURCES, THIRD
from latentia.recipes.run import run_recipe

TINY = [
    *("width=0.06", "count=4", "samples=3", "steps=2", "batch_size=4", "sampling_steps=2", "main.epochs=0"),
    *("codec.steps=2", "codec.batch_size=4", "codec.strides=2,2,1,1", "codec.latent_dim=32", "unet.channels=8,"),
    *("device=cpu", "collect_by.batch_size=16", "choosing=40"),
]
PAPER = [name for name in registry.names() if registry._HOME[name].startswith("pdiff_paper_networks:")]


def tiny(*more: str) -> PDiffPaper:
    return override(registry.recipe("pdiff-classifiers-digits"), [*TINY, *more])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_end_to_end(architecture, tmp_path):
    recipe = tiny(f"architecture={architecture}")
    run_recipe(recipe, tmp_path, progress=False)
    report = json.loads((tmp_path / "report.json").read_text())
    populations = {each["name"]: each for each in report["setting"]["summary"]["runs"][0]["populations"]}
    assert {"originals", "p-diff", "uniform average", "Gaussian", "matched noise"} <= set(populations)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    made = pipe(num_samples=3, seed=recipe.seed, num_inference_steps=2)
    network = recipe.build()
    test = recipe.images("test")
    accuracies = []
    for state in made.state_dicts:
        network.load_state_dict(state)
        batch = test.batch(range(len(test)))
        with torch.no_grad():
            accuracies.append(float((network.eval()(batch["x"]).argmax(1) == batch["label"]).float().mean()))
    assert populations["p-diff"]["mean"] == pytest.approx(sum(accuracies) / 3, abs=2e-3)
    layout = pipe.template.layout
    scorer = DatasetScorer(network, layout, pipe.template.base_state(), test)
    torch.testing.assert_close(scorer.accuracies(made.vectors), torch.tensor(accuracies), atol=2e-3, rtol=0)
    assert report["setting"]["parameters"] == layout.size
    assert (tmp_path / "report.html").read_text().count("<table") == 1


def test_the_third_edition_is_its_preset():
    recipe = registry.recipe("pdiff-resnet18")
    assert isinstance(recipe, PDiffPaper)
    ours, preset = recipe.codec.build(2048), V2.build_autoencoder(2048)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in preset.parameters())
    assert ours.config == preset.config
    assert recipe.unet.build((1, 128)).config == V2.build_unet((1, 128)).config
    assert recipe.codec.optim.build() == V2.autoencoder_training.optim
    assert recipe.optim.build() == V2.unet_training.optim
    main, collect = recipe.fits()
    assert (main.optimizer, main.lr, main.epochs, main.weight_decay, main.batch_size) == ("adamw", 5e-4, 10, 5e-4, 128)
    assert (collect.optimizer, collect.lr, collect.schedule, recipe.count) == ("adamw", 0.03, "constant", 300)


def test_the_first_edition_is_its_preset():
    recipe = registry.recipe("pdiff-resnet18-cifar100")
    assert recipe.codec.build(2048).config == V1.build_autoencoder(2048).config
    assert recipe.unet.build((4, 3)).config == V1.build_unet((4, 3)).config
    assert recipe.optim.build() == V1.unet_training.optim
    assert recipe.ema.build() == V1.unet_training.ema
    assert recipe.codec.mix
    main, collect = recipe.fits()
    assert (main.optimizer, main.lr, main.epochs, main.schedule) == ("sgd", 0.1, 30, "thirds")
    assert (collect.optimizer, collect.lr, recipe.count) == ("sgd", 1e-4, 200)


@pytest.mark.parametrize(
    ("name", "dataset", "main", "collect"),
    [
        ("pdiff-resnet18", "flowers", (5e-3, 15), 0.03),
        ("pdiff-resnet50", "pets", (1e-4, 30), 0.03),
        ("pdiff-vit-base", "pets", (1e-4, 10), 0.1),
        ("pdiff-vit-tiny", "cifar10", (1e-4, 10), 0.15),
        ("pdiff-resnet50", "imagenet", (1e-4, 0), 0.005),
    ],
)
def test_settings_follow_the_data_set(name, dataset, main, collect):
    fits = override(registry.recipe(name), [f"dataset={dataset}"]).fits()
    assert (fits[0].lr, fits[0].epochs) == main
    assert fits[1].lr == collect
    chosen = override(registry.recipe(name), [f"dataset={dataset}", "main.lr=0.5", "collect_by.lr=0.25"]).fits()
    assert (chosen[0].lr, chosen[1].lr) == (0.5, 0.25)


LABELS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "STL-10": "stl10", "Flowers": "flowers"}
LABELS |= {"Pets": "pets", "Food-101": "food101", "ImageNet": "imagenet"}


@pytest.mark.parametrize("name", [name for name in PAPER if name not in ("pdiff-classifiers-digits",)])
def test_docstrings_have_the_tables(name):
    recipe = registry.recipe(name)
    first = name == "pdiff-resnet18-cifar100"
    text = " ".join((registry.builder(name).__doc__ or "").split())
    found = {
        LABELS[label]: tuple(map(float, numbers.split("/")))
        for label, numbers in re.findall(r"([A-Z][\w-]+) (\d+\.\d/\d+\.\d/\d+\.\d)", text)
    }
    published = dict((FIRST if first else THIRD)[recipe.architecture])
    if first:
        assert published.pop("cifar100") == (76.7, 76.7, 76.9)
    assert found == published
    assert f"{ARCHITECTURES[recipe.architecture].size:,}" in text
    assert set(SOURCES) - {"digits"} == set(LABELS.values())


def test_the_dry_run_counts_classifier_generator_and_judging():
    plan = override(registry.recipe("pdiff-vit-tiny"), ["device=cpu"]).plan(measure=False)
    rows = {row.phase: row for row in plan.rows}
    assert list(rows) == ["originals", "collecting", "autoencoder", "unet", "judging"]
    assert rows["originals"].parameters == 5_717_416 - 900 * 193
    assert rows["originals"].samples == 500_000
    assert rows["collecting"].trained_parameters == 768
    assert rows["autoencoder"].input_shape == (768,)


def test_folders_of_images(tmp_path):
    from PIL import Image

    for split in ("train", "test"):
        for label in range(10):
            (tmp_path / split / str(label)).mkdir(parents=True)
            Image.new("RGB", (20, 24), (label * 20, 0, 0)).save(tmp_path / split / str(label) / "a.png")
    recipe = override(
        registry.recipe("pdiff-resnet18"), ["dataset=cifar10", f"data={tmp_path}", "image_size=14", "choosing=4"]
    )
    recipe.check()
    assert recipe.images("fit").batch([0])["x"].shape == (1, 3, 16, 16)
    assert recipe.images("test").batch([9])["x"].shape == (1, 3, 14, 14)
    assert len(recipe.images("select")) == 4
    with pytest.raises(InputError, match="has 10 classes"):
        override(recipe, ["dataset=cifar100"]).check()


def test_bad_input(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="channels=1 and image_size=8"):
        override(registry.recipe("pdiff-resnet18"), ["dataset=digits"])
    with pytest.raises(ArtifactError, match=r"config\.json"):
        tiny("architecture=vit-tiny", f"pretrained={tmp_path}").build()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        tiny().check()
