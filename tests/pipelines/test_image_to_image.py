"""StableDiffusionImg2ImgPipeline: Diffusers' pictures on the same folder, and what strength means."""

import functools
import warnings

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import latentia
from latentia.errors import InputError, NonFiniteError
from latentia.pipelines.image_to_image import StableDiffusionImg2ImgPipeline, visited_steps
from tiny_sd import tiny_sd

STEPS = 8
RNG = np.random.default_rng(0)
ARRAYS = RNG.integers(0, 256, (4, 17, 19, 3), dtype=np.uint8)
IMAGES = [Image.fromarray(array) for array in ARRAYS]
SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@functools.cache
def loaded(library):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library is diffusers:
            return library.StableDiffusionImg2ImgPipeline.from_pretrained(tiny_sd("sd1"), safety_checker=None)
        return StableDiffusionImg2ImgPipeline.from_pretrained(tiny_sd("sd1"))


def pipeline(library=latentia, scheduler="DDIMScheduler", **changed):
    """The tiny pipeline with another scheduler; components are shared."""
    parts = loaded(library).components
    built = getattr(library, scheduler).from_config(parts["scheduler"].config, **changed)
    return quiet(type(loaded(library))(**{**parts, "scheduler": built}, requires_safety_checker=False))


@pytest.fixture
def pipe():
    return pipeline()


@pytest.fixture
def idle(pipe, monkeypatch):
    """A pipeline whose networks must not run."""

    def refuse(*_args, **_options):
        raise AssertionError("a network ran before the arguments were checked")

    for part in (pipe.unet, pipe.text_encoder):
        monkeypatch.setattr(part, "forward", refuse)
    monkeypatch.setattr(pipe.vae, "to_latents", refuse)
    return pipe


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def draw(pipe, prompt="a cat", image=IMAGES[0], **given):
    with warnings.catch_warnings():  # Diffusers': more prompts than images
        warnings.simplefilter("ignore")
        options = {"num_inference_steps": STEPS, "output_type": "np", **given}
        return pipe(prompt, image, **options).images


def difference(one, other):
    assert one.shape == other.shape
    return np.abs(one - other).max()


# The same pictures as Diffusers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_parity(scheduler, strength):
    for generator in (lambda: generators(1)[0], lambda: generators(1, 2)):
        given = {"strength": strength, "num_images_per_prompt": 2}
        ours, theirs = (
            draw(pipeline(library, scheduler), generator=generator(), **given) for library in (latentia, diffusers)
        )
        assert difference(ours, theirs) < 2e-5


def test_parity_with_the_pndm_of_the_folder():
    """At strength 1. Below it Diffusers takes the second timestep it visits for a repetition, whatever it is."""
    ours, theirs = (
        draw(pipeline(library, "PNDMScheduler"), strength=1.0, generator=generators(1)[0])
        for library in (latentia, diffusers)
    )
    assert difference(ours, theirs) < 2e-5


@pytest.mark.parametrize(
    ("prompt", "image", "generator"),
    [
        (["a cat", "a dog"], IMAGES[:2], lambda: generators(3)[0]),
        (["a cat", "a dog"], IMAGES[:2], lambda: generators(3, 4)),
        (["a cat", "a dog"], IMAGES[0], lambda: generators(3)[0]),
        (["a cat", "a dog"], torch.from_numpy(ARRAYS[:2] / 255).movedim(-1, 1).float(), lambda: generators(3)[0]),
        (["a cat", "a dog"], (ARRAYS[:2] / 255).astype(np.float32), lambda: generators(3, 4)),
        ("a cat", torch.from_numpy(ARRAYS[:1] / 127.5 - 1).movedim(-1, 1).float(), lambda: generators(3)[0]),
        ("a cat", torch.randn(1, 4, 9, 7, generator=generators(0)[0]), lambda: generators(3)[0]),
    ],
    ids=["two", "two generators", "one for two texts", "torch", "numpy", "signed", "latents"],
)
def test_parity_of_forms(prompt, image, generator):
    ours, theirs = (draw(pipeline(lib), prompt, image, generator=generator()) for lib in (latentia, diffusers))
    assert difference(ours, theirs) < 2e-5


def test_parity_of_eta_guidance_and_negative_prompts():
    given = {"eta": 0.6, "guidance_scale": 3.0, "negative_prompt": "blurry", "strength": 0.6}
    ours, theirs = (draw(pipeline(lib), generator=generators(5)[0], **given) for lib in (latentia, diffusers))
    assert difference(ours, theirs) < 2e-5


