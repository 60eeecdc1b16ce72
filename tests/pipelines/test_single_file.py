"""Pipelines and models from one checkpoint file."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from latentia import DiffusionPipeline
from latentia.core.artifacts import load_state_dict
from latentia.errors import ArtifactError, InputError, UnknownChoiceError
from latentia.formats.single_file import to_single_file
from latentia.pipelines.single_file import load_part, load_single_file
from tiny_sd import tiny_sd

UNTOLD = {
    "unet": {"norm_num_groups": 8, "attention_head_dim": 2, "sample_size": 8},
    "vae": {"norm_num_groups": 8, "sample_size": 16},
    "text_encoder": {"num_attention_heads": 4},
}
"""What no tensor tells of the tiny networks."""


def checkpoint(kind="sd1"):
    pipe = DiffusionPipeline.from_pretrained(tiny_sd(kind))
    parts = {"unet": pipe.unet.state_dict(), "vae": pipe.vae.state_dict()}
    return to_single_file(parts | {"text_encoder": pipe.text_encoder.state_dict()}, open_clip=kind == "sd2")


@pytest.fixture(scope="module")
def sd1(tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "sd1.safetensors"
    save_file(checkpoint(), path)
    return path


def picture(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        "a red cube", num_inference_steps=2, generator=torch.Generator().manual_seed(3), output_type="pt"
    ).images


def test_the_same_pictures_as_from_the_folder(sd1):
    folder = DiffusionPipeline.from_pretrained(tiny_sd("sd1"))
    single = load_single_file(sd1, tokenizer=tiny_sd("sd1"), overrides=UNTOLD)
    assert type(single) is type(folder)
    assert torch.equal(picture(single), picture(folder))
    assert {k: v for k, v in single.scheduler.config.items() if k != "clip_sample"} == {
        k: v for k, v in folder.scheduler.config.items() if k != "clip_sample"
    }
    assert not single.unet.training


def test_stable_diffusion_2_warns_of_its_guess(tmp_path):
    save_file(checkpoint("sd2"), tmp_path / "sd2.safetensors")
    overrides = {**UNTOLD, "unet": {**UNTOLD["unet"], "attention_head_dim": (2, 4)}}
    with pytest.warns(UserWarning, match="the weights do not tell"):
        pipe = load_single_file(tmp_path / "sd2.safetensors", tokenizer=tiny_sd("sd2"), overrides=overrides)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    folder = DiffusionPipeline.from_pretrained(tiny_sd("sd2"))
    assert torch.equal(picture(pipe.__class__(**{**folder.components, "unet": pipe.unet})), picture(folder))
    pipe = load_single_file(
        tmp_path / "sd2.safetensors", tokenizer=tiny_sd("sd2"), overrides=overrides, prediction_type="epsilon"
    )
    assert pipe.scheduler.config.prediction_type == "epsilon"


def test_the_tokenizer_is_asked_for_before_anything_is_read(sd1):
    with pytest.raises(InputError, match=r"needs a tokenizer: pass tokenizer=FOLDER"):
        load_single_file(sd1)
    with pytest.raises(ArtifactError, match=r"no folder .*nowhere"):
        load_single_file(sd1, tokenizer=sd1.parent / "nowhere")
    tokenizer = DiffusionPipeline.from_pretrained(tiny_sd("sd1")).tokenizer
    assert load_single_file(sd1, tokenizer=tokenizer, overrides=UNTOLD).tokenizer is tokenizer
    inner = load_single_file(sd1, tokenizer=str(tiny_sd("sd1") / "tokenizer"), overrides=UNTOLD).tokenizer
    assert inner("a red cube").input_ids == tokenizer("a red cube").input_ids


def test_parts_can_be_replaced_and_must_be_there(sd1, tmp_path):
    no_vae = {k: v for k, v in checkpoint().items() if not k.startswith("first_stage_model.")}
    save_file(no_vae, tmp_path / "part.safetensors")
    overrides = {k: v for k, v in UNTOLD.items() if k != "vae"}
    with pytest.raises(ArtifactError, match=r"lacks vae for StableDiffusionPipeline: pass vae=..."):
        load_single_file(tmp_path / "part.safetensors", tokenizer=tiny_sd("sd1"), overrides=overrides)
    vae = DiffusionPipeline.from_pretrained(tiny_sd("sd1")).vae
    pipe = load_single_file(tmp_path / "part.safetensors", tokenizer=tiny_sd("sd1"), vae=vae, overrides=overrides)
    assert pipe.vae is vae
    with pytest.raises(UnknownChoiceError, match="unknown component of StableDiffusionPipeline 'vea'"):
        load_single_file(sd1, tokenizer=tiny_sd("sd1"), vea=vae)


def test_parts_alone(sd1, tmp_path):
    folder = DiffusionPipeline.from_pretrained(tiny_sd("sd1"))
    for name in ("unet", "vae", "text_encoder"):
        part = load_part(sd1, name, overrides=UNTOLD)
        expected = getattr(folder, name)
        assert type(part) is type(expected)
        assert all(torch.equal(v, expected.state_dict()[k]) for k, v in part.state_dict().items())
    with pytest.raises(UnknownChoiceError, match="did you mean 'unet'"):
        load_part(sd1, "unett", overrides=UNTOLD)
    with pytest.raises(InputError, match="holds unet, vae, text_encoder: say which one"):
        load_part(sd1)
    save_file(load_state_dict(tiny_sd("sd1") / "vae"), tmp_path / "vae.safetensors")
    vae = load_part(tmp_path / "vae.safetensors", dtype=torch.bfloat16, overrides={"vae": {"norm_num_groups": 8}})
    assert (type(vae).__name__, vae.dtype) == ("AutoencoderKL", torch.bfloat16)
    with pytest.raises(ArtifactError, match=r"AutoencoderKL alone, which no pipeline runs: load_part"):
        load_single_file(tmp_path / "vae.safetensors", tokenizer=tiny_sd("sd1"))


def test_weights_that_do_not_fit_are_named_before_any_is_read(tmp_path):
    broken = checkpoint()
    key = "model.diffusion_model.middle_block.2.in_layers.2.weight"
    broken[key] = broken[key][:, :5].contiguous()
    del broken["first_stage_model.decoder.norm_out.weight"]
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(ArtifactError, match=r"broken.safetensors \(unet\).*mid_block.resnets.1.conv1.weight \(file"):
        load_part(tmp_path / "broken.safetensors", "unet", overrides=UNTOLD)
    with pytest.raises(ArtifactError, match=r"1 missing: decoder.conv_norm_out.weight"):
        load_part(tmp_path / "broken.safetensors", "vae", overrides=UNTOLD)


def test_unconditional_latent_diffusion(tmp_path):
    from latentia import LDMPipeline, UNet2DModel, VQModel

    stages = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    unet = UNet2DModel(sample_size=64, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=32, **stages)
    codec = VQModel(num_vq_embeddings=8, block_out_channels=(32,), scaling_factor=1.0, sample_size=64)
    parts = {"unet": unet.eval().state_dict(), "vae": codec.eval().state_dict()}
    save_file(to_single_file(parts), tmp_path / "ldm.safetensors")
    pipe = load_single_file(tmp_path / "ldm.safetensors")
    assert type(pipe) is LDMPipeline
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([7])
    assert torch.equal(pipe.unet(x, t).sample, unet(x, t).sample)
    assert torch.equal(pipe.vqvae.from_latents(x), codec.from_latents(x))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of resident memory in KiB")
def test_one_copy_of_the_weights_in_memory(tmp_path):
    from latentia import UNet2DConditionModel

    width = (256, 512)
    stages = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "layers_per_block": 1}
    stages["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(block_out_channels=width, cross_attention_dim=768, **stages)
    save_file(to_single_file({"unet": unet.state_dict()}), tmp_path / "unet.safetensors")
    size = (tmp_path / "unet.safetensors").stat().st_size
    code = (
        "import json, resource, sys, torch, latentia; from latentia.pipelines.single_file import load_part;"
        "latentia.UNet2DConditionModel; torch.ones(8) @ torch.ones(8);"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024;"
        "before = peak(); model = load_part(sys.argv[1]); print(json.dumps([before, peak()]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "unet.safetensors")], capture_output=True, text=True, check=True
    )
    before, after = json.loads(done.stdout)
    assert size > 100e6
    assert after - before < 1.1 * size
