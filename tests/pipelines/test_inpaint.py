"""StableDiffusionInpaintPipeline: Diffusers' pictures for both kinds of network, and what is kept is kept."""

import functools
import warnings

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import latentia
from latentia.errors import InputError
from latentia.pipelines.inpaint import StableDiffusionInpaintPipeline
from tiny_sd import tiny_sd

STEPS = 6
SIZE = 24, 20  # height, width
RNG = np.random.default_rng(0)
ARRAYS = RNG.integers(0, 256, (3, 40, 33, 3), dtype=np.uint8)
IMAGES = [Image.fromarray(array) for array in ARRAYS]
HOLE = np.zeros((40, 33), np.uint8)
HOLE[10:30, 5:20] = 255
HOLE[5:9, 20:30] = 100  # below a half: kept
MASK = Image.fromarray(HOLE)
BINARY = Image.fromarray(np.where(HOLE > 128, 255, 0).astype(np.uint8))
BLURRED = MASK.filter(ImageFilter.GaussianBlur(2))
FITTING = [Image.fromarray(array[: SIZE[0], : SIZE[1]]) for array in ARRAYS]
SMALL = np.zeros(SIZE, np.float32)
SMALL[4:12, 6:14] = 1
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
def loaded(library, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library is diffusers:
            return library.StableDiffusionInpaintPipeline.from_pretrained(tiny_sd(kind), safety_checker=None)
        return StableDiffusionInpaintPipeline.from_pretrained(tiny_sd(kind))


def pipeline(kind="sd1", library=latentia, scheduler="DDIMScheduler"):
    """The tiny pipeline with another scheduler; components are shared."""
    parts = loaded(library, kind).components
    built = getattr(library, scheduler).from_config(parts["scheduler"].config)
    return quiet(type(loaded(library, kind))(**{**parts, "scheduler": built}, requires_safety_checker=False))


@pytest.fixture(params=["sd1", "inpaint"], ids=["4 channels", "9 channels"])
def pipe(request):
    return pipeline(request.param)


@pytest.fixture
def blending():
    return pipeline("sd1")


@pytest.fixture
def seeing():
    return pipeline("inpaint")


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


def draw(pipe, prompt="a cat", image=IMAGES[0], mask=MASK, **given):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {
            "num_inference_steps": STEPS,
            "height": SIZE[0],
            "width": SIZE[1],
            "output_type": "np",
            **given,
        }
        return pipe(prompt, image, mask, **options).images


def difference(one, other):
    assert one.shape == other.shape
    return np.abs(one - other).max()


def unit(pictures):
    return np.stack([np.asarray(picture, np.float32) / 255 for picture in pictures])


# The same pictures as Diffusers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("kind", ["sd1", "inpaint"])
def test_parity(kind, scheduler, strength):
    """Also of schedulers that draw noise in every step: everything is drawn in the same order."""
    given = {"strength": strength, "num_images_per_prompt": 2}
    ours, theirs = (
        draw(pipeline(kind, library, scheduler), generator=generators(1)[0], **given)
        for library in (latentia, diffusers)
    )
    assert difference(ours, theirs) < 4e-5


@pytest.mark.parametrize("kind", ["sd1", "inpaint"])
def test_parity_with_the_pndm_of_the_folder(kind):
    ours, theirs = (
        draw(pipeline(kind, library, "PNDMScheduler"), generator=generators(1)[0]) for library in (latentia, diffusers)
    )
    assert difference(ours, theirs) < 4e-5


TENSORS = torch.from_numpy(ARRAYS[:2] / 255).movedim(-1, 1).float()


@pytest.mark.parametrize(
    ("image", "mask", "generator"),
    [
        (IMAGES[:2], MASK, lambda: generators(3)[0]),
        (IMAGES[:2], [MASK, BLURRED], lambda: generators(3, 4)),
        (IMAGES[0], [MASK, BLURRED], lambda: generators(3)[0]),
        (TENSORS, torch.from_numpy(HOLE / 255).float(), lambda: generators(3)[0]),
        (ARRAYS[:2].astype(np.float32) / 255, HOLE[None, ..., None] / np.float32(255), lambda: generators(3)[0]),
    ],
    ids=["one mask", "two masks", "two masks of one picture", "torch", "numpy"],
)
@pytest.mark.parametrize("kind", ["sd1", "inpaint"])
def test_parity_of_forms(kind, image, mask, generator):
    ours, theirs = (
        draw(pipeline(kind, library), ["a cat", "a dog"], image, mask, generator=generator(), strength=0.7)
        for library in (latentia, diffusers)
    )
    assert difference(ours, theirs) < 4e-5


@pytest.mark.parametrize("kind", ["sd1", "inpaint"])
@pytest.mark.parametrize(("padding", "grey"), [(3, False), (0, False), (32, True)])
def test_parity_of_a_crop(kind, padding, grey):
    """The same 8 bits, but for values that lie between two and where the mask is grey: there Diffusers rounds twice."""
    mask = BLURRED if grey else BINARY
    given = {"padding_mask_crop": padding, "output_type": "pil", "num_images_per_prompt": 2}
    made = [
        draw(pipeline(kind, library), mask=mask, generator=generators(2)[0], **given)
        for library in (latentia, diffusers)
    ]
    ours, theirs = (np.stack([np.asarray(picture, int) for picture in pictures]) for pictures in made)
    assert ours.shape == (2, 40, 33, 3)
    assert difference(ours, theirs) <= 1
    level = np.asarray(mask)
    assert (ours != theirs)[:, (level == 0) | (level == 255)].mean() < 2e-3


def test_parity_of_given_latents_of_the_masked_picture():
    masked = torch.randn(1, 4, 12, 10, generator=generators(0)[0])
    ours, theirs = (
        draw(pipeline("inpaint", lib), masked_image_latents=masked, generator=generators(2)[0])
        for lib in (latentia, diffusers)
    )
    assert difference(ours, theirs) < 4e-5


def test_parity_of_latents_as_the_picture():
    """Of four channels; Diffusers then needs masked_image_latents, though nothing looks at them."""
    z = torch.randn(1, 4, 12, 10, generator=generators(0)[0])
    given = {"mask": Image.fromarray((SMALL * 255).astype(np.uint8)), "strength": 0.5}
    ours = draw(pipeline(), image=z, generator=generators(2)[0], **given)
    theirs = draw(pipeline("sd1", diffusers), image=z, masked_image_latents=z, generator=generators(2)[0], **given)
    assert difference(ours, theirs) < 4e-5


# What it means -----------------------------------------------------------------------------------------------------


def test_a_black_mask_gives_the_picture_through_the_codec(blending):
    made = draw(blending, mask=np.zeros((40, 33)), generator=generators(5)[0])
    x = torch.from_numpy(np.array(IMAGES[0].resize(SIZE[::-1], Image.Resampling.LANCZOS))).movedim(-1, 0)[None]
    with torch.no_grad():
        z = blending.vae.to_latents(x / 127.5 - 1, generators(5)[0])
        back = (blending.vae.from_latents(z) / 2 + 0.5).clamp(0, 1)
    assert difference(made, back.movedim(1, -1).numpy()) < 1e-5


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
def test_a_white_mask_at_strength_1_is_text_to_image(scheduler):
    pipe = pipeline(scheduler=scheduler)
    noise = torch.randn(1, 4, 12, 10, generator=generators(1)[0])
    text = quiet(latentia.StableDiffusionPipeline(**pipe.components))
    options = {"height": SIZE[0], "width": SIZE[1], "num_inference_steps": STEPS, "output_type": "np"}
    want = text("a cat", latents=noise, **options).images
    assert difference(draw(pipe, mask=np.ones((40, 33)), latents=noise), want) < 1e-5


def test_the_network_of_nine_channels_sees_mask_and_holes(seeing, monkeypatch):
    seen, forward = [], seeing.unet.forward
    monkeypatch.setattr(seeing.unet, "forward", lambda x, *a, **k: seen.append(x.clone()) or forward(x, *a, **k))
    draw(seeing, image=FITTING[0], mask=SMALL, generator=generators(1)[0], output_type="latent")
    assert len(seen) == STEPS
    generator = generators(1)[0]
    noise = torch.randn(1, 4, 12, 10, generator=generator)
    grey = torch.from_numpy(np.array(FITTING[0])).movedim(-1, 0)[None] / 127.5 - 1
    grey[..., 4:12, 6:14] = 0
    with torch.no_grad():
        masked = seeing.vae.to_latents(grey, generator)
    mask = torch.zeros(1, 1, 12, 10)
    mask[..., 2:6, 3:7] = 1
    for half in seen[0].chunk(2):
        assert torch.allclose(half[:, :4], noise)
        assert torch.equal(half[:, 4:5], mask)
        assert torch.allclose(half[:, 5:], masked, atol=1e-6)
    assert torch.equal(seen[0][:, 4:], seen[-1][:, 4:])


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_outside_the_mask_the_latents_are_the_noised_picture(scheduler):
    """After each step at the level of the next timestep with one fixed noise, after the last without noise."""
    pipe = pipeline(scheduler=scheduler)
    z, noise = (torch.randn(1, 4, 12, 10, generator=generator) for generator in generators(1, 2))
    outside = torch.ones(1, 1, 12, 10)
    outside[..., 2:6, 3:7] = 0
    seen = []
    draw(
        pipe,
        image=z,
        mask=SMALL,
        latents=noise,
        output_type="latent",
        callback_on_step_end=lambda call, i, t, tensors: seen.append((call.timesteps, tensors["latents"].clone())),
    )
    plan = pipeline(scheduler=scheduler).scheduler
    plan.set_timesteps(STEPS)
    for i, (times, latents) in enumerate(seen):
        last = i == len(seen) - 1
        want = z if last else plan.add_noise(z, noise, times[i + 1 : i + 2])
        assert torch.allclose(latents * outside, want * outside, atol=1e-5)
        assert not torch.allclose(latents * (1 - outside), want * (1 - outside), atol=1e-2)


def test_a_soft_mask_blends_the_latents(blending):
    """With a mask of one half everywhere the result is the mean of the last step and the picture."""
    z, noise = (torch.randn(1, 4, 12, 10, generator=generator) for generator in generators(1, 2))
    given = {"image": z, "latents": noise, "num_inference_steps": 1, "output_type": "latent"}
    half, none, full = (
        draw(blending, mask=np.full(SIZE, grey, np.float32), soft_mask=True, **given) for grey in (0.5, 0.0, 1.0)
    )
    assert torch.equal(none, z)
    assert torch.allclose(half, (none + full) / 2, atol=1e-5)
    cut = draw(blending, mask=np.full(SIZE, 0.5, np.float32), **given)
    assert torch.equal(cut, full)


def test_callbacks_see_and_replace_the_conditions(pipe):
    names, seen = ["latents", "mask", "masked_image_latents"], []

    def whiten(call, i, t, tensors):
        seen.append({name: tensor.clone() for name, tensor in tensors.items()})
        return {"mask": torch.ones_like(tensors["mask"])}

    given = {"generator": generators(1)[0], "callback_on_step_end_tensor_inputs": names, "callback_on_step_end": whiten}
    changed = draw(pipe, image=FITTING[0], mask=SMALL, **given)
    assert [tuple(seen[0][name].shape) for name in names] == [(1, 4, 12, 10), (1, 1, 12, 10), (1, 4, 12, 10)]
    assert seen[0]["mask"].sum() == 16
    assert seen[1]["mask"].min() == 1
    assert difference(changed, draw(pipe, image=FITTING[0], mask=SMALL, generator=generators(1)[0])) > 1e-3


def test_looking_at_the_masked_latents_changes_nothing(blending):
    """They are encoded only when a callback asks, and what is drawn afterwards is the same."""
    pipe = pipeline(scheduler="EulerAncestralDiscreteScheduler")
    plain = draw(pipe, generator=generators(1)[0])
    given = {
        "callback_on_step_end": lambda *a: None,
        "callback_on_step_end_tensor_inputs": ["masked_image_latents"],
    }
    assert difference(draw(pipe, generator=generators(1)[0], **given), plain) < 1e-6


# Pasting back ------------------------------------------------------------------------------------------------------


def far(feather):
    """Where nothing of the mask reaches: farther than 2⌈2σ⌉ pixels from it, along rows or columns."""
    reach = 2 * int(np.ceil(2 * feather))
    kept = np.ones(SIZE, bool)
    kept[max(4 - reach, 0) : 12 + reach, max(6 - reach, 0) : 14 + reach] = False
    return kept


@pytest.mark.parametrize("feather", [0.0, 0.5, 1.0, 2.0])
def test_what_is_far_from_the_mask_is_kept_bit_for_bit(pipe, feather):
    given = {"paste_back": True, "feather": feather, "mask": SMALL, "seed": 1}
    kept = far(feather)
    assert kept.sum() > 50
    floats = RNG.random((*SIZE, 3), dtype=np.float32) ** 2
    for image, want in (
        (FITTING[0], unit(FITTING[:1])[0]),
        (floats, floats),
        (torch.from_numpy(floats).movedim(-1, 0), floats),
        (torch.from_numpy(floats).movedim(-1, 0) * 2 - 1, ((floats * 2 - 1) / 2 + 0.5)),
    ):
        arrays = draw(pipe, image=image, **given)
        assert (arrays[0][kept] == want[kept]).all()
        assert (draw(pipe, image=image, output_type="pt", **given).movedim(1, -1).numpy() == arrays).all()
        assert np.abs(arrays[0][SMALL == 1] - want[SMALL == 1]).mean() > 0.05
    picture = np.asarray(draw(pipe, image=FITTING[0], output_type="pil", **given)[0])
    assert (picture[kept] == np.asarray(FITTING[0])[kept]).all()


def test_inside_the_mask_it_is_the_repainted_picture(pipe):
    plain = draw(pipe, image=FITTING[0], mask=SMALL, seed=1)
    made = draw(pipe, image=FITTING[0], mask=SMALL, seed=1, paste_back=True)
    assert difference(made[0][SMALL == 1], plain[0][SMALL == 1]) < 1e-6


def test_pasting_back_in_a_batch_and_in_chunks(pipe):
    masks = np.stack([SMALL, SMALL[::-1], SMALL[:, ::-1]])
    given = {"paste_back": True, "feather": 0.5, "seed": 4, "strength": 0.8}
    texts = ["a cat", "a dog", "a cube"]
    together = draw(pipe, texts, FITTING, masks, **given)
    assert difference(draw(pipe, texts, FITTING, masks, max_batch=2, **given), together) < 2e-5
    for i in range(3):
        alone = draw(pipe, texts[i], FITTING[i], masks[i], sample_indices=[i], **given)
        assert difference(alone[0], together[i]) < 2e-5
        kept = masks[i][:, ::-1] + masks[i] == 0
        assert kept.any()


def test_a_crop_keeps_the_rest_of_the_picture(pipe):
    """The picture keeps its size; floats, too, keep their bits."""
    for given in ({}, {"paste_back": True, "feather": 0.5}):
        made = draw(pipe, mask=BINARY, padding_mask_crop=2, seed=1, **given)
        assert made.shape == (1, 40, 33, 3)
        kept = np.ones((40, 33), bool)
        reach = 2 if given else 0
        kept[10 - reach : 30 + reach, 5 - reach : 20 + reach] = False
        assert (made[0][kept] == unit(IMAGES[:1])[0][kept]).all()
        assert np.abs(made[0][~kept] - unit(IMAGES[:1])[0][~kept]).mean() > 0.05


# Batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerAncestralDiscreteScheduler"])
@pytest.mark.parametrize("kind", ["sd1", "inpaint"])
def test_alone_in_a_batch_and_in_chunks(kind, scheduler):
    """Each picture draws from its own generator, also where one image serves all."""
    pipe, texts = pipeline(kind, scheduler=scheduler), ["a cat", "two dogs", "a red cube"]
    together = draw(pipe, texts, seed=3, strength=0.7)
    assert difference(draw(pipe, texts, seed=3, strength=0.7, max_batch=2), together) < 2e-5
    for i, text in enumerate(texts):
        assert difference(draw(pipe, text, seed=3, strength=0.7, sample_indices=[i])[0], together[i]) < 2e-5


def test_offloading_changes_nothing(pipe):
    plain = draw(pipe, generator=generators(1)[0], paste_back=True)
    pipe.enable_model_cpu_offload(device="cpu")
    try:
        assert difference(draw(pipe, generator=generators(1)[0], paste_back=True), plain) == 0
    finally:
        pipe.disable_model_cpu_offload()


def test_the_default_size_is_the_networks(pipe):
    assert draw(pipe, height=None, width=None).shape == (1, 16, 16, 3)


# Bad input ---------------------------------------------------------------------------------------------------------

LATENTS = torch.randn(1, 4, 12, 10)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strength": 0.1}, "strength 0.1 of 6 steps is no step at all"),
        ({"strength": 1.5}, "strength must be a number between 0 and 1"),
        ({"image": None}, "image is missing"),
        ({"mask": None}, "mask_image is missing"),
        ({"mask": MASK.resize((32, 40))}, r"mask_image is 40 × 32 \(height × width\), image 40 × 33"),
        ({"mask": [MASK, MASK.resize((8, 8))]}, "several sizes"),
        ({"image": [IMAGES[0], IMAGES[1].resize((8, 8))]}, "several sizes"),
        ({"mask": np.zeros((40, 33, 3))}, "a mask has one channel"),
        ({"mask": torch.full((40, 33), torch.nan)}, "mask_image holds NaN"),
        ({"mask": torch.full((40, 33), 2.0)}, "values from 2 to 2"),
        ({"image": IMAGES}, "3 in image for 1 prompts"),
        ({"mask": [MASK, MASK]}, "2 in mask_image for 1 prompts"),
        ({"masked_image_latents": LATENTS[:, :3]}, "masked_image_latents must be a floating tensor"),
        ({"masked_image_latents": LATENTS * torch.nan}, "masked_image_latents hold NaN"),
        ({"masked_image_latents": LATENTS.repeat(2, 1, 1, 1)}, "2 in masked_image_latents for 1 prompts"),
        ({"image": LATENTS}, r"mask_image is 40 × 33 \(height × width\), image 24 × 20"),
        ({"image": LATENTS, "mask": SMALL, "height": 32}, "pass height=24, width=20"),
        ({"image": LATENTS, "mask": SMALL, "paste_back": True}, "no pixels to paste back"),
        ({"paste_back": 1}, "paste_back must be True or False"),
        ({"paste_back": True, "feather": -1.0}, "feather must be a number"),
        ({"paste_back": True, "output_type": "latent"}, "latents cannot be pasted back"),
        ({"padding_mask_crop": 4, "output_type": "latent"}, "latents cannot be pasted back"),
        ({"padding_mask_crop": -1}, "padding_mask_crop must be an integer of at least 0"),
        ({"padding_mask_crop": 4, "image": ARRAYS[0]}, "both PIL pictures"),
        ({"padding_mask_crop": 4, "image": IMAGES[:2]}, "one image and one mask_image"),
        ({"padding_mask_crop": 4, "mask": Image.new("L", (33, 40))}, "mask_image is black everywhere"),
        ({"soft_mask": "yes"}, "soft_mask must be True or False"),
        ({"height": 25}, "divisible by 2"),
        ({"latents": torch.randn(1, 4, 8, 8)}, "latents have shape"),
        ({"prompt": []}, "empty list"),
    ],
)
def test_bad_input_is_refused_before_any_work(idle, given, says):
    with pytest.raises(InputError, match=says):
        draw(idle, **given)


def test_latents_as_the_picture_need_latents_with_holes(seeing, blending):
    with pytest.raises(InputError, match="pass masked_image_latents, too"):
        draw(seeing, image=LATENTS, mask=SMALL)
    looking = {
        "callback_on_step_end": lambda *a: None,
        "callback_on_step_end_tensor_inputs": ["masked_image_latents"],
    }
    with pytest.raises(InputError, match="the callback asks for masked_image_latents"):
        draw(blending, image=LATENTS, mask=SMALL, **looking)
    assert draw(seeing, image=LATENTS, mask=SMALL, masked_image_latents=LATENTS).shape == (1, *SIZE, 3)


def test_a_network_of_eight_channels_is_refused():
    parts = pipeline().components
    with pytest.raises(InputError, match=r"unet takes 8 \(4 or 9 wanted\)"):
        StableDiffusionInpaintPipeline(**{**parts, "unet": _unet(8)})
    with pytest.raises(InputError, match=r"unet takes 9 \(4 wanted\)"):
        latentia.StableDiffusionImg2ImgPipeline(**{**parts, "unet": pipeline("inpaint").unet})


def _unet(channels):
    config = {**pipeline().unet.config, "in_channels": channels}
    return latentia.UNet2DConditionModel.from_config(config)