# Strength ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheduler", "steps", "strength", "visited"),
    [
        ("DDIMScheduler", 10, 0.3, [201, 101, 1]),
        ("DDIMScheduler", 10, 0.39, [201, 101, 1]),
        ("DDIMScheduler", 10, 0.1, [1]),
        ("DDIMScheduler", 5, 1.0, [801, 601, 401, 201, 1]),
        ("PNDMScheduler", 5, 1.0, [801, 601, 601, 401, 201, 1]),
        ("PNDMScheduler", 5, 0.8, [601, 601, 401, 201, 1]),
        ("PNDMScheduler", 5, 0.6, [601, 401, 201, 1]),
        ("PNDMScheduler", 5, 0.2, [201, 1]),
        ("EulerDiscreteScheduler", 5, 0.4, [201, 1]),
        ("HeunDiscreteScheduler", 5, 0.4, [201, 1, 1]),
        ("HeunDiscreteScheduler", 5, 0.2, [1]),
    ],
)
def test_the_timesteps_visited(scheduler, steps, strength, visited):
    """The last ⌊steps·strength⌋ of the schedule; PNDM's has one timestep twice, Heun's all but the first."""
    seen = []

    def note(pipe, index, t, tensors):
        assert index == len(seen)
        assert pipe.num_timesteps == len(visited)
        seen.append(round(float(t)))

    draw(
        pipeline(scheduler=scheduler),
        strength=strength,
        num_inference_steps=steps,
        callback_on_step_end=note,
        output_type="latent",
    )
    assert seen == visited


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
def test_it_starts_at_the_noised_picture(scheduler, monkeypatch):
    """What the network sees first is α z₀ + σ ε at the first timestep visited, with z₀ drawn before ε."""
    pipe, seen = pipeline(scheduler=scheduler), []
    forward = pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda x, *a, **k: seen.append(x.clone()) or forward(x, *a, **k))
    draw(pipe, strength=0.5, generator=generators(7)[0], guidance_scale=1.0, output_type="latent")
    generator = generators(7)[0]
    x = torch.from_numpy(np.array(IMAGES[0].resize((18, 16), Image.Resampling.LANCZOS))).movedim(-1, 0)[None] / 127.5
    with torch.no_grad():
        z = pipe.vae.to_latents(x - 1, generator)
    noise = torch.randn(1, 4, 8, 9, generator=generator)
    t = {"PNDMScheduler": 501}.get(scheduler, 376)  # PNDM's list has its second entry twice
    level = float(pipeline(scheduler="DDIMScheduler").scheduler.alphas_cumprod[t])
    assert torch.allclose(seen[0], level**0.5 * z + (1 - level) ** 0.5 * noise, atol=1e-5)


def test_pndm_arrives_at_the_data_from_anywhere():
    """With the exact score of N(μ, s²) its pictures follow the flow; Diffusers leaves a step out (error 9e-3)."""
    scheduler = pipeline(scheduler="PNDMScheduler").scheduler
    level = scheduler.alphas_cumprod.double()
    generator = generators(0)[0]
    mean, spread = torch.randn(1, 4, 8, 8, generator=generator).double(), 0.3

    def score(x, t):
        a, variance = level[t].sqrt(), 1 - level[t]
        return variance.sqrt() * (x - a * mean) / (a**2 * spread**2 + variance)

    scheduler.set_timesteps(50)
    times = scheduler.timesteps[25:]
    scheduler.set_begin_index(25)
    x = torch.randn(1, 4, 8, 8, generator=generator).double()
    a, variance, end = level[times[0]].sqrt(), 1 - level[times[0]], level[0]
    ratio = (end * spread**2 + 1 - end) / (a**2 * spread**2 + variance)
    exact = end.sqrt() * mean + ratio.sqrt() * (x - a * mean)
    for t in times:
        x = scheduler.step(score(x, t), t, x).prev_sample
    assert (x - exact).square().mean().sqrt() < 5e-3


@pytest.mark.parametrize(("steps", "strength", "visited"), [(50, 0.8, 40), (10, 1.0, 10), (10, 0.3, 3), (7, 0.5, 3)])
def test_visited_steps(steps, strength, visited):
    assert visited_steps(steps, strength) == visited


@pytest.mark.parametrize("steps", [1, 3, 7, 49, 50, 98, 1000])
@pytest.mark.parametrize("strength", [0.0, 1e-4, 0.0204, 0.3, 1 / 49, 0.999])
def test_the_advice_is_right(steps, strength):
    if int(steps * strength):
        return
    with pytest.raises(InputError, match="is no step at all") as error:
        visited_steps(steps, strength)
    words = str(error.value).replace(",", " ").split()
    assert visited_steps(steps, float(words[words.index("least") + 1])) >= 1
    if strength:
        assert visited_steps(int(words[-1]), strength) >= 1


# Batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
def test_alone_in_a_batch_and_in_chunks(scheduler):
    pipe, texts = pipeline(scheduler=scheduler), ["a cat", "two dogs", "a red cube"]
    together = draw(pipe, texts, IMAGES[:3], seed=3)
    assert difference(draw(pipe, texts, IMAGES[:3], seed=3, max_batch=2), together) < 2e-5
    for i, text in enumerate(texts):
        assert difference(draw(pipe, text, IMAGES[i], seed=3, sample_indices=[i])[0], together[i]) < 2e-5


