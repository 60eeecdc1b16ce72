"""StableDiffusionInpaintPipeline of both libraries: 9-channel networks, and blending of latents with 4-channel ones."""

import numpy as np
import PIL.Image
import pytest
import torch

from tiny_sd import picture, seeds

NAME = "StableDiffusionInpaintPipeline"
SCHEDULERS = ("ddim", "pndm", "dpm++ 2m", "dpm++ 2m karras", "euler", "euler a", "heun", "ddpm")


def mask(width=16, height=16):
    """White where to paint: an off-centre box."""
    filled = np.zeros((height, width), dtype=np.uint8)
    filled[height // 4 : height * 3 // 4, width // 8 : width * 5 // 8] = 255
    return PIL.Image.fromarray(filled)


def call(*numbers, **more):
    def make():
        shared = {"prompt": "a small red cube", "image": picture(), "mask_image": mask(), "height": 16, "width": 16}
        return shared | {
            "num_inference_steps": 5,
            "generator": seeds(*(numbers or (0,))),
            "output_type": "latent",
            **more,
        }

    return make


@pytest.mark.parametrize("kind", ["inpaint", "sd1"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_schedulers_and_strengths(pair, same, kind, scheduler, strength):
    if scheduler == "pndm" and strength < 1:
        pytest.skip("Diffusers' PNDM cannot begin in the middle: see test_image_to_image.py")
    same(pair(kind, NAME, scheduler), call(strength=strength))


@pytest.mark.parametrize("kind", ["inpaint", "sd1"])
@pytest.mark.parametrize(
    "given",
    [
        {"height": 24, "width": 32, "image": picture(1, 32, 24), "mask_image": mask(32, 24)},
        {"image": torch.rand(1, 3, 16, 16, generator=seeds(1)), "mask_image": (torch.eye(16) > 0).float()[None, None]},
        {"image": [picture(1), picture(2)], "mask_image": [mask(), mask()], "prompt": ["a dog", "two cats"]},
        {"num_images_per_prompt": 2},
        {"guidance_scale": 1.0},
        {"negative_prompt": "blurry"},
        {"strength": 0.9},
        {"output_type": "np"},
        {"output_type": "pil"},
    ],
    ids=lambda given: ",".join(given),
)
def test_arguments(pair, same, kind, given):
    same(pair(kind, NAME, "ddim"), call(**given))


@pytest.mark.parametrize("kind", ["inpaint", "sd1"])
def test_a_generator_per_picture(pair, same, kind):
    given = {"image": [picture(1), picture(2)], "mask_image": [mask(), mask()], "prompt": ["a dog", "two cats"]}
    same(pair(kind, NAME, "euler a"), call(5, 6, **given))


def test_a_mask_of_nothing_keeps_the_picture(pair, same):
    """By blending: nothing is painted, so that the latents are the picture's own."""
    nothing = PIL.Image.new("L", (16, 16), 0)
    found = same(pair("sd1", NAME, "ddim"), call(mask_image=nothing))
    again = same(pair("sd1", NAME, "ddim"), call(mask_image=nothing, prompt="something else"))
    assert np.abs(found - again).max() < 1e-5


@pytest.mark.parametrize("kind", ["inpaint", "sd1"])
@pytest.mark.parametrize("padding", [0, 4, 40])
def test_working_on_a_crop(pair, same, kind, padding):
    """Around the mask, at full size, put back into the picture."""
    given = {"image": picture(1, 48, 32), "mask_image": mask(48, 32), "output_type": "pil"}
    found = same(pair(kind, NAME, "ddim"), call(**given, padding_mask_crop=padding))
    assert found.shape == (1, 32, 48, 3)


def test_latents_of_the_picture(pair, same):
    z = torch.randn(1, 4, 8, 8, generator=seeds(6))
    same(pair("inpaint", NAME, "ddim"), call(masked_image_latents=z))
    same(pair("sd1", NAME, "ddim"), call(image=z, masked_image_latents=z, strength=0.7))
