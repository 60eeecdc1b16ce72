"""StableDiffusionPipeline of both libraries on the same folder: the same pictures from the same generators."""

import numpy as np
import pytest
import torch

from tiny_sd import seeds

HORSE, DOG = "a photograph of an astronaut riding a horse", "a lazy dog"
SCHEDULERS = ("ddim", "pndm", "dpm++ 2m", "dpm++ 2m karras", "euler", "euler a", "heun", "ddpm")


def call(*numbers, **more):
    """Arguments of a short call, drawn from one generator, or from one per picture."""

    def make():
        generator = seeds(*(numbers or (0,)))
        return {"prompt": HORSE, "num_inference_steps": 4, "generator": generator, "output_type": "latent", **more}

    return make


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler(pair, same, kind, scheduler):
    """In latents, and through the decoder."""
    pipes = pair(kind, scheduler=scheduler)
    same(pipes, call())
    same(pipes, call(output_type="np"))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_numbers_of_steps(pair, same, scheduler, steps):
    same(pair(scheduler=scheduler), call(num_inference_steps=steps))


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": [HORSE, DOG]},
        {"prompt": HORSE, "num_images_per_prompt": 3},
        {"prompt": [HORSE, DOG], "num_images_per_prompt": 2, "negative_prompt": ["low quality", ""]},
        {"negative_prompt": "low quality, blurry"},
        {"prompt": ["", DOG], "negative_prompt": ["", "blurry"]},
        {"prompt": "A RED Cube, it's 1 of 2!  naïve façade ☃"},
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.0},
        {"guidance_scale": 1.0, "negative_prompt": "of no effect"},
        {"guidance_scale": 15.5, "guidance_rescale": 0.7},
        {"guidance_rescale": 1.0, "prompt": [HORSE, DOG]},
        {"height": 24, "width": 40},
        {"eta": 0.0},
    ],
    ids=lambda given: ",".join(given),
)
@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_arguments(pair, same, kind, given):
    same(pair(kind), call(**given))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddims_noise(pair, same, eta):
    same(pair(scheduler="ddim"), call(eta=eta))
    same(pair(scheduler="ddim"), call(1, 2, prompt=[HORSE, DOG], eta=eta))


@pytest.mark.parametrize("scheduler", ["pndm", "euler a", "ddpm"])
def test_a_generator_per_picture(pair, same, scheduler):
    same(pair(scheduler=scheduler), call(5, 6, 7, 8, prompt=[HORSE, DOG], num_images_per_prompt=2))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_given_latents(pair, same, scheduler):
    z = torch.randn(2, 4, 8, 8, generator=seeds(3))
    found = same(pair(scheduler=scheduler), call(latents=z, prompt=[HORSE, DOG]))
    assert np.abs(found[0] - found[1]).max() > 1e-2


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_embeddings(pair, same, kind):
    """Those of one library in the other, and embeddings that no text gives; a length of their own."""
    ours, theirs = pair(kind)
    own = ours.encode_prompt([HORSE, DOG], "cpu", 1, True, "blurry")
    peers = theirs.encode_prompt([HORSE, DOG], "cpu", 1, True, ["blurry", "blurry"])
    for a, b in zip(own, peers):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    free = torch.randn(2, 2, 5, 32, generator=seeds(4))
    for embeds, negative in (peers, free):
        given = {"prompt": None, "prompt_embeds": embeds.detach(), "negative_prompt_embeds": negative.detach()}
        same((ours, theirs), call(**given))
        same((ours, theirs), call(**given, num_images_per_prompt=2))


def test_embeddings_without_guidance(pair, same):
    embeds = torch.randn(1, 77, 32, generator=seeds(4))
    same(pair(), call(prompt=None, prompt_embeds=embeds, guidance_scale=1.0))


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_skipped_layers(pair, same, kind):
    """Of the prompt's encoding alone, as in Diffusers: negative texts are encoded with all layers."""
    pipes = pair(kind)
    whole, one, two = (same(pipes, call(clip_skip=skip)) for skip in (None, 1, 2))
    assert all(np.abs(a - b).max() > 1e-2 for a, b in ((whole, one), (one, two)))
    same(pipes, call(clip_skip=1, negative_prompt="blurry", num_images_per_prompt=2))
    same(pipes, call(clip_skip=1, guidance_scale=1.0))


