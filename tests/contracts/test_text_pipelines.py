"""Every public pipeline that reads texts keeps one contract: folder, texts, seeds, threads, callbacks, errors."""

import inspect
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import latentia
from latentia import CLIPTextModel, DiffusionPipeline
from latentia.errors import Cancelled, InputError, UnknownChoiceError
from latentia.pipelines.callbacks import CancelToken
from latentia.pipelines.lora import LoraMixin
from latentia.pipelines.text_pipeline import TextPipeline
from tiny_text import LENGTH, TEXTS, controlnet, ldm, stable_diffusion, unet

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8))
MASK = Image.fromarray(np.pad(np.full((8, 8), 255, dtype=np.uint8), 4))

BUILDERS = {
    "LDMTextToImagePipeline": (ldm, {"guidance_scale": 2.0}),
    "StableDiffusionControlNetPipeline": (
        lambda cls: stable_diffusion(cls, controlnet=controlnet()),
        {"image": PICTURE},
    ),
    "StableDiffusionImg2ImgPipeline": (stable_diffusion, {"image": PICTURE, "strength": 0.7}),
    "StableDiffusionInpaintPipeline": (
        lambda cls: stable_diffusion(cls, channels=9),
        {"image": PICTURE, "mask_image": MASK},
    ),
    "StableDiffusionInstructPix2PixPipeline": (lambda cls: stable_diffusion(cls, channels=8), {"image": PICTURE}),
    "StableDiffusionPipeline": (stable_diffusion, {}),
}
"""Class name → the tiniest pipeline of that class, and what its call needs beside a prompt."""


def public_pipelines():
    found = [getattr(latentia, name) for name in latentia.__all__ if name.endswith("Pipeline")]
    return [cls for cls in found if issubclass(cls, TextPipeline) and not inspect.isabstract(cls)]


@pytest.fixture(params=public_pipelines(), ids=lambda cls: cls.__name__)
def pipe(request):
    made = BUILDERS[request.param.__name__][0](request.param)
    made.set_progress_bar_config(disable=True)
    return made


def call(pipe, prompt=TEXTS[0], **options):
    given = {"num_inference_steps": 4, "seed": 2, "output_type": "pt"} | BUILDERS[type(pipe).__name__][1]
    return pipe(prompt, **(given | options)).images


def test_every_public_text_pipeline_is_here():
    assert {cls.__name__ for cls in public_pipelines()} == set(BUILDERS)
    assert all(issubclass(cls, LoraMixin) for cls in public_pipelines())


def test_round_trip_gives_the_same_pictures(pipe, tmp_path):
    again = DiffusionPipeline.from_pretrained(pipe.save_pretrained(tmp_path))
    again.set_progress_bar_config(disable=True)
    assert type(again) is type(pipe)
    assert again.config.keys() == pipe.config.keys()
    assert torch.equal(call(pipe), call(again))


def test_the_text_matters_and_the_seed_too(pipe):
    picture = call(pipe)
    assert picture.shape == (1, 3, 16, 16)
    assert 0 <= float(picture.min()) <= float(picture.max()) <= 1
    assert (call(pipe, "two dogs") - picture).abs().max() > 1e-4
    assert (call(pipe, seed=3) - picture).abs().max() > 1e-3
    assert (call(pipe, negative_prompt="a mat") - picture).abs().max() > 1e-5


