"""Bad input to the pipelines of Stable Diffusion: an error before the first step, which says how to mend it."""

import functools
import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file

import latentia
from latentia.errors import ArtifactError, InputError, LatentiaError
from tiny_sd import tiny_sd

TEXT, IMAGE = "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"
PAINT, EDIT, CONTROL = (
    "StableDiffusionInpaintPipeline",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionControlNetPipeline",
)
KINDS = {TEXT: "sd1", IMAGE: "sd1", PAINT: "inpaint", EDIT: "pix2pix", CONTROL: "controlnet"}
PICTURE = PIL.Image.new("RGB", (16, 16), (200, 30, 90))
MASK = PIL.Image.new("L", (16, 16), 255)
GIVEN = {
    TEXT: {},
    IMAGE: {"image": PICTURE},
    PAINT: {"image": PICTURE, "mask_image": MASK},
    EDIT: {"image": PICTURE},
    CONTROL: {"image": PICTURE},
}
EVERYWHERE = [
    ({"prompt": []}, "empty"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 3}, "prompt"),
    ({"prompt": ["a dog", None]}, "prompt"),
    ({"negative_prompt": ["a", "b", "c"]}, "3 negative prompts for 1"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 77, 16)}, "77, 16"),
    ({"prompt_embeds": torch.zeros(1, 77, 32)}, "not both"),
    ({"negative_prompt_embeds": torch.zeros(1, 77, 31)}, "77, 31"),
    ({"num_inference_steps": 0}, "num_inference_steps"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
    ({"output_type": "PIL"}, "known: latent, np, pil, pt"),
    ({"guidance_scale": "high"}, "guidance_scale"),
    ({"guidance_scale": float("nan")}, "guidance_scale"),
    ({"guidance_rescale": 2.0}, "guidance_rescale"),
    ({"clip_skip": 9}, "clip_skip"),
    ({"clip_skip": -1}, "clip_skip"),
    ({"generator": [torch.Generator()] * 3}, "3"),
    ({"generator": 7}, "generator"),
    ({"strenght": 0.5}, "strenght"),
    ({"callback_on_step_end": lambda pipe: None}, "callback_on_step_end"),
    ({"callback_on_step_end": lambda *_: None, "callback_on_step_end_tensor_inputs": ["latens"]}, "'latents'"),
]
OWN = [
    (TEXT, {"height": 15, "width": 16}, "divisible by 2: 1[46] × 16"),
    (TEXT, {"height": 0}, "height"),
    (TEXT, {"latents": torch.zeros(1, 4, 9, 8)}, r"\(1, 4, 9, 8\)"),
    (IMAGE, {"strength": 0.1, "num_inference_steps": 5}, "(?s)strength.*num_inference_steps"),
    (IMAGE, {"strength": 0.0}, "strength"),
    (IMAGE, {"strength": 1.5}, "strength"),
    (IMAGE, {"image": None}, "image"),
    (IMAGE, {"image": []}, "image"),
    (IMAGE, {"image": torch.rand(1, 5, 16, 16)}, "5"),
    (IMAGE, {"image": torch.full((1, 3, 16, 16), float("nan"))}, "image"),
    (IMAGE, {"image": [PICTURE] * 3, "prompt": ["a", "b"]}, "(?s)3.*2"),
    (PAINT, {"strength": 0.1, "num_inference_steps": 5}, "(?s)strength.*num_inference_steps"),
    (PAINT, {"mask_image": PIL.Image.new("L", (24, 16))}, "(?s)mask.*24"),
    (PAINT, {"mask_image": torch.zeros(1, 1, 8, 8)}, "(?s)mask.*8"),
    (PAINT, {"mask_image": None}, "mask"),
    (PAINT, {"image": None}, "image"),
    (EDIT, {"image": None}, "image"),
    (EDIT, {"image_guidance_scale": -1.0}, "image_guidance_scale"),
    (CONTROL, {"image": None}, "image"),
    (CONTROL, {"image": [PICTURE] * 3, "prompt": ["a", "b"]}, "(?s)3.*2"),
    (CONTROL, {"control_guidance_start": 0.8, "control_guidance_end": 0.2}, "control_guidance"),
    (CONTROL, {"controlnet_conditioning_scale": float("inf")}, "controlnet_conditioning_scale"),
]


