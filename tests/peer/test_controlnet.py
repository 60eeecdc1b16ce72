"""StableDiffusionControlNetPipeline of both libraries on the same folder."""

import numpy as np
import pytest
import torch

from tiny_sd import picture, seeds

SCHEDULERS = ("ddim", "pndm", "dpm++ 2m", "euler", "euler a", "heun", "ddpm")


def call(*numbers, **more):
    def make():
        shared = {"prompt": "a small red cube", "image": picture(), "num_inference_steps": 5}
        return shared | {"generator": seeds(*(numbers or (0,))), "output_type": "latent"} | more

    return make


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(pair, same, scheduler):
    same(pair("controlnet", scheduler=scheduler), call())


@pytest.mark.parametrize(
    "given",
    [
        {"controlnet_conditioning_scale": 0.0},
        {"controlnet_conditioning_scale": 0.5},
        {"controlnet_conditioning_scale": 1.7},
        {"guess_mode": True},
        {"guess_mode": True, "guidance_scale": 1.0},
        {"guess_mode": True, "controlnet_conditioning_scale": 0.6, "guidance_scale": 3.0},
        {"control_guidance_end": 0.5},
        {"control_guidance_start": 0.3},
        {"control_guidance_start": 0.2, "control_guidance_end": 0.8},
        {"guidance_scale": 1.0},
        {"negative_prompt": "blurry"},
        {"num_images_per_prompt": 2},
        {"prompt": ["a dog", "two cats"]},
        {"prompt": ["a dog", "two cats"], "image": [picture(1), picture(2)]},
        {"image": picture(1, 32, 24)},
        {"image": picture(1, 32, 24), "height": 16, "width": 24},
        {"image": torch.rand(1, 3, 16, 16, generator=seeds(2))},
        {"image": np.asarray(picture(1), dtype=np.float32)[None] / 255},
        {"latents": torch.randn(1, 4, 8, 8, generator=seeds(3))},
        {"output_type": "np"},
        {"output_type": "pil"},
    ],
    ids=lambda given: ",".join(given),
)
def test_arguments(pair, same, given):
    same(pair("controlnet"), call(**given))


@pytest.mark.parametrize("scheduler", ["heun", "pndm"])
def test_part_of_the_steps_under_schedulers_of_several_turns(pair, same, scheduler):
    same(pair("controlnet", scheduler=scheduler), call(control_guidance_start=0.25, control_guidance_end=0.7))


def test_the_image_matters(pair, same):
    pipes = pair("controlnet", scheduler="ddim")
    one, other, none = (
        same(pipes, call(**given)) for given in ({}, {"image": picture(9)}, {"controlnet_conditioning_scale": 0.0})
    )
    assert np.abs(one - other).max() > 1e-2
    assert np.abs(one - none).max() > 1e-2


def test_a_generator_per_picture(pair, same):
    same(pair("controlnet", scheduler="euler a"), call(5, 6, prompt=["a dog", "two cats"]))