def test_a_picture_is_the_same_in_any_batch(pipe):
    """Prompts of different lengths, several pictures of each, chunks of three: as one by one."""
    many = call(pipe, TEXTS, num_images_per_prompt=2)
    alone = [call(pipe, TEXTS[i // 2], sample_indices=[i]) for i in range(4)]
    torch.testing.assert_close(many, torch.cat(alone), atol=1e-5, rtol=0)
    torch.testing.assert_close(call(pipe, TEXTS, num_images_per_prompt=2, max_batch=3), many, atol=1e-5, rtol=0)


def test_four_threads_make_the_same_pictures(pipe):
    prompts = [TEXTS[0], "two dogs", "a mat", TEXTS[1]]
    expected = [call(pipe, prompt, seed=i) for i, prompt in enumerate(prompts)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: call(pipe, prompts[i], seed=i), range(4)))
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_embeddings_stand_for_texts(pipe):
    for text in TEXTS:
        embeds, negative = pipe.encode_prompt(text, do_classifier_free_guidance=True, negative_prompt="a mat")
        given = call(pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
        assert torch.equal(given, call(pipe, text, negative_prompt="a mat"))
    assert embeds.shape[1] > LENGTH


def test_every_declared_tensor_reaches_the_callback(pipe):
    seen = []

    def look(view, i, t, tensors):
        assert view.num_timesteps >= 1
        seen.append((i, set(tensors)))

    call(pipe, callback_on_step_end=look, callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs)
    assert [i for i, _ in seen] == list(range(len(seen)))
    assert all(names == set(pipe._callback_tensor_inputs) for _, names in seen)


@pytest.mark.parametrize("name", ["latents", "prompt_embeds", "negative_prompt_embeds"])
def test_a_replaced_tensor_takes_effect(pipe, name):
    def replace(view, i, t, tensors):
        return {name: tensors[name] * 0.5} if i == 0 else None

    changed = call(pipe, callback_on_step_end=replace, callback_on_step_end_tensor_inputs=[name])
    assert (changed - call(pipe)).abs().max() > 1e-5


def test_guidance_is_assignable_in_both_forms(pipe, caplog):
    def full(view, i, t, tensors):
        view.guidance_scale = 1.5

    def short(view, i, latents):
        assert latents.shape[1:] == (4, 8, 8)
        view.guidance_scale = 1.5

    changed = call(pipe, callback_on_step_end=full)
    assert torch.equal(changed, call(pipe, callback_on_step_end=short))
    assert "the full form is" in caplog.text
    assert (changed - call(pipe)).abs().max() > 1e-5
    assert torch.equal(call(pipe), call(pipe))


def test_cancelling_decodes_nothing(pipe, monkeypatch):
    monkeypatch.setattr(type(pipe.codec), "from_latents", lambda *a: pytest.fail("decoded"))

    def stop(view, i, t, tensors):
        view.interrupt = True

    with pytest.raises(Cancelled, match="after step 1"):
        call(pipe, callback_on_step_end=stop)
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        call(pipe, cancel=token)


def test_output_types(pipe):
    whole = call(pipe)
    array = call(pipe, output_type="np")
    assert array.shape == (1, 16, 16, 3)
    np.testing.assert_allclose(array[0].transpose(2, 0, 1), whole[0].numpy(), atol=1e-7)
    (picture,) = call(pipe, output_type="pil")
    assert np.abs(np.asarray(picture) / 255 - array[0]).max() <= 0.51 / 255
    latents = call(pipe, output_type="latent")
    assert latents.shape == (1, 4, 8, 8)
    torch.testing.assert_close((pipe.decode(latents) / 2 + 0.5).clamp(0, 1), whole, atol=1e-6, rtol=0)
    images, flags = pipe(TEXTS[0], return_dict=False, num_inference_steps=2, **BUILDERS[type(pipe).__name__][1])
    assert len(images) == 1
    assert flags is None


BAD = [
    ({"prompt": []}, "empty list"),
    ({"prompt": None}, "either prompt or prompt_embeds"),
    ({"prompt": 3}, "text or a list of texts"),
    ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
    ({"prompt_embeds": torch.zeros(1, LENGTH, 16)}, "not both"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, LENGTH, 7)}, r"expected \(prompts, tokens, 16\)"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 5, 16)}, "the embeddings are 5 tokens long"),
    ({"num_inference_steps": 0}, "num_inference_steps"),
    ({"num_inference_steps": 2.5}, "num_inference_steps"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
    ({"output_type": "jpg"}, "unknown output_type"),
    ({"guidance_scale": float("nan")}, "guidance_scale"),
    ({"clip_skip": -1}, "clip_skip"),
    ({"latents": torch.zeros(1, 4, 4, 4)}, "latents have shape"),
    ({"generator": [torch.Generator()] * 2, "seed": None}, "2 pictures"),
    ({"guidance_sclae": 2.0}, "did you mean 'guidance_scale'"),
    ({"cross_attention_kwargs": {"scale": 1}}, "set_adapters"),
    ({"callback_on_step_end": lambda: None}, "four positional arguments"),
    ({"callback_on_step_end": print, "callback_on_step_end_tensor_inputs": ["latent"]}, "did you mean 'latents'"),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_refused_before_any_work(pipe, options, words, monkeypatch):
    monkeypatch.setattr(type(pipe.unet), "forward", lambda *a, **k: pytest.fail("the network ran"))
    monkeypatch.setattr(type(pipe.codec), "encode", lambda *a, **k: pytest.fail("the codec ran"))
    with pytest.raises((InputError, UnknownChoiceError), match=words):
        call(pipe, **options)


def test_parts_that_do_not_fit_are_refused(pipe):
    name = pipe.text_name
    parts = {**pipe.components}
    for wrong, words in (
        ({"unet": unet(5)}, "latents of 4 channels but unet takes 5"),
        ({"scheduler": latentia.UNet2DModel}, "must be a scheduler"),
        ({"unet": None}, "got None"),
        ({"tokenizer": None}, "must be a tokenizer"),
        (
            {name: CLIPTextModel(400, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)},
            "texts of width 16",
        ),
    ):
        with pytest.raises(InputError, match=words):
            type(pipe)(**{**parts, **wrong})
