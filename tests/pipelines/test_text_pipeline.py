"""What text pipelines promise beside the contract: mixed precision, wrapped networks, one scheduler per call."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from latentia import (
    AutoPipelineForImage2Image,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
)
from latentia.errors import InputError, NonFiniteError, UnknownChoiceError
from latentia.pipelines.distributed import sample_sharded
from tiny_text import controlnet, stable_diffusion

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe():
    return quiet(stable_diffusion(StableDiffusionPipeline))


def latents(pipe, *given, **options):
    return pipe(*given, **({"num_inference_steps": 3, "seed": 0, "output_type": "latent"} | options)).images


def test_a_scheduler_set_in_mid_call_is_for_the_next_call(pipe):
    before = latents(pipe, ["a", "b"], max_batch=1)

    def swap(view, i, t, tensors):
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)

    assert torch.equal(latents(pipe, ["a", "b"], max_batch=1, callback_on_step_end=swap), before)
    assert isinstance(pipe.scheduler, EulerDiscreteScheduler)


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize("part", ["unet", "controlnet", "text_encoder"])
def test_a_controlnet_may_have_another_precision(part, guess_mode):
    control = quiet(stable_diffusion(StableDiffusionControlNetPipeline, controlnet=controlnet()))
    exact = latents(control, "a cat", PICTURE, guess_mode=guess_mode)
    getattr(control, part).to(torch.bfloat16)
    assert (latents(control, "a cat", PICTURE, guess_mode=guess_mode) - exact).abs().max() < 0.2


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_a_compiled_part_is_saved_as_what_it_is(pipe, name, tmp_path):
    expected = latents(pipe, "a cat")
    setattr(pipe, name, torch.compile(getattr(pipe, name), backend="eager"))
    pipe.save_pretrained(tmp_path)
    assert "OptimizedModule" not in json.dumps(json.loads((tmp_path / "model_index.json").read_text()))
    loaded = quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert torch.equal(latents(loaded, "a cat"), expected)


def test_a_pipeline_loaded_in_inference_mode_overflows_as_any(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    with torch.inference_mode():
        loaded = quiet(StableDiffusionPipeline.from_pretrained(tmp_path, torch_dtype=torch.float16))
        first = latents(loaded, "a cat", output_type="pt")
    assert torch.equal(latents(loaded, "a cat", output_type="pt"), first)


def test_the_module_that_spoils_the_text_is_named(pipe):
    pipe.text_encoder.text_model.encoder.layers[1].mlp.fc1.weight.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"first in text_encoder\.text_model\.encoder\.layers\.1\.mlp\.fc1: "):
        latents(pipe, "a cat")


def test_embeddings_that_are_not_finite_are_refused(pipe):
    embeds, negative = pipe.encode_prompt("a cat", do_classifier_free_guidance=True)
    with pytest.raises(InputError, match="prompt_embeds hold NaN"):
        latents(pipe, prompt_embeds=embeds / 0, negative_prompt_embeds=negative)


def test_a_callback_may_call_the_pipeline(pipe):
    inner = latents(pipe, "a dog", seed=4)
    made = []
    outer = latents(
        pipe, "a cat", callback_on_step_end=lambda view, *_: made.append(latents(view, "a dog", seed=4)) or None
    )
    assert torch.equal(outer, latents(pipe, "a cat"))
    assert all(torch.equal(z, inner) for z in made)


def test_other_libraries_parts_are_named_with_their_library(pipe):
    with pytest.raises(InputError, match=r"component 'vae' .* got Linear of torch$"):
        pipe.vae = torch.nn.Linear(1, 1)


@pytest.mark.parametrize(
    ("cls", "channels"), [(StableDiffusionImg2ImgPipeline, 4), (StableDiffusionInstructPix2PixPipeline, 8)]
)
def test_a_picture_is_encoded_alike_in_any_batch(cls, channels):
    edit = quiet(stable_diffusion(cls, channels=channels))
    together = latents(edit, ["a", "b", "c"], PICTURE)
    for i, text in enumerate("abc"):
        assert torch.equal(latents(edit, text, PICTURE, sample_indices=[i])[0], together[i])


def test_two_guidances_cannot_be_rescaled():
    edit = quiet(stable_diffusion(StableDiffusionInstructPix2PixPipeline, channels=8))
    with pytest.raises(InputError, match="guidance_rescale"):
        latents(edit, "a", PICTURE, guidance_rescale=0.7)


def test_sharded_embeddings_and_no_text_at_all(pipe):
    embeds, _ = pipe.encode_prompt("a cat")
    made = sample_sharded(pipe, 2, seed=0, prompt_embeds=embeds, num_inference_steps=3, output_type="latent")
    assert torch.equal(made, latents(pipe, "a cat", num_images_per_prompt=2))
    with pytest.raises(InputError, match="pass either prompt or prompt_embeds"):
        sample_sharded(pipe, 2, seed=0)


@pytest.mark.parametrize(("rank", "rows"), [(0, slice(0, 1)), (1, slice(1, 3))])
def test_every_process_takes_its_own_pictures_of_a_list(pipe, rank, rows, monkeypatch):
    edit = quiet(StableDiffusionImg2ImgPipeline(**pipe.components))
    pictures = [PICTURE.rotate(90 * i) for i in range(3)]
    whole = sample_sharded(edit, 3, seed=0, prompt="a", image=pictures, output_type="latent", num_inference_steps=4)
    monkeypatch.setattr("latentia.pipelines.distributed.rank_and_world", lambda: (rank, 2))
    monkeypatch.setattr("latentia.pipelines.distributed._gather", lambda mine, n, world: mine)
    mine = sample_sharded(edit, 3, seed=0, prompt="a", image=pictures, output_type="latent", num_inference_steps=4)
    assert torch.equal(mine, whole[rows])


def test_a_misspelt_part_is_told(pipe):
    with pytest.raises(UnknownChoiceError, match=r"StableDiffusionImg2ImgPipeline 'unett': did you mean 'unet'"):
        AutoPipelineForImage2Image.from_pipe(pipe, unett=pipe.unet)
