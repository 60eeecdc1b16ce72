"""StableDiffusionImg2ImgPipeline of both libraries on the same folder and pictures."""

import numpy as np
import pytest
import torch

from tiny_sd import picture, seeds

NAME = "StableDiffusionImg2ImgPipeline"
SCHEDULERS = ("ddim", "dpm++ 2m", "dpm++ 2m karras", "euler", "euler a", "heun", "ddpm")


def call(*numbers, **more):
    def make():
        shared = {"prompt": "a small red cube", "image": picture(), "strength": 0.5, "num_inference_steps": 6}
        return shared | {"generator": seeds(*(numbers or (0,))), "output_type": "latent"} | more

    return make


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8, 1.0])
def test_strengths(pair, same, scheduler, strength):
    same(pair("sd1", NAME, scheduler), call(strength=strength))


@pytest.mark.parametrize(("strength", "equal"), [(1.0, True), (0.9, False), (0.5, False)])
def test_pndm_begins_anywhere(pair, same, strength, equal):
    """From the start both agree. In the middle Diffusers takes its second step for the repeat of the first one.

    PNDM visits its second timestep twice, and Diffusers counts turns from where it begins; a run that begins later
    lags a step behind. On data of a single point, where every exact solver follows the same straight line, ours ends
    on it and theirs does not.
    """
    import diffusers

    import latentia

    if equal:
        same(pair("sd1", NAME, "pndm"), call(strength=strength))
    config = pair("sd1", NAME, "pndm")[1].scheduler.config
    misses = []
    for library in (latentia, diffusers):
        scheduler = library.PNDMScheduler.from_config(config)
        scheduler.set_timesteps(6)
        begin = 6 - int(6 * strength)
        if library is latentia:
            scheduler.set_begin_index(begin)
        alphas, point, noise = scheduler.alphas_cumprod, torch.tensor([[0.7]]), torch.tensor([[1.3]])
        timesteps = scheduler.timesteps[begin:]
        x = scheduler.add_noise(point, noise, timesteps[:1])
        for t in timesteps:
            eps = (x - alphas[t] ** 0.5 * point) / (1 - alphas[t]) ** 0.5
            x = scheduler.step(eps, t, x).prev_sample
        misses.append(float((x - alphas[0] ** 0.5 * point - (1 - alphas[0]) ** 0.5 * noise).abs()))
    assert misses[0] < 1e-5
    assert (misses[1] < 1e-5) == equal


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++ 2m", "euler"])
def test_v_prediction(pair, same, scheduler):
    same(pair("sd2", NAME, scheduler), call(strength=0.7))


@pytest.mark.parametrize(
    "given",
    [
        {"image": np.asarray(picture(1), dtype=np.float32) / 255},
        {"image": torch.rand(1, 3, 16, 16, generator=seeds(2))},
        {"image": torch.randn(1, 4, 8, 8, generator=seeds(2))},
        {"image": picture(1, 24, 32)},
        {"image": picture(1, 25, 33)},
        {"image": [picture(1), picture(2)], "prompt": ["a dog", "two cats"]},
        {"num_images_per_prompt": 3},
        {"image": torch.rand(2, 3, 16, 16, generator=seeds(2)), "prompt": ["a dog", "two cats"]},
        {"negative_prompt": "blurry", "guidance_scale": 3.0},
        {"guidance_scale": 1.0},
        {"num_inference_steps": 7, "strength": 0.6},
        {"output_type": "np"},
        {"output_type": "pil"},
    ],
    ids=lambda given: ",".join(given),
)
def test_arguments(pair, same, given):
    same(pair("sd1", NAME, "ddim"), call(**given))


@pytest.mark.parametrize("scheduler", ["ddim", "euler a", "ddpm"])
def test_a_generator_per_picture(pair, same, scheduler):
    images = [picture(1), picture(2)]
    same(pair("sd1", NAME, scheduler), call(5, 6, prompt=["a dog", "two cats"], image=images))


def test_callbacks_count_the_turns_that_are_run(pair):
    logs = []
    for pipe in pair("sd1", NAME, "ddim"):
        logs.append([])

        def note(pipe, i, t, tensors, log=logs[-1]):
            log.append((i, int(t), pipe.num_timesteps))
            return tensors

        pipe(**call(callback_on_step_end=note)())
    assert logs[0] == logs[1]
    assert len(logs[0]) == 3
