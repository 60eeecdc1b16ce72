"""StableDiffusionInstructPix2PixPipeline of both libraries: two scales of guidance."""

import numpy as np
import pytest
import torch

from tiny_sd import picture, seeds

SCHEDULERS = ("ddim", "pndm", "dpm++ 2m", "euler", "euler a", "heun", "ddpm")


def call(*numbers, **more):
    def make():
        shared = {"prompt": "turn the sky into a starry night", "image": picture(), "num_inference_steps": 4}
        return shared | {"generator": seeds(*(numbers or (0,))), "output_type": "latent"} | more

    return make


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(pair, same, scheduler):
    same(pair("pix2pix", scheduler=scheduler), call())


@pytest.mark.parametrize(
    "given",
    [
        {"guidance_scale": 7.5, "image_guidance_scale": 1.0},
        {"guidance_scale": 3.0, "image_guidance_scale": 2.2},
        {"guidance_scale": 1.0},
        {"guidance_scale": 5.0, "image_guidance_scale": 0.5},
        {"negative_prompt": "blurry"},
        {"num_images_per_prompt": 2},
        {"prompt": ["a dog", "two cats"], "image": [picture(1), picture(2)]},
        {"image": picture(1, 32, 24)},
        {"image": torch.rand(1, 3, 16, 16, generator=seeds(2))},
        {"image": np.asarray(picture(1), dtype=np.float32) / 255},
        {"latents": torch.randn(1, 4, 8, 8, generator=seeds(3))},
        {"output_type": "np"},
        {"output_type": "pil"},
    ],
    ids=lambda given: ",".join(given),
)
def test_arguments(pair, same, given):
    same(pair("pix2pix"), call(**given))


def test_a_generator_per_picture(pair, same):
    same(pair("pix2pix"), call(5, 6, prompt=["a dog", "two cats"], image=[picture(1), picture(2)]))