@pytest.mark.parametrize("output_type", ["latent", "np", "pt", "pil"])
def test_output_types(pair, same, output_type):
    found = same(pair(), call(output_type=output_type, prompt=[HORSE, DOG]))
    assert found.shape == {"latent": (2, 4, 8, 8), "pt": (2, 3, 16, 16)}.get(output_type, (2, 16, 16, 3))


def test_without_return_dict(pair):
    ours, theirs = (pipe(**call(return_dict=False)()) for pipe in pair())
    assert len(ours) == len(theirs) == 2
    assert ours[1] is theirs[1] is None
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("scheduler", ["pndm", "ddim", "heun"])
def test_callbacks_see_the_same(pair, scheduler):
    """Turns, timesteps, and tensors, in order."""
    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    logs = []
    for pipe in pair(scheduler=scheduler):
        logs.append([])

        def note(pipe, i, t, tensors, log=logs[-1]):
            log.append((i, float(t), pipe.num_timesteps, {k: v.clone() for k, v in tensors.items()}))
            return {}

        pipe(**call(callback_on_step_end=note, callback_on_step_end_tensor_inputs=names)())
    ours, theirs = logs
    assert [turn[:3] for turn in ours] == [turn[:3] for turn in theirs]
    for (*_, mine), (*_, peers) in zip(ours, theirs):
        assert list(mine) == list(peers) == names
        torch.testing.assert_close(mine["latents"], peers["latents"], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(mine["negative_prompt_embeds"], peers["negative_prompt_embeds"], atol=1e-5, rtol=0)
        # Diffusers hands over the negative rows before the prompt's under this name; ours are the prompt's alone.
        torch.testing.assert_close(mine["prompt_embeds"], peers["prompt_embeds"].chunk(2)[1], atol=1e-5, rtol=0)


def test_callbacks_that_change_latents_and_guidance(pair, same):
    def halve(pipe, i, t, tensors):
        pipe._guidance_scale = 1.5 if i >= 1 else 9.0
        return {"latents": tensors["latents"] * 0.5}

    same(pair(scheduler="ddim"), call(callback_on_step_end=halve))


def test_one_network_decodes_twice_the_same(pair, same):
    """A call leaves nothing behind: the second equals the first, though multistep schedulers remember."""
    for scheduler in ("pndm", "dpm++ 2m"):
        ours, _ = pair(scheduler=scheduler)
        first, second = (ours(**call()()).images for _ in range(2))
        assert torch.equal(first, second)


def test_swapping_the_scheduler(pair, same):
    """`from_config(pipe.scheduler.config)`, there and back."""
    import diffusers

    import latentia

    ours, theirs = pair()
    for library, pipe in ((latentia, ours), (diffusers, theirs)):
        pipe.scheduler = library.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    same((ours, theirs), call())
    for library, pipe in ((latentia, ours), (diffusers, theirs)):
        pipe.scheduler = library.PNDMScheduler.from_config(pipe.scheduler.config)
    same((ours, theirs), call())


def cutoff_of_the_docs(pipe, i, t, tensors):
    """Dynamic guidance as Diffusers' documentation writes it: no guidance after two fifths of the steps."""
    if i == int(pipe.num_timesteps * 0.4):
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[-1]
        pipe._guidance_scale = 0.0
    return tensors


def test_dynamic_guidance_of_the_docs(pair, same):
    given = {"callback_on_step_end": cutoff_of_the_docs, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    pipes = pair(scheduler="ddim")
    cut = same(pipes, call(**given, num_inference_steps=5))
    whole = same(pipes, call(num_inference_steps=5))
    assert np.abs(cut - whole).max() > 1e-2


def test_their_own_cutoff(pair, same):
    from diffusers.callbacks import SDCFGCutoffCallback

    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=0.5)
    same(pair(scheduler="ddim"), call(callback_on_step_end=cutoff))
