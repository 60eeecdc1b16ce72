"""Callbacks as a user writes them: forms, arity, recording, and the mistakes."""

import logging

import pytest
import torch

from latentia.errors import Cancelled, InputError, UnknownChoiceError
from latentia.pipelines.callbacks import (
    CancelToken,
    MultiPipelineCallbacks,
    PipelineCallback,
    Trajectory,
    check_callback,
    wanted_tensors,
)


class Add(PipelineCallback):
    def __init__(self, amount):
        self.amount = amount

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        return {"latents": callback_kwargs["latents"] + self.amount}


class Watch(PipelineCallback):
    tensor_inputs = ("latents", "model_output")

    def __init__(self):
        self.seen = []

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        self.seen.append((step_index, int(timestep), float(callback_kwargs["latents"].sum())))


def test_several_callbacks_run_in_order_on_each_others_results():
    watch = Watch()
    both = MultiPipelineCallbacks([Add(1), Add(10), watch])
    assert both.tensor_inputs == ("latents", "model_output")
    out = both(None, 2, torch.tensor(7), {"latents": torch.zeros(1), "model_output": torch.zeros(1)})
    assert float(out["latents"]) == 11.0
    assert watch.seen == [(2, 7, 11.0)]


@pytest.mark.parametrize(
    "callback",
    [
        lambda pipe, i, t, tensors: None,
        lambda *arguments: None,
        lambda pipe, i, t, tensors, extra=0: None,
        Add(1),
        [Add(1), Add(2)],
    ],
)
def test_four_argument_forms_are_accepted(callback):
    assert callable(check_callback(callback))


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (lambda: None, "four positional arguments"),
        (lambda pipe, i: None, r"takes \(pipe, i\)"),
        (lambda a, b, c, d, e: None, "four positional arguments"),
        (lambda a, b, c, d, *, must: None, "four positional arguments"),
        (3, "must be a function"),
        ("print", "must be a function"),
        (Add, "must be a function"),
        ([lambda *_: None], "must be a function"),
    ],
)
def test_callbacks_that_cannot_be_called_are_refused(callback, words):
    with pytest.raises(InputError, match=words):
        check_callback(callback)


def test_three_arguments_are_the_older_form(ddim, caplog):
    """The form of the Diffusers article: (pipe, i, latents), assigning guidance_scale."""
    seen = []

    def dynamic_guidance(pipe, i, latents):
        total = pipe.scheduler.config.num_train_timesteps
        pipe.guidance_scale = 10.0 if i < total * 0.3 else 5.0
        seen.append((i, tuple(latents.shape), pipe.guidance_scale))

    with caplog.at_level(logging.WARNING):
        ddim(num_inference_steps=2, callback_on_step_end=dynamic_guidance)
    assert seen == [(0, (1, 3, 8, 8), 10.0), (1, (1, 3, 8, 8), 10.0)]
    assert len(caplog.records) == 1
    assert "dynamic_guidance takes (pipe, step_index, latents)" in caplog.text


def test_guidance_may_change_within_a_call_and_only_there(latent):
    base = {"class_labels": 1, "num_inference_steps": 4, "seed": 0, "output_type": "latent"}

    def raise_guidance(pipe, i, t, tensors):
        pipe._guidance_scale = 4.0

    seen = []

    def rescaled(pipe, i, t, tensors):
        seen.append(pipe.guidance_scale)

    plain = latent(**base).images
    changed = latent(**base, callback_on_step_end=raise_guidance).images
    guided = latent(**base, guidance_scale=4.0, callback_on_step_end=rescaled).images
    assert (plain - changed).abs().max() > 1e-4
    assert (guided - changed).abs().max() > 1e-5  # the first step was not guided
    assert torch.equal(plain, latent(**base).images)  # nothing was left behind
    assert seen == [4.0] * 4


def test_raising_guidance_on_a_network_without_null_class_is_an_error(make_unet):
    from latentia import DDIMPipeline, DDIMScheduler

    pipe = DDIMPipeline(make_unet(num_class_embeds=2), DDIMScheduler(), id2label={0: "a", 1: "b"})
    pipe.set_progress_bar_config(disable=True)

    def raise_guidance(view, i, t, tensors):
        view.guidance_scale = 3.0

    with pytest.raises(InputError, match="without a null class"):
        pipe(class_labels="a", num_inference_steps=2, callback_on_step_end=raise_guidance)


def test_the_view_shows_this_calls_scheduler(ddim):
    seen = []

    def callback(pipe, i, t, tensors):
        seen.append((pipe.scheduler is not ddim.scheduler, pipe.scheduler.timesteps.tolist(), pipe.unet is ddim.unet))

    ddim(num_inference_steps=2, callback_on_step_end=callback)
    assert seen == [(True, [500, 0], True)] * 2


def test_trajectory_records_x0_on_the_way(latent):
    strip = Trajectory(every=2)
    out = latent(class_labels="dog", num_inference_steps=6, seed=3, output_type="latent", callback_on_step_end=strip)
    assert strip.steps == [0, 2, 4, 5]
    assert [tuple(f.shape) for f in strip.frames] == [(1, 2, 8, 8)] * 4
    # With DDIM the last step ends on ᾱ of t = −1 (1 by default), so the last x̂₀ is the result.
    assert torch.allclose(strip.frames[-1], out.images, atol=1e-5)
    assert tuple(latent.decode(strip.frames[0]).shape) == (1, 3, 16, 16)


def test_trajectory_joins_chunks(ddim):
    strip, whole = Trajectory(every=3), Trajectory(every=3)
    ddim(batch_size=3, seed=0, num_inference_steps=3, max_batch=2, callback_on_step_end=strip)
    ddim(batch_size=3, seed=0, num_inference_steps=3, callback_on_step_end=whole)
    assert [tuple(f.shape) for f in strip.frames] == [(3, 3, 8, 8)] * 2
    assert torch.allclose(strip.frames[1], whole.frames[1], atol=1e-5)


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_trajectory_counts_whole_turns(every):
    with pytest.raises(InputError, match="integer of at least 1"):
        Trajectory(every=every)


def test_unknown_tensor_names_are_refused_up_front(ddim):
    with pytest.raises(UnknownChoiceError, match="did you mean 'latents'"):
        wanted_tensors(lambda *_: None, ["latent"], ["latents"])
    with pytest.raises(InputError, match="a list of names"):
        ddim(callback_on_step_end=lambda *_: None, callback_on_step_end_tensor_inputs="latents")
    with pytest.raises(UnknownChoiceError, match="class_labels"):  # this network has none
        ddim(callback_on_step_end=lambda *_: None, callback_on_step_end_tensor_inputs=["class_labels"])


def test_a_raising_callback_ends_the_call_with_its_own_error(ddim):
    def callback(pipe, i, t, tensors):
        raise Cancelled("enough")

    with pytest.raises(Cancelled, match="enough"):
        ddim(num_inference_steps=2, callback_on_step_end=callback)


def test_token_before_the_call_means_no_work(ddim):
    token = CancelToken()
    token.cancel()
    assert token.cancelled
    with pytest.raises(Cancelled):
        ddim(num_inference_steps=2, cancel=token)
    with pytest.raises(InputError, match="CancelToken"):
        ddim(num_inference_steps=2, cancel=True)
