import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from latentia import AutoencoderKL, DDPMPipeline, DiffusionPipeline, LatentDiffusionPipeline, VQModel
from latentia.errors import ConfigError, InputError, TrainingError
from latentia.recipes.latent import EncodedDataset
from latentia.recipes.overrides import override
from latentia.recipes.recipe import Bench
from latentia.recipes.run import load_recipe, run_recipe, start_or_saved

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_a_run_leaves_recipe_metrics_samples_and_pipeline(ldm_run, tiny_ldm):
    assert load_recipe(ldm_run) == tiny_ldm
    lines = [json.loads(line) for line in (ldm_run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [("vae", 2), ("unet", 2)]
    assert (ldm_run / "samples" / "unet-00000002.png").is_file()
    pipe = DiffusionPipeline.from_pretrained(ldm_run / "pipeline")
    assert type(pipe) is LatentDiffusionPipeline
    assert (pipe.num_classes, pipe.null_class) == (10, 10)


def test_latents_have_unit_variance(ldm_run, tiny_ldm):
    codec = AutoencoderKL.from_pretrained(ldm_run / "pipeline" / "vae")
    x = tiny_ldm.images().batch(range(1257))["x"]
    with torch.no_grad():
        z = codec.to_latents(x, torch.Generator().manual_seed(0))
    assert float(z.std()) == pytest.approx(1, abs=0.02)


def test_the_pipeline_holds_the_average(ldm_run):
    final = ldm_run / "checkpoints" / "unet" / "final"
    saved = load_file(ldm_run / "pipeline" / "unet" / WEIGHTS)
    averaged, raw = load_file(final / "averaged.safetensors"), load_file(final / "weights.safetensors")
    assert all(torch.equal(value, averaged[f"denoiser.{name}"]) for name, value in saved.items())
    assert not all(torch.equal(value, raw[f"denoiser.{name}"]) for name, value in saved.items())


def test_a_pixel_run_makes_a_ddpm_pipeline(ddpm_run):
    pipe = DiffusionPipeline.from_pretrained(ddpm_run / "pipeline")
    assert type(pipe) is DDPMPipeline
    assert pipe.sample_shape == (1, 16, 16)
    assert pipe.scheduler.config.clip_sample is True


def test_the_same_recipe_gives_the_same_weights(ddpm_run, tiny_ddpm, tmp_path):
    run_recipe(tiny_ddpm, tmp_path, progress=False)
    ours, theirs = (load_file(out / "pipeline" / "unet" / WEIGHTS) for out in (tmp_path, ddpm_run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_is_not_overwritten(ddpm_run, tiny_ddpm):
    with pytest.raises(TrainingError, match="already holds a run: go on with --resume"):
        run_recipe(tiny_ddpm, ddpm_run, progress=False)


def test_resume_takes_more_steps_and_no_other_recipe(ddpm_run, tiny_ddpm, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(ddpm_run, out)
    with pytest.raises(TrainingError, match=f"unet.groups was 4, now 2; optim.lr was {tiny_ddpm.optim.lr}, now 0.5"):
        run_recipe(override(tiny_ddpm, ["optim.lr=0.5", "unet.groups=2"]), out, resume=True, progress=False)
    longer = override(tiny_ddpm, ["steps=3", "save_every=9"])
    run_recipe(longer, out, resume=True, progress=False)
    assert load_recipe(out) == longer
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 3]


@pytest.mark.parametrize(
    ("setting", "said"),
    [("steps=1", "already taken 2 steps and 1 were asked for"), ("vae.steps=5", "unet is built on it: keep 2 steps")],
)
def test_a_refused_resume_leaves_the_recipe_as_it_was(ldm_run, tiny_ldm, tmp_path, setting, said):
    out = tmp_path / "run"
    shutil.copytree(ldm_run, out)
    with pytest.raises(TrainingError, match=said):
        run_recipe(override(tiny_ldm, [setting]), out, resume=True, progress=False)
    assert load_recipe(out) == tiny_ldm
    run_recipe(start_or_saved("digits-ldm", out, resume=True), out, resume=True, progress=False)


def test_resume_of_a_foreign_folder_is_refused(tiny_ddpm, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(TrainingError, match=r"holds no recipe.json, so there is no run to resume"):
        run_recipe(tiny_ddpm, tmp_path, resume=True, progress=False)


def test_start_or_saved_takes_the_saved_recipe(ddpm_run, tiny_ddpm, tmp_path):
    assert start_or_saved("digits-ddpm", ddpm_run, resume=True) == tiny_ddpm
    assert start_or_saved("digits-ddpm", ddpm_run, resume=False).steps > 2
    assert start_or_saved("digits-ddpm", tmp_path, resume=True).steps > 2
    with pytest.raises(TrainingError, match="holds a run of digits-ddpm, not of digits-ldm"):
        start_or_saved("digits-ldm", ddpm_run, resume=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("unet.groups=3", "groups|divis"),
        ("unet.head_dim=32", "attention_head_dim 32"),
        ("image_size=10", "divisible"),
        ("num_classes=0", "label_dropout=0.1 needs classes: set num_classes"),
        ("batch_size=9", "phase 'unet': batch_size 9 is not divisible by 2 processes"),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_written(tiny_ldm, tmp_path, setting, message, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises((ConfigError, InputError), match=message):
        run_recipe(override(tiny_ldm, [setting]), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_is_found_before_anything_is_written(tiny_ldm, tmp_path):
    with pytest.raises(InputError, match="device 'cuda' is not available here"):
        run_recipe(override(tiny_ldm, ["device=cuda"]), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data", ["digits", "photos"])
def test_a_wrong_number_of_classes_is_found_before_the_first_step(tiny_ldm, tmp_path, data):
    with pytest.raises(InputError, match=f"data '{data}' has .* classes and num_classes=4"):
        run_recipe(override(tiny_ldm, [f"data={data}", "num_classes=4"]), tmp_path, progress=False)
    assert not (tmp_path / "checkpoints").exists()


@pytest.fixture
def cats_and_dogs(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            Image.linear_gradient("L").resize((8, 8)).rotate(90 * i).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def test_class_folders_name_the_classes_of_the_pipeline(tiny_ldm, tiny_ddpm, cats_and_dogs, tmp_path):
    settings = [f"data={cats_and_dogs}", "image_size=8", "num_classes=2", "steps=1", "batch_size=2"]
    latent = override(tiny_ldm, [*settings, "vae.steps=1", "vae.channels=8,8", "preview_every=0"])
    for recipe, out in ((latent, tmp_path / "latent"), (override(tiny_ddpm, [*settings, "flip=true"]), tmp_path / "p")):
        run_recipe(recipe, out, progress=False)
        pipe = DiffusionPipeline.from_pretrained(out / "pipeline")
        assert pipe.labels == {"cats": 0, "dogs": 1}
        assert pipe.num_classes == 2


def test_a_dry_run_counts_the_pictures_of_a_folder(tiny_ldm, cats_and_dogs):
    recipe = override(tiny_ldm, [f"data={cats_and_dogs}", "num_classes=2"])
    assert [row.samples for row in recipe.plan(measure=False).rows] == [16, 6, 16]


def test_a_trained_codec_can_be_given(ldm_run, tiny_ldm, tmp_path):
    recipe = override(tiny_ldm, [f"codec={ldm_run}", "cache=false", "preview_every=0"])
    assert [name for name, _ in recipe.phases(Bench())] == ["unet"]
    run_recipe(recipe, tmp_path / "run", progress=False)
    first, second = (load_file(out / "pipeline" / "vae" / WEIGHTS) for out in (ldm_run, tmp_path / "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_encoded_images_are_the_same_in_any_batch(ldm_run, tiny_ldm):
    codec = AutoencoderKL.from_pretrained(ldm_run / "pipeline" / "vae")
    data = EncodedDataset(codec, tiny_ldm.images(), seed=3)
    whole, alone = data.batch([4, 9, 2]), data.batch([9])
    assert len(data) == 1257
    assert torch.equal(whole["label"], tiny_ldm.images().batch([4, 9, 2])["label"])
    torch.testing.assert_close(whole["x"][1:2], alone["x"])
    assert not torch.allclose(EncodedDataset(codec, tiny_ldm.images(), seed=4).batch([9])["x"], alone["x"])


def test_without_ema_the_last_weights_are_saved(tiny_ddpm, tmp_path):
    run_recipe(override(tiny_ddpm, ["ema.decay=0", "steps=1"]), tmp_path, progress=False)
    raw = load_file(tmp_path / "checkpoints" / "unet" / "final" / "weights.safetensors")
    saved = load_file(tmp_path / "pipeline" / "unet" / WEIGHTS)
    assert all(torch.equal(value, raw[f"denoiser.{name}"]) for name, value in saved.items())


def test_a_vector_quantised_first_stage(tiny_ldm, tmp_path):
    """Its continuous latents are learned; the pipeline that comes out quantises when it decodes."""
    torch.manual_seed(0)
    vqvae = VQModel(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 8),
        norm_num_groups=4,
        latent_channels=2,
        sample_size=32,
        num_vq_embeddings=7,
        scaling_factor=1.0,
    )
    vqvae.save_pretrained(tmp_path / "vqvae")
    recipe = override(tiny_ldm, [f"codec={tmp_path / 'vqvae'}", "cache=false", "preview_every=0"])
    assert [row.network for row in recipe.plan(measure=False).rows] == ["codec", "unet"]
    run_recipe(recipe, tmp_path / "run", progress=False)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.vae) is VQModel
    assert pipe.sample_shape == (2, 8, 8)
    call = {"seed": 0, "class_labels": [3], "num_inference_steps": 2}
    z = pipe(**call, output_type="latent").images
    picture = pipe.vae.from_tokens(pipe.vae.quantize.assign(z)) / 2 + 0.5
    torch.testing.assert_close(pipe(**call, output_type="pt").images, picture.clamp(0, 1))