def test_each_text_keeps_its_picture(pipe):
    """Two pictures for two texts, twice each: Diffusers would pair them crosswise."""
    texts = ["a cat", "a dog"]
    many = draw(pipe, texts, IMAGES[:2], seed=1, num_images_per_prompt=2)
    for row in range(4):
        alone = draw(pipe, texts[row // 2], IMAGES[row // 2], seed=1, sample_indices=[row])
        assert difference(alone[0], many[row]) < 2e-5


def test_one_picture_for_each_made(pipe):
    many = draw(pipe, "a cat", IMAGES, seed=1, num_images_per_prompt=4)
    assert difference(draw(pipe, "a cat", IMAGES[2], seed=1, sample_indices=[2])[0], many[2]) < 2e-5


def test_given_noise_is_used(pipe):
    noise = torch.randn(1, 4, 8, 9, generator=generators(2)[0])
    latents = torch.randn(1, 4, 8, 9, generator=generators(3)[0])
    drawn = draw(pipe, image=latents, generator=generators(2)[0])
    assert difference(draw(pipe, image=latents, latents=noise), drawn) == 0


def test_sizes(pipe):
    assert draw(pipe).shape == (1, 16, 18, 3)  # the picture's, down to a multiple of the codec's two
    assert draw(pipe, height=20, width=12).shape == (1, 20, 12, 3)
    assert draw(pipe, output_type="pt").shape == (1, 3, 16, 18)
    assert draw(pipe, output_type="pil")[0].size == (18, 16)
    assert draw(pipe, output_type="latent").shape == (1, 4, 8, 9)


def test_offloading_changes_nothing():
    pipe, plain = pipeline(), draw(pipeline(), generator=generators(1)[0])
    pipe.enable_model_cpu_offload(device="cpu")
    try:
        assert difference(draw(pipe, generator=generators(1)[0]), plain) == 0
    finally:
        pipe.disable_model_cpu_offload()


def test_half_precision_encodes_and_samples():
    pipe = quiet(StableDiffusionImg2ImgPipeline.from_pretrained(tiny_sd("sd1"), torch_dtype=torch.bfloat16))
    ours = draw(pipe, generator=generators(0)[0], strength=0.5)
    assert np.isfinite(ours).all()
    wide = draw(pipeline(scheduler="PNDMScheduler"), generator=generators(0)[0], strength=0.5)
    assert np.abs(ours - wide).mean() < 0.05


# Bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strength": 0.1}, "strength 0.1 of 8 steps is no step at all: use a strength of at least 0.125, or num_inf"),
        ({"strength": 0}, "strength 0 of 8 steps is no step at all: use a strength of at least 0.125$"),
        ({"strength": 1.1}, "strength must be a number between 0 and 1, got 1.1"),
        ({"strength": -0.1}, "strength must be a number between 0 and 1"),
        ({"strength": "much"}, "strength must be a number between 0 and 1"),
        ({"num_inference_steps": 0}, "num_inference_steps must be an integer of at least 1"),
        ({"num_inference_steps": 2000}, "2000"),
        ({"image": None}, "image is missing"),
        ({"image": []}, "image is an empty list"),
        ({"image": [IMAGES[0], IMAGES[1].resize((8, 8))]}, "several sizes"),
        ({"image": IMAGES[:3]}, "3 in image for 1 prompts of 1 pictures each: give 1; for several"),
        ({"image": IMAGES[:3], "prompt": ["a", "b"]}, "3 in image for 2 prompts"),
        ({"image": IMAGES[:2], "prompt": ["a", "b", "c", "d"]}, "2 in image for 4 prompts"),
        ({"image": Image.new("RGB", (1, 8))}, "8 pixels high and 1 wide, at least 2"),
        ({"image": torch.full((3, 8, 8), torch.nan)}, "NaN"),
        ({"image": torch.rand(5, 8, 8)}, "5 channels, expected 3"),
        ({"image": torch.rand(4, 8, 8), "height": 32}, "latents of pictures of 16 × 16, which cannot be brought to 32"),
        ({"height": 17}, "divisible by 2"),
        ({"height": 0}, "height must be an integer"),
        ({"prompt": None}, "prompt or prompt_embeds"),
        ({"prompt": []}, "empty list"),
        ({"latents": torch.randn(1, 4, 8, 8)}, "latents have shape"),
        ({"output_type": "jpeg"}, "unknown output_type"),
        ({"timesteps": [5, 3]}, "has no option 'timesteps'"),
        ({"mask_image": IMAGES[0]}, "unknown argument 'mask_image'"),
        ({"generator": generators(1, 2)}, "generator is for 2"),
    ],
)
def test_bad_input_is_refused_before_any_work(idle, given, says):
    with pytest.raises(InputError, match=says):
        draw(idle, **given)


def test_a_codec_that_breaks_is_named(pipe, monkeypatch):
    monkeypatch.setattr(pipe.vae.encoder.conv_in, "bias", torch.nn.Parameter(torch.full((32,), torch.nan)))
    with pytest.raises(NonFiniteError, match="from vae"):
        draw(pipe)
