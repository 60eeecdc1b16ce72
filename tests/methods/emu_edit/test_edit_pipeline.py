"""The editor's pipeline: guidance by hand, seeds, folders, callbacks, tasks, sizes, what it refuses."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from latentia import (
    DiffusionPipeline,
    EmuEditModel,
    EmuEditPipeline,
    StableDiffusionInstructPix2PixPipeline,
    TaskPredictor,
)
from latentia.core.rng import randn, sample_generators
from latentia.errors import ArtifactError, Cancelled, InputError, UnknownChoiceError
from latentia.methods.emu_edit.embedding_file import TaskEmbedding
from latentia.methods.emu_edit.guidance import branch_weights, combined
from latentia.methods.emu_edit.joint_text import JointTextEncoder, encode_jointly, joint_ids
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES
from latentia.methods.emu_edit.thresholding import Thresholding
from latentia.pipelines.callbacks import CancelToken
from tiny_editor import LENGTH, UNET, editor, model, picture, predictor, scheduler, text_encoder, vae
from tiny_text import clip, stable_diffusion

TEXT = "remove the red square"
CALL = {"instruction": TEXT, "task": "remove", "num_inference_steps": 3, "seed": 5}
KINDS = {"pixels": {}, "gate": {"gate": True}, "latents": {"latent": True}}
every = pytest.mark.parametrize("kind", KINDS)


def rgb(width=16, height=16, seed=0):
    return Image.fromarray(picture(height, width, seed=seed))


class Counting:
    """Counts the rows that go through a network in a forward pass."""

    def __init__(self, network):
        self.rows = []
        network.register_forward_hook(
            lambda module, args, kwargs, out: self.rows.append(len(args[0])), with_kwargs=True
        )


# Guidance ------------------------------------------------------------------------------------------------


def test_guidance_by_hand():
    said = {name: torch.tensor([value]) for name, value in (("nothing", 1.0), ("picture", 3.0), ("both", 7.0))}
    for image, text in ((1.5, 5.0), (1.0, 1.0), (0.0, 0.0), (2.0, 2.0), (1.0, 4.0), (1.3, 0.0), (0.0, 2.0)):
        weights = branch_weights(image, text)
        assert sum(weights.values()) == pytest.approx(1)
        needed = {name: said[name] for name in weights}
        assert float(combined(needed, weights)) == pytest.approx(1 + image * (3 - 1) + text * (7 - 3))
    assert set(branch_weights(1, 1)) == {"both"}
    assert set(branch_weights(1, 5)) == {"picture", "both"}
    assert set(branch_weights(2, 2)) == {"nothing", "both"}
    assert set(branch_weights(0, 0)) == {"nothing"}
    equal = dict.fromkeys(said, torch.tensor([0.1234567]))
    assert torch.equal(combined(equal, branch_weights(1.5, 5)), equal["both"])


@every
def test_at_one_and_one_it_is_the_conditional_network_alone(kind):
    pipe = editor(**KINDS[kind])
    counting = Counting(pipe.model)
    made = pipe(rgb(), **CALL, guidance_scale=1, image_guidance_scale=1, output_type="latent").images
    assert counting.rows == [1, 1, 1]
    conditions = {}

    def note(call, i, t, tensors):
        conditions.update(tensors)

    names = ("prompt_embeds", "image_latents", "task_embeds")
    pipe(rgb(), **CALL, callback_on_step_end=note, callback_on_step_end_tensor_inputs=names)
    steps = pipe.scheduler.fresh()
    steps.set_timesteps(3)
    z = randn(made.shape, sample_generators(5, [0]))
    with torch.no_grad():
        for t in steps.timesteps:
            texts, sources, tasks = (conditions[name] for name in names)
            z = steps.step(pipe.model(z, t, texts, sources, tasks).sample, t, z).prev_sample
    torch.testing.assert_close(made, z, atol=1e-6, rtol=0)


@every
def test_two_scales_are_the_formula_over_three_forwards(kind):
    pipe = editor(**KINDS[kind])
    z = torch.randn(1, *pipe(rgb(), **CALL, output_type="latent").images.shape[1:])
    seen = {}

    def note(call, i, t, tensors):
        seen.update(tensors, t=t)

    names = ("prompt_embeds", "negative_prompt_embeds", "image_latents", "task_embeds", "model_output")
    options = {**CALL, "num_inference_steps": 1, "latents": z}
    options.pop("seed")
    pipe(
        rgb(),
        **options,
        guidance_scale=5,
        image_guidance_scale=1.5,
        callback_on_step_end=note,
        callback_on_step_end_tensor_inputs=names,
    )

    def e(source, text):
        with torch.no_grad():
            return pipe.model(z, seen["t"], text, source, seen["task_embeds"]).sample

    source, text, null = seen["image_latents"], seen["prompt_embeds"], seen["negative_prompt_embeds"]
    none = e(torch.zeros_like(source), null)
    expected = none + 1.5 * (e(source, null) - none) + 5 * (e(source, text) - e(source, null))
    torch.testing.assert_close(seen["model_output"], expected, atol=1e-5, rtol=1e-5)


def test_an_instructpix2pix_checkpoint_gives_its_own_pictures():
    theirs = stable_diffusion(StableDiffusionInstructPix2PixPipeline, channels=8)
    network = EmuEditModel.from_stable_diffusion(theirs.unet)
    ours = EmuEditPipeline(
        network, theirs.scheduler, theirs.text_encoder, theirs.tokenizer, codec=theirs.vae, unscaled_source=True
    )
    for pipe in (ours, theirs):
        pipe.set_progress_bar_config(disable=True)
    given = {"num_inference_steps": 3, "seed": 1, "guidance_scale": 5, "image_guidance_scale": 1.5}
    expected = theirs("a cat", rgb(), output_type="latent", **given).images
    made = ours(rgb(), "a cat", "none", output_type="latent", **given).images
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=0)


def test_defaults_are_the_articles_or_the_pipelines():
    seen = []

    def note(call, i, t, tensors):
        seen.append((call.guidance_scale, call.image_guidance_scale))

    options = {**CALL, "num_inference_steps": 1, "callback_on_step_end": note}
    editor()(rgb(), **options)
    editor(gate=True)(rgb(), **options)
    editor(default_guidance_scale=3.0, default_image_guidance_scale=1.2)(rgb(), **options)
    assert seen == [(5.0, 1.5), (1.0, 1.0), (3.0, 1.2)]


def test_callbacks_change_both_scales():
    pipe = editor()
    counting = Counting(pipe.model)

    def change(call, i, t, tensors):
        call.guidance_scale, call.image_guidance_scale = ((4, 1), (2, 2), (3, 1.5))[i]

    made = pipe(rgb(), **{**CALL, "num_inference_steps": 4}, guidance_scale=1, image_guidance_scale=1,
                callback_on_step_end=lambda *a: change(*a) if a[1] < 3 else None, output_type="pt").images  # fmt: skip
    assert counting.rows == [1, 2, 2, 3]
    plain = pipe(
        rgb(), **{**CALL, "num_inference_steps": 4}, guidance_scale=1, image_guidance_scale=1, output_type="pt"
    )
    assert not torch.equal(made, plain.images)


# Seeds, folders, callbacks -------------------------------------------------------------------------------


@every
def test_alone_or_in_a_batch_it_is_the_same_picture(kind):
    pipe = editor(**KINDS[kind])
    images = [rgb(seed=i) for i in range(3)]
    texts, tasks = [TEXT, "make the background grey", "add a green star"], ["remove", "background", None]
    options = {"num_inference_steps": 3, "seed": 7, "output_type": "latent"}
    whole = pipe(images, texts, tasks, **options).images
    chunked = pipe(images, texts, tasks, **options, max_batch=2).images
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=0)
    for i in range(3):
        alone = pipe(images[i], texts[i], tasks[i], **options, sample_indices=[i]).images
        torch.testing.assert_close(alone, whole[i : i + 1], atol=1e-5, rtol=0)
    assert not torch.equal(whole[0], pipe(images[0], texts[0], tasks[0], **{**options, "seed": 8}).images[0])


@every
def test_round_trip_gives_the_same_picture_to_the_bit(kind, tmp_path):
    pipe = editor(**KINDS[kind], alpha=0.05, default_guidance_scale=2.0)
    again = DiffusionPipeline.from_pretrained(pipe.save_pretrained(tmp_path))
    assert type(again) is EmuEditPipeline
    assert again.config == pipe.config
    assert again.thresholding == Thresholding(0.05)
    call = {"num_inference_steps": 3, "seed": 1, "output_type": "pt"}
    first, second = (each(rgb(20, 31), TEXT, **call) for each in (pipe, again))
    assert torch.equal(first.images, second.images)
    assert (first.tasks, first.guesses) == (second.tasks, second.guesses)


def test_tasks_of_ones_own_travel_in_the_folder(tmp_path):
    encoder, tokenizer = text_encoder()
    parts = (model(num_tasks=2), scheduler("v_prediction"), encoder, tokenizer)
    with pytest.raises(InputError, match="name them by id2task"):
        EmuEditPipeline(*parts)
    telling = TaskPredictor(("shrink", "grow"), buckets=16, width=4, hidden=4).eval()
    pipe = EmuEditPipeline(*parts, telling, id2task={0: "grow", 1: "shrink"})
    again = DiffusionPipeline.from_pretrained(pipe.save_pretrained(tmp_path))
    assert again.task_names == {"grow": 0, "shrink": 1}
    again.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 1, "seed": 0, "output_type": "pt"}
    name = again(rgb(), TEXT, **call).tasks[0]
    guessed = again(rgb(), TEXT, **call).images
    assert torch.equal(guessed, again(rgb(), TEXT, name, **call).images)
    assert torch.equal(guessed, again(rgb(), TEXT, {"grow": 0, "shrink": 1}[name], **call).images)
    for wrong, words in (({0: "grow"}, "shrink"), ({0: "grow", 2: "shrink"}, "places")):
        with pytest.raises(InputError, match=words):
            EmuEditPipeline(*parts, telling, id2task=wrong)


@every
def test_callbacks_see_and_replace_every_tensor(kind):
    pipe, seen = editor(**KINDS[kind]), []

    def note(call, i, t, tensors):
        seen.append({name: tuple(tensor.shape) for name, tensor in tensors.items()})
        return {"task_embeds": torch.zeros_like(tensors["task_embeds"])}

    made = pipe(
        rgb(),
        **CALL,
        callback_on_step_end=note,
        callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs,
        output_type="pt",
    ).images
    assert len(seen) == 3
    assert set(seen[0]) == set(pipe._callback_tensor_inputs)
    assert seen[0]["prompt_embeds"] == (1, LENGTH, 16)
    assert not torch.equal(made, pipe(rgb(), **CALL, output_type="pt").images)


def test_threads_offloading_and_half_precision_share_a_pipeline():
    pipe = editor(latent=True)
    call = {**CALL, "output_type": "pt"}
    call.pop("seed")
    plain = [pipe(rgb(), **call, seed=i).images for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda i: pipe(rgb(), **call, seed=i).images, range(4)))
    assert all(torch.equal(a, b) for a, b in zip(plain, made))
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(pipe(rgb(), **call, seed=0).images, plain[0])
    pipe.disable_model_cpu_offload()
    assert (pipe.to(torch.bfloat16)(rgb(), **call, seed=0).images - plain[0]).abs().max() < 0.1


def test_cancelled_and_interrupted():
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        editor()(rgb(), **CALL, cancel=token)

    def stop(call, i, t, tensors):
        call.interrupt = True

    with pytest.raises(Cancelled, match="after step 1 of 3"):
        editor()(rgb(), **CALL, callback_on_step_end=stop)


# Tasks ---------------------------------------------------------------------------------------------------


def test_one_task_in_all_its_forms(tmp_path):
    pipe = editor()
    call = {**CALL, "output_type": "pt"}
    call.pop("task")
    number = TASK_NAMES.index("remove")
    vector = pipe.model.tasks.weight[number].detach().clone()
    learned = TaskEmbedding.of(pipe.model, vector, "mine")
    file = learned.save(tmp_path / "mine.safetensors")
    expected = pipe(rgb(), **call, task="remove").images
    forms = (
        number,
        torch.tensor(number),
        torch.tensor([number]),
        vector,
        vector[None],
        [vector],
        learned,
        file,
        str(file),
    )
    for task in forms:
        assert torch.equal(pipe(rgb(), **call, task=task).images, expected), task
    assert pipe(rgb(), **call, task=file).tasks == ["mine"]
    assert not torch.equal(pipe(rgb(), **call, task="none").images, expected)
    zero = torch.zeros_like(vector)
    for null in (-1, zero):
        assert torch.equal(pipe(rgb(), **call, task=null).images, pipe(rgb(), **call, task="none").images)


def test_a_task_is_predicted_and_said(caplog):
    pipe = editor()
    made = pipe(rgb(), TEXT, num_inference_steps=1, seed=0, output_type="pt")
    (guess,) = made.guesses
    assert guess == pipe.task_predictor.predict(TEXT)[0]
    assert made.tasks == [guess.task]
    assert torch.equal(made.images, pipe(rgb(), TEXT, guess.task, 1, seed=0, output_type="pt").images)
    assert not guess.sure
    assert "not sure" in caplog.text
    images, tasks, guesses = pipe(rgb(), TEXT, "add", 1, seed=0, return_dict=False)
    assert (len(images), tasks, guesses) == (1, ["add"], [None])


def test_understood_without_editing():
    pipe = editor()
    given, guessed = pipe.understand([TEXT, "add a green star"], ["remove", None])
    assert (given.name, given.guess) == ("remove", None)
    assert torch.equal(given.vector, pipe.model.tasks.weight[TASK_NAMES.index("remove")])
    assert guessed.guess == pipe.task_predictor.predict("add a green star")[0]
    assert [choice.name for choice in pipe.understand([TEXT] * 3, "add")] == ["add"] * 3
    with pytest.raises(InputError, match="is empty"):
        pipe.understand("")


def test_tasks_that_are_refused(tmp_path):
    pipe = editor()
    call = {"num_inference_steps": 1}
    with pytest.raises(UnknownChoiceError, match="did you mean 'remove'"):
        pipe(rgb(), TEXT, "remvoe", **call)
    with pytest.raises(UnknownChoiceError, match=r"known: add, background, .*none"):
        pipe(rgb(), TEXT, "", **call)
    for wrong, words in (
        (99, "out of range"),
        (2.5, "give a name"),
        (True, "give a name"),
        (torch.zeros(3), "expected"),
        (pipe.model.tasks.weight[0].detach() * torch.nan, "finite"),
        ([], "empty list"),
        (["add", "remove"], None),
    ):
        if words is None:
            assert len(pipe(rgb(), TEXT, wrong, **call).images) == 2
            continue
        with pytest.raises(InputError, match=words):
            pipe(rgb(), TEXT, wrong, **call)
    for missing in ("mine.safetensors", "folder/mine", tmp_path / "none.safetensors"):
        with pytest.raises(ArtifactError, match="no file"):
            pipe(rgb(), TEXT, missing, **call)
    other = model(task_dim=8)
    file = TaskEmbedding.of(other, torch.zeros(8), "mine").save(tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match="task vectors of 8"):
        pipe(rgb(), TEXT, file, **call)
    with pytest.raises(InputError, match="no task predictor: name the task, one of local"):
        editor(task_predictor=None)(rgb(), TEXT, **call)


# Instructions --------------------------------------------------------------------------------------------


def test_empty_and_overlong_instructions(tmp_path):
    pipe = editor()
    for empty in ("", "  \n", ["", TEXT]):
        with pytest.raises(InputError, match="is empty: say what to change"):
            pipe([rgb(), rgb()], empty, "add")
        with pytest.raises(InputError, match="is empty: say what to change"):
            pipe([rgb(), rgb()], empty)
    with pytest.raises(InputError, match=f"too long: this editor reads at most {LENGTH} tokens"):
        pipe(rgb(), "remove the red square and " * 9, "remove")
    for wrong in (None, 7, [TEXT, 7], []):
        with pytest.raises(InputError, match=r"instruction must be a text|expected an instruction"):
            pipe(rgb(), wrong, "add")
    vector = pipe.model.tasks.weight[0].detach()
    knows = TaskEmbedding.of(pipe.model, vector, "mine", instruction=TEXT)
    call = {"num_inference_steps": 2, "seed": 0, "output_type": "pt"}
    assert torch.equal(pipe(rgb(), task=knows, **call).images, pipe(rgb(), TEXT, vector, **call).images)


def test_clip_and_t5_together(tmp_path):
    """Tokens behind one another, the narrower ones filled up; the same in training as in the pipeline."""
    from transformers import T5Config, T5EncoderModel

    encoder, tokenizer = text_encoder()
    torch.manual_seed(2)
    sizes = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": len(tokenizer)}
    t5 = T5EncoderModel(T5Config(**sizes, dropout_rate=0.0)).eval()
    pairs = [(tokenizer, clip(tokenizer)), (tokenizer, t5)]
    with torch.no_grad():
        embeds = encode_jointly(pairs, [TEXT, ""])
        trained = JointTextEncoder(pairs)(joint_ids(pairs, [TEXT, ""])).last_hidden_state
    assert embeds.shape == (2, 16 + LENGTH, 24)
    assert not embeds[:, :16, 16:].any()
    torch.testing.assert_close(embeds, trained)
    network = model(unet={**UNET, "cross_attention_dim": 24})
    second = {"text_encoder_2": t5, "tokenizer_2": tokenizer}
    pipe = EmuEditPipeline(network, scheduler("v_prediction"), pairs[0][1], tokenizer, predictor(), **second)
    again = DiffusionPipeline.from_pretrained(pipe.save_pretrained(tmp_path))
    again.set_progress_bar_config(disable=True)
    call = {**CALL, "output_type": "pt"}
    assert torch.equal(pipe(rgb(), **call).images, again(rgb(), **call).images)
    with pytest.raises(InputError, match=f"at most {LENGTH} tokens"):
        pipe(rgb(), "remove the red square and " * 9, "remove")
    with pytest.raises(InputError, match="both or neither"):
        EmuEditPipeline(network, pipe.scheduler, t5, tokenizer, tokenizer_2=tokenizer)
    with pytest.raises(InputError, match="width 16 but model looks at texts of width 24"):
        EmuEditPipeline(network, pipe.scheduler, encoder, tokenizer)
    with pytest.raises(InputError, match="expected \\[16, 24\\]"):
        JointTextEncoder(pairs)(torch.zeros(1, 30, dtype=torch.long))


# Pictures ------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("size", [(16, 16), (1, 1), (37, 5), (3, 200), (300, 200)])
def test_sizes_come_back(kind, size):
    pipe = editor(**KINDS[kind])
    assert pipe(rgb(*size), **CALL).images[0].size == size
    assert pipe(rgb(*size), **CALL, output_type="np").images.shape == (1, size[1], size[0], 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGBA", "LA", "I;16", "F"])
def test_modes_come_back_in_colour(mode):
    pipe = editor()
    given = (
        Image.fromarray(picture(9, 14)[..., 0].astype(np.uint16) * 257) if mode == "I;16" else rgb(14, 9).convert(mode)
    )
    if mode in ("RGBA", "LA"):
        given.putalpha(Image.fromarray(picture(9, 14)[..., 1]))
    made = pipe(given, **CALL).images[0]
    assert made.mode == ("RGBA" if "A" in mode else "RGB")
    assert made.size == (14, 9)


def closed_gate(pipe, rows=slice(0, 0)):
    """Let the gate open on some rows of the picture alone, by what the network says."""
    inner = pipe.model.forward

    def forward(sample, timestep, encoder_hidden_states, source, task=None, **options):
        out = inner(sample, timestep, encoder_hidden_states, source, task, **options)
        mixed = source.clone()
        mixed[:, :, rows] = out.sample[:, :, rows]
        out.sample = mixed
        return out

    pipe.model.forward = forward
    return pipe


@pytest.mark.parametrize("size", [(16, 16), (150, 97), (5, 9), (1, 1)])
@pytest.mark.parametrize("steps", [1, 4])
def test_what_the_model_leaves_alone_comes_back_bit_by_bit(size, steps):
    pipe = closed_gate(editor(gate=True))
    call = {**CALL, "num_inference_steps": steps}
    for given in (rgb(*size), Image.fromarray(picture(size[1], size[0], 4))):
        made = pipe(given, **call, guidance_scale=5).images[0]
        assert made.mode == given.mode
        assert np.array_equal(np.asarray(made), np.asarray(given))


def test_only_the_edited_rows_change():
    pipe = closed_gate(editor(gate=True), slice(4, 8))
    given = rgb(160, 160)
    made, before = np.asarray(pipe(given, **CALL).images[0]), np.asarray(given)
    moved = (made != before).any((1, 2))
    assert not moved[:40].any()
    assert not moved[80:].any()
    assert moved[45:75].all()


def test_size_and_thresholding():
    pipe = editor()
    seen = []
    options = {
        **CALL,
        "callback_on_step_end": lambda call, i, t, tensors: seen.append(tuple(tensors["latents"].shape)),
        "num_inference_steps": 1,
    }
    pipe(rgb(40, 30), **options, size=24)
    pipe(rgb(40, 30), **options, size=(16, 32))
    assert seen == [(1, 3, 24, 24), (1, 3, 16, 32)]
    with pytest.raises(InputError, match="multiples of 4, 16 × 20"):
        pipe(rgb(), **options, size=(17, 21))
    with pytest.raises(InputError, match="size"):
        pipe(rgb(), **options, size=0)
    given = rgb(40, 30)
    for everything in (9.0, Thresholding(9.0)):
        assert np.array_equal(np.asarray(pipe(given, **CALL, thresholding=everything).images[0]), np.asarray(given))
    assert not np.array_equal(np.asarray(pipe(given, **CALL, thresholding=0).images[0]), np.asarray(given))
    for wrong in ("much", True, -1.0):
        with pytest.raises(InputError, match=r"alpha|thresholding"):
            pipe(given, **CALL, thresholding=wrong)


def test_a_reduced_picture_keeps_its_details_where_little_changed():
    """An editor without gate changes every value a little; at full size that must not blur the picture."""
    pipe = closed_gate(editor(alpha=0.05))
    shifted = pipe.model.forward

    def forward(sample, timestep, encoder_hidden_states, source, task=None, **options):
        out = shifted(sample, timestep, encoder_hidden_states, source, task, **options)
        out.sample = (source + 0.02).clamp(-1, 1)
        return out

    pipe.model.forward = forward
    pipe.scheduler = scheduler("sample")
    call = {**CALL, "guidance_scale": 1, "image_guidance_scale": 1}
    large, small = rgb(64, 48), rgb(16, 16)
    assert np.array_equal(np.asarray(pipe(large, **call).images[0]), np.asarray(large))
    assert not np.array_equal(np.asarray(pipe(large, **call, thresholding=0).images[0]), np.asarray(large))
    moved = np.asarray(pipe(small, **call).images[0]).astype(int) - np.asarray(small)
    assert 1 <= moved.max() <= 3  # at its own size it is the editor's word


def test_output_types():
    pipe = editor(latent=True)
    call = {**CALL, "task": "add"}
    pil = np.asarray(pipe(rgb(20, 10), **call).images[0])
    floats = pipe(rgb(20, 10), **call, output_type="np").images
    assert np.array_equal((floats[0] * 255).round().astype(np.uint8), pil)
    tensor = pipe(rgb(20, 10), **call, output_type="pt").images
    assert torch.equal(tensor, torch.from_numpy(floats).permute(0, 3, 1, 2))
    z = pipe(rgb(20, 10), **call, output_type="latent").images
    assert z.shape == (1, 4, 8, 8)
    assert pipe.decode(z).shape == (1, 3, 16, 16)
    with pytest.raises(InputError, match="several sizes"):
        pipe([rgb(20, 10), rgb()], **call, output_type="np")
    assert [image.size for image in pipe([rgb(20, 10), rgb()], **call).images] == [(20, 10), (16, 16)]


# What does not fit ---------------------------------------------------------------------------------------


def test_calls_that_are_refused():
    pipe = editor()
    for change, words in (
        ({"image": None}, "image is missing"),
        ({"image": "picture.png"}, "PIL.Image.open"),
        ({"image": [rgb()] * 2, "instruction": [TEXT] * 3}, "one entry per picture"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": 1001}, "1000"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"image_guidance_scale": float("inf")}, "image_guidance_scale"),
        ({"image_guidance_scale": "1"}, "image_guidance_scale"),
        ({"output_type": "jpg"}, "output_type"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "latents have shape"),
        ({"generator": 5}, "seed"),
        ({"max_batch": 0}, "max_batch"),
        ({"strength": 0.5}, "unknown argument 'strength'"),
        (
            {"callback_on_step_end": lambda *_: None, "callback_on_step_end_tensor_inputs": ["source"]},
            "callback tensor",
        ),
    ):
        with pytest.raises(InputError, match=words):
            pipe(**{"image": rgb(), **CALL, **change})


def test_components_are_checked():
    good = editor().components
    encoder, tokenizer = text_encoder()
    narrow = EmuEditModel({"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types":
                          ("UpBlock2D",), "norm_num_groups": 4, "cross_attention_dim": 8}, 16, 3)  # fmt: skip
    for change, words in (
        ({"model": narrow}, "width 16"),
        ({"model": model(copy_gate=True)}, "prediction_type='sample'"),
        ({"codec": vae()}, "4 channels but model takes 3"),
        ({"task_predictor": encoder}, "TaskPredictor"),
        ({"text_encoder": None}, "text_encoder"),
        ({"scheduler": tokenizer}, "scheduler"),
    ):
        with pytest.raises(InputError, match=words):
            EmuEditPipeline(**{**good, **change})
    with pytest.raises(InputError, match="EmuEditModel"):
        EmuEditPipeline(**good).model = encoder
    for wrong in ({"alpha": -1}, {"default_guidance_scale": "5"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            EmuEditPipeline(**good, **wrong)
    assert EmuEditPipeline(**{**good, "task_predictor": predictor()}).task_names["local"] == 0
