"""`sample --prompt`, `img2img` and `inpaint`, as a user types them."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from latentia import LDMTextToImagePipeline, StableDiffusionInstructPix2PixPipeline, StableDiffusionPipeline
from latentia.cli.main import app
from latentia.cli.options import loras
from latentia.errors import InputError
from latentia.nn.lora import add_adapter
from latentia.recipes.sampling import read_picture
from tiny_text import ldm, stable_diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline, a picture, a mask and a LoRA."""
    root = tmp_path_factory.mktemp("texts")
    pipe = stable_diffusion(StableDiffusionPipeline)
    pipe.save_pretrained(root / "sd")
    ldm(LDMTextToImagePipeline).save_pretrained(root / "ldm")
    layers = add_adapter(pipe.unet, "style", rank=2)
    for parameter in layers.parameters():
        parameter.data.normal_(std=0.5)
    pipe.save_lora_weights(root / "lora", adapter_name="style")
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "picture.png")
    Image.fromarray(np.pad(np.full((8, 8), 255, dtype=np.uint8), ((2, 38), (2, 38)))).save(root / "mask.png")
    return root


def latentia(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + str(result.exception)
    return result.output


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def test_a_grid_of_prompts_and_a_folder(folder, tmp_path):
    words = ("sample", folder / "sd", "--prompt", "a cat", "-p", "two dogs", "--steps", 2, "--scheduler", "dpm++")
    latentia(*words, "--out", tmp_path / "grid.png", "--scale", 1)
    assert pixels(tmp_path / "grid.png").shape[1] > 2 * 16 - 1
    latentia(*words, "-n", 3, "--out", tmp_path / "many", "--guidance", 3, "--negative", "a mat", "--batch-size", 2)
    files = sorted((tmp_path / "many").iterdir())
    assert [file.name for file in files] == ["00000.png", "00001.png", "00002.png"]
    notes = json.loads(Image.open(files[2]).text["latentia"])
    assert notes["prompt"] == "a cat"
    assert (notes["guidance"], notes["negative"], notes["index"]) == (3, "a mat", 2)
    pipe = StableDiffusionPipeline.from_pretrained(folder / "sd")
    from latentia import DPMSolverMultistepScheduler

    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    asked = {"guidance_scale": 3, "negative_prompt": "a mat", "num_inference_steps": 2, "seed": 0}
    alone = pipe("two dogs", sample_indices=[1], **asked).images[0]
    assert np.abs(pixels(files[1]) - np.asarray(alone)).max() <= 1


def test_size_dtype_and_lora(folder, tmp_path):
    words = ("sample", folder / "sd", "-p", "a cat", "--steps", 2, "--scale", 1)
    latentia(*words, "--height", 24, "--width", 32, "--dtype", "bfloat16", "--out", tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").shape[:2] == (24 + 2 * 2, 32 + 2 * 2)  # a scale asks for a grid
    latentia(*words, "--out", tmp_path / "plain.png")
    latentia(*words, "--lora", folder / "lora", "--out", tmp_path / "styled.png")
    latentia(*words, "--lora", f"{folder / 'lora'}=0", "--out", tmp_path / "nothing.png")
    assert np.abs(pixels(tmp_path / "styled.png") - pixels(tmp_path / "plain.png")).max() > 3
    assert np.array_equal(pixels(tmp_path / "nothing.png"), pixels(tmp_path / "plain.png"))


def test_text_to_image_of_latent_diffusion(folder, tmp_path):
    latentia("sample", folder / "ldm", "-p", "a cat", "--steps", 2, "--out", tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()


def test_img2img(folder, tmp_path):
    words = ("img2img", folder / "sd", folder / "picture.png", "-p", "a cat", "--steps", 5)
    latentia(*words, "--strength", 0.4, "--out", tmp_path / "a.png")
    latentia(*words, "--strength", 1, "--out", tmp_path / "b.png")
    assert np.abs(pixels(tmp_path / "a.png") - pixels(tmp_path / "b.png")).mean() > 1
    assert "strength" in latentia(*words, "--strength", 0.1, "--out", tmp_path / "c.png", code=2)


def test_inpaint_keeps_what_is_not_masked(folder, tmp_path):
    words = ("inpaint", folder / "sd", folder / "picture.png", folder / "mask.png", "-p", "a cat", "--steps", 3)
    latentia(*words, "--out", tmp_path / "one")
    made, given = pixels(tmp_path / "one" / "00000.png"), pixels(folder / "picture.png")
    assert np.abs(made[4:8, 4:8] - given[4:8, 4:8]).max() > 5
    assert np.array_equal(made[40:], given[40:])
    latentia(*words, "--no-paste-back", "--out", tmp_path / "two")
    assert not np.array_equal(pixels(tmp_path / "two" / "00000.png")[40:], given[40:])


def test_inpaint_keeps_pictures_of_any_size(folder, tmp_path):
    noise = np.random.default_rng(1).integers(0, 255, (43, 37, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "odd.png")
    Image.fromarray(np.pad(np.full((5, 5), 255, dtype=np.uint8), ((0, 38), (0, 32)))).save(tmp_path / "mask.png")
    words = ("inpaint", folder / "sd", tmp_path / "odd.png", tmp_path / "mask.png", "-p", "a cat", "--steps", 2)
    latentia(*words, "--out", tmp_path / "made.png")
    made = pixels(tmp_path / "made.png")
    assert made.shape == noise.shape
    assert np.array_equal(made[30:], noise[30:])
    assert np.abs(made[:4, :4] - noise[:4, :4]).max() > 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("sample", "sd"), "give one, with --prompt"),
        (("sample", "sd", "-p", "a cat", "--class", "3"), "knows no classes"),
        (("sample", "sd", "-p", "a cat", "--height", "17"), "divisible by 2"),
        (("sample", "sd", "-p", "a cat", "--dtype", "int8"), "unknown dtype"),
        (("sample", "sd", "-p", "a cat", "--lora", "nowhere"), "nowhere"),
        (("img2img", "ldm", "picture.png", "-p", "a cat"), "not image2image"),
        (("img2img", "sd", "mask.png.txt", "-p", "a cat"), "does not exist"),
    ],
)
def test_errors_are_one_line(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    output = latentia(*words, code=2)
    assert message in " ".join(output.split())
    assert "Traceback" not in output


def test_pictures_of_every_depth_are_read(folder, tmp_path):
    grey = np.asarray(Image.open(folder / "picture.png").convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(read_picture(tmp_path / "deep.png"))[..., 1], grey)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "floats.tiff")
    with pytest.raises(InputError, match="picture of mode 'F'"):
        read_picture(tmp_path / "floats.tiff")


def test_img2img_of_an_instruction(folder, tmp_path):
    stable_diffusion(StableDiffusionInstructPix2PixPipeline, channels=8).save_pretrained(tmp_path / "edit")
    words = ("img2img", tmp_path / "edit", folder / "picture.png", "-p", "a cat", "--steps", 2)
    latentia(*words, "--out", tmp_path / "a.png")
    assert "strength" in latentia(*words, "--strength", 0.5, code=2)


def test_inpainting_a_picture_smaller_than_a_latent(folder, tmp_path):
    Image.new("L", (5, 5), 255).save(tmp_path / "small.png")
    words = ("inpaint", folder / "sd", tmp_path / "small.png", tmp_path / "small.png", "-p", "a", "--steps", 2)
    latentia(*words, "--out", tmp_path / "a.png")
    assert pixels(tmp_path / "a.png").shape[:2] == (5, 5)


def test_a_lora_whose_name_looks_weighted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "style=2").mkdir()
    given = ["style=2", "style=2=0.5", "a=b.safetensors", "other=3"]
    assert loras(given) == [("style=2", 1.0), ("style=2", 0.5), ("a=b.safetensors", 1.0), ("other", 3.0)]