@functools.cache
def pipeline(name):
    """Read once; no test changes it."""
    made = getattr(latentia, name).from_pretrained(tiny_sd(KINDS[name]))
    made.set_progress_bar_config(disable=True)
    return made


def call(name, given):
    return {"prompt": "a dog", "num_inference_steps": 4, **GIVEN[name], **given}


def refuse(*args, **kwargs):
    raise AssertionError("the network ran before the call was checked")


def raises_before_the_first_step(name, given, words, monkeypatch):
    pipe = pipeline(name)
    monkeypatch.setattr(pipe.unet, "forward", refuse)
    with pytest.raises(LatentiaError, match=words) as caught:
        pipe(**call(name, given))
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize(("given", "words"), EVERYWHERE)
def test_every_text_pipeline(name, given, words, monkeypatch):
    raises_before_the_first_step(name, given, words, monkeypatch)


@pytest.mark.parametrize(("name", "given", "words"), OWN)
def test_what_only_some_take(name, given, words, monkeypatch):
    raises_before_the_first_step(name, given, words, monkeypatch)


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_none_where_a_component_is_required(name, part):
    pipe = pipeline(name)
    with pytest.raises(InputError, match=f"component '{part}' must be .*; got None"):
        getattr(latentia, name)(**{**pipe.components, part: None})


@pytest.mark.parametrize("name", list(KINDS))
def test_parts_of_another_model(name):
    """The networks of one pipeline must fit each other, and the pipeline."""
    pipe = pipeline(name)
    channels = {PAINT: 8, EDIT: 9}.get(name, 8)
    config = {**pipe.unet.config, "in_channels": channels}
    with pytest.raises(InputError, match=f"(?s){channels}"):
        getattr(latentia, name)(**{**pipe.components, "unet": latentia.UNet2DConditionModel(**config)})
    config = {**pipe.unet.config, "cross_attention_dim": 48}
    with pytest.raises(InputError, match=r"(?s)32.*48|48.*32"):
        getattr(latentia, name)(**{**pipe.components, "unet": latentia.UNet2DConditionModel(**config)})


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer",
        "scheduler/scheduler_config.json",
    ],
)
def test_half_downloaded_folders(tmp_path, missing):
    """What is missing is named."""
    folder = shutil.copytree(tiny_sd("sd1"), tmp_path / "sd")
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ArtifactError, match=missing.split("/")[0]):
        latentia.DiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_half_downloaded_files(tmp_path, part, kept):
    folder = shutil.copytree(tiny_sd("sd1"), tmp_path / "sd")
    data = (folder / part).read_bytes()
    (folder / part).write_bytes(data[: int(kept * len(data))])
    with pytest.raises(ArtifactError, match=part.split("/")[1]):
        latentia.DiffusionPipeline.from_pretrained(folder)


def test_cut_off_json(tmp_path):
    folder = shutil.copytree(tiny_sd("sd1"), tmp_path / "sd")
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        whole = (folder / name).read_text()
        (folder / name).write_text(whole[: len(whole) // 2])
        with pytest.raises((ArtifactError, InputError), match=name.rsplit("/", maxsplit=1)[-1]):
            latentia.DiffusionPipeline.from_pretrained(folder)
        (folder / name).write_text(whole)


def test_a_component_that_nobody_knows(tmp_path):
    folder = shutil.copytree(tiny_sd("sd1"), tmp_path / "sd")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "UNet2DConditionModle"]}))
    with pytest.raises(LatentiaError, match="UNet2DConditionModel"):
        latentia.DiffusionPipeline.from_pretrained(folder)


def test_a_checkpoint_of_an_unknown_family(tmp_path):
    """It says what was found."""
    from latentia.pipelines.single_file import load_single_file

    path = tmp_path / "model.safetensors"
    save_file({"transformer.layers.0.weight": torch.from_numpy(np.eye(3, dtype=np.float32))}, path)
    with pytest.raises(LatentiaError, match="begin with transformer"):
        load_single_file(path)
