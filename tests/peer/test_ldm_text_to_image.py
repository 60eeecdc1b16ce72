"""LDMTextToImagePipeline of both libraries on the same folder: LDMBert, VQModel."""

import numpy as np
import pytest
import torch

from tiny_sd import seeds


def call(*numbers, **more):
    def make():
        shared = {"prompt": "a painting of a squirrel eating a burger", "num_inference_steps": 4, "guidance_scale": 5.0}
        return shared | {"generator": seeds(*(numbers or (0,))), "output_type": "np"} | more

    return make


@pytest.mark.parametrize("scheduler", ["ddim", "pndm"])
def test_schedulers(pair, same, scheduler):
    same(pair("ldm", scheduler=scheduler), call())


@pytest.mark.parametrize(
    "given",
    [
        {"guidance_scale": 1.0},
        {"prompt": ["a dog", "two cats and an unknowable word"]},
        {"height": 64, "width": 96},
        {"latents": torch.randn(1, 4, 8, 8, generator=seeds(3))},
        {"output_type": "pil"},
        {"output_type": "pt"},
    ],
    ids=lambda given: ",".join(given),
)
def test_arguments(pair, same, given):
    same(pair("ldm"), call(**given))


def test_a_generator_per_picture(pair, same):
    same(pair("ldm"), call(5, 6, prompt=["a dog", "two cats"]))


def test_noise_of_the_steps(pair, same):
    """From PyTorch's global generator, the only one that reaches the steps of Diffusers' pipeline of this name."""
    ours, theirs = pair("ldm")

    def given():
        torch.manual_seed(5)
        return call(eta=0.5)() | {"generator": None}

    same((ours, theirs), given)
    a, b = (ours(**call(eta=0.5)()).images for _ in range(2))
    assert np.array_equal(a, b)
    a, b = (theirs(**call(eta=0.5)()).images for _ in range(2))
    assert not np.array_equal(a, b)


def test_the_text_matters(pair, same):
    pipes = pair("ldm")
    assert np.abs(same(pipes, call()) - same(pipes, call(prompt="a dog"))).max() > 1e-2
