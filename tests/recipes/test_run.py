import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from latentia import AutoencoderKL, DDPMPipeline, DiffusionPipeline, LatentDiffusionPipeline
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
    with pytest.raises(TrainingError, match=r"unet.groups was 4, now 2; optim.lr was 0.001, now 0.5"):
        run_recipe(override(tiny_ddpm, ["optim.lr=0.5", "unet.groups=2"]), out, resume=True, progress=False)
    longer = override(tiny_ddpm, ["steps=3", "save_every=9", "optim.schedule=cosine"])
    run_recipe(longer, out, resume=True, progress=False)
    assert load_recipe(out) == longer
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 3]


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
    [("unet.groups=3", "groups|divis"), ("unet.head_dim=32", "attention_head_dim 32"), ("image_size=10", "divisible")],
)
def test_sizes_that_do_not_fit_are_found_before_anything_is_written(tiny_ldm, tmp_path, setting, message):
    with pytest.raises((ConfigError, InputError), match=message):
        run_recipe(override(tiny_ldm, [setting]), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


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
