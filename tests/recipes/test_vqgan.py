"""The first-stage recipes: tiny runs from pictures to numbers, resumed runs, and what they refuse."""

import json

import pytest
import torch
from pydantic import ValidationError

from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.codecs.vq_model import VQModel
from latentia.errors import ArtifactError, InputError
from latentia.losses.patchgan import PatchDiscriminator
from latentia.metrics.photo_features import PhotoFeatures
from latentia.recipes import photo_features, registry
from latentia.recipes.codec_gan_judging import held_out
from latentia.recipes.overrides import override
from latentia.recipes.plan import make_plan, rehearse
from latentia.recipes.recipe import Bench
from latentia.recipes.run import run_recipe

TINY = [
    "steps=3",
    "batch_size=4",
    "codec.channels=8,",
    "codec.groups=4",
    "codec.codes=16",
    "codec.latent_channels=8",
    "codec.code_dim=4",
    "perceptual.steps=1",
    "discriminator.width=16",
    "discriminator.start=1",
    "discriminator.warmup=0",
    "discriminator.ramp=0",
    "device=cpu",
    "log_every=1",
]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(photo_features, "STEPS", 1)
    monkeypatch.setattr(photo_features, "BATCH", 8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished tiny run on digits."""
    out = tmp_path_factory.mktemp("vqgan") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("latentia.recipes.codec_gan_judging.rulers", lambda recipe, out: [PhotoFeatures("tiny", 1)])
        run_recipe(override(registry.recipe("vqgan-digits"), [*TINY, "preview_every=3"]), out, progress=False)
    return out


def test_a_run_leaves_codec_discriminator_features_and_numbers(run):
    codec = VQModel.from_pretrained(run / "pipeline")
    assert codec.bits((1, 16, 16)) == 16 * 4
    assert PatchDiscriminator.from_pretrained(run / "discriminator").config.in_channels == 1
    assert PhotoFeatures.from_pretrained(run / "features" / "loss").config.in_channels == 1
    report = json.loads((run / "report.json").read_text())
    assert (report["recipe"], report["split"], report["n"]) == ("vqgan-digits", "test", 540)
    assert report["bits_per_pixel"] == 64 / 256
    assert list(report["frechet"]) == ["frechet_tiny"]
    assert (run / "reconstructions.png").stat().st_size > 0
    assert list((run / "samples").iterdir())


def test_both_phases_are_logged_and_both_sides_learn(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["features", "codec", "codec", "codec"]
    assert lines[-1]["discriminator/grad_norm"] > 0


def test_equal_bits_as_stated():
    photos, digits = registry.recipe("vqgan-photos"), registry.recipe("vqgan-digits")
    with torch.device("meta"):
        assert photos.build_codec().bits((3, 32, 32)) == 576
        assert digits.build_codec().bits((1, 16, 16)) == 128


def test_photographs_are_cut_into_overlapping_tiles_and_held_out_whole():
    recipe = registry.recipe("vqgan-photos")
    assert len(recipe.images()) > 20_000
    assert recipe.images().batch([0])["x"].shape == (1, 3, 32, 32)
    assert len(held_out(recipe, "test")) == 9 * 14 + 4 * 7
    assert len(held_out(recipe, "report")) == 630


def test_without_discriminator_and_without_perceptual_distance():
    recipe = override(registry.recipe("vqgan-digits"), [*TINY, "discriminator.weight=0", "perceptual.weight=0"])
    bench = Bench()
    assert [name for name, _ in recipe.phases(bench)] == ["codec"]
    phase = recipe.codec_phase(bench)
    assert phase.objective.turns == ("main",)
    assert phase.objective.perceptual is None
    assert [work.network for work in recipe.work()] == ["codec"]


def test_latent_diffusions_first_stage_sums():
    recipe = override(
        registry.recipe("ldm-kl-f8"),
        ["codec.channels=8,8", "codec.groups=4", "image_size=16", "image_channels=1", "perceptual.kind=none"],
    )
    recipe = recipe.model_copy(update={"data": "digits"})
    objective = recipe.codec_phase(Bench()).objective
    assert isinstance(objective.codec, AutoencoderKL)
    assert (objective.reduction, objective.kl_weight, objective.gan_weight) == ("sum", 1e-6, 0.5)
    assert objective.start == 50_001


@pytest.mark.parametrize(
    ("name", "parameters"), [("ldm-kl-f8", 83_653_863), ("ldm-vq-f4", 55_322_782), ("vqgan-imagenet", 72_141_699)]
)
def test_sizes_of_the_papers(name, parameters):
    with torch.device("meta"):
        codec = registry.recipe(name).build_codec()
    assert codec.num_parameters() == parameters


def test_lpips_without_weights_is_refused_before_anything_is_written(tmp_path):
    recipe = override(registry.recipe("vqgan-digits"), [*TINY, "perceptual.kind=lpips-vgg"])
    with pytest.raises(InputError, match=r"perceptual\.weights=FILE,FILE"):
        run_recipe(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["lpips-vgg", "resnet50-logits"])
def test_weights_of_another_network_are_refused_before_anything_is_written(tmp_path, kind):
    from safetensors.torch import save_file

    save_file({"other.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    given = [f"perceptual.kind={kind}", f"perceptual.weights={tmp_path / 'other.safetensors'}"]
    for name in ("vqgan-digits", "flowmo-digits"):
        recipe = override(registry.recipe(name), given)
        with pytest.raises(ArtifactError, match="incomplete"):
            run_recipe(recipe, tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["lpips-vgg", "lpips-alex", "resnet50-logits"])
def test_published_networks_see_grey_pictures_as_colour(kind):
    recipe = override(registry.recipe("vqgan-digits"), [f"perceptual.kind={kind}", "image_size=64"])
    rehearse(recipe)
    shapes = {row.network: row.input_shape for row in make_plan(recipe, measure=False).rows}
    assert shapes["perceptual"] == (3, 64, 64)
    assert shapes["codec"] == (1, 64, 64)


def test_fields_that_do_not_fit():
    recipe = registry.recipe("vqgan-photos")
    with pytest.raises(InputError, match="batch norm mixes pictures"):
        override(recipe, ["discriminator.r1=1", "discriminator.norm=batch"])
    with pytest.raises(InputError, match="leave them out"):
        override(recipe, ["perceptual.weights=a.pth"])
    with pytest.raises(InputError, match=r"did you mean 'perceptual\.kind'"):
        override(recipe, ["perceptual.kinds=none"])
    with pytest.raises(ValidationError, match="frozen"):
        recipe.discriminator.width = 3


@pytest.mark.parametrize("role", ["loss", "ruler"])
def test_feature_networks_are_made_on_demand_and_kept(tmp_path, role, monkeypatch):
    digits = registry.recipe("vqgan-digits").images()
    make = {"loss": photo_features.loss_network, "ruler": photo_features.ruler}[role]
    first = make(tmp_path, digits)
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())
    monkeypatch.setattr(photo_features, "train_features", None)  # kept: not trained again
    again = make(tmp_path, digits)
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(first.features(x), again.features(x))


def test_ruler_and_loss_are_different_networks_and_each_is_reproducible():
    digits = registry.recipe("vqgan-digits").images()
    x = torch.rand(2, 1, 16, 16)
    ruler, loss = photo_features.ruler(None, digits), photo_features.loss_network(None, digits)
    assert photo_features.ROLES["ruler"] != photo_features.ROLES["loss"]
    assert not torch.allclose(ruler.features(x), loss.features(x), atol=1e-3)
    assert torch.equal(photo_features.ruler(None, digits).features(x), ruler.features(x))


def test_labels_are_counted_without_reading_a_million_tiles(monkeypatch):
    from latentia.data.dataset import TensorDataset
    from latentia.data.photos import PhotoTiles
    from latentia.recipes.photo_features import num_labels

    monkeypatch.setattr(PhotoTiles, "batch", lambda *_: pytest.fail("read"))
    tiles = registry.recipe("vqgan-photos").images()
    assert len(tiles) > 10**6
    assert num_labels(tiles) == 8  # classes of the training photographs; the highest is `rocket`
    assert num_labels(TensorDataset({"x": torch.zeros(2, 1, 4, 4)})) == 0
    assert num_labels(TensorDataset({"x": torch.zeros(2, 1, 4, 4), "label": torch.tensor([0, 4])})) == 5
