"""The loop against tiny fakes: what it calls, in which order, and how it stops."""

from types import SimpleNamespace

import pytest
import torch

from latentia.errors import Cancelled, InputError, NonFiniteError, UnknownChoiceError
from latentia.pipelines.call import PipelineCall
from latentia.pipelines.callbacks import CancelToken
from latentia.pipelines.loop import FiniteWatch, sample_loop


class Halving:
    """A scheduler that halves the sample and subtracts the prediction."""

    config = SimpleNamespace(num_train_timesteps=1000)
    init_noise_sigma = 1.0
    order = 1

    def __init__(self, steps=4):
        self.timesteps = torch.linspace(999, 0, steps).long()
        self.log = []

    def scale_model_input(self, sample, timestep):
        return sample * 10

    def step(self, model_output, timestep, sample, generator=None, **options):
        self.log.append((int(timestep), generator, options))
        return SimpleNamespace(prev_sample=sample / 2 - model_output, pred_original_sample=sample * 0 + 7)


class Pipe:
    components = {"scheduler": None}
    colour = "red"


def begin(steps=4, **given):
    return PipelineCall(Pipe(), Halving(steps), **given)


def nothing(call, z, t):
    return torch.zeros_like(z)


def test_every_turn_predicts_on_the_scaled_input_then_steps():
    call, seen, moved = begin(3), [], []

    def denoise(call, z, t):
        seen.append((call.step_index, int(t), z.clone()))
        return z / 100

    out = sample_loop(call, denoise, torch.ones(2, 1), step_options={"eta": 0.5}, advance=lambda: moved.append(1))
    # x ← x/2 − 10x/100 = 0.4 x
    assert torch.allclose(out, torch.full((2, 1), 0.4**3))
    assert [(i, t) for i, t, _ in seen] == [(0, 999), (1, 499), (2, 0)]
    assert torch.allclose(seen[1][2], torch.full((2, 1), 4.0))
    assert call.scheduler.log == [(999, None, {"eta": 0.5}), (499, None, {"eta": 0.5}), (0, None, {"eta": 0.5})]
    assert len(moved) == 3


def test_callback_sees_wanted_tensors_and_replaces_latents():
    call, seen = begin(2), []

    def callback(pipe, i, t, tensors):
        seen.append((pipe is call, i, int(t), {k: float(v.sum()) for k, v in tensors.items()}))
        return {"latents": torch.full((1, 1), 8.0)}

    wanted = ("latents", "model_output", "pred_original_sample")
    out = sample_loop(call, nothing, torch.ones(1, 1), callback=callback, wanted=wanted)
    assert seen == [
        (True, 0, 999, {"latents": 0.5, "model_output": 0.0, "pred_original_sample": 7.0}),
        (True, 1, 0, {"latents": 4.0, "model_output": 0.0, "pred_original_sample": 7.0}),
    ]
    assert float(out) == 8.0


def test_callback_may_return_none_or_everything_it_was_given():
    for callback in (lambda p, i, t, k: None, lambda p, i, t, k: k):
        wanted = ("latents", "model_output")
        assert float(sample_loop(begin(2), nothing, torch.ones(1, 1), callback=callback, wanted=wanted)) == 0.25


def test_replaced_conditions_reach_the_next_step():
    call, used = begin(2, tensors={"class_labels": torch.tensor([1])}), []

    def denoise(call, z, t):
        used.append(int(call.tensors["class_labels"]))
        return torch.zeros_like(z)

    def callback(pipe, i, t, tensors):
        return {"class_labels": torch.tensor([2])}

    sample_loop(call, denoise, torch.ones(1, 1), callback=callback, wanted=("class_labels",))
    assert used == [1, 2]


@pytest.mark.parametrize(
    ("returned", "error", "words"),
    [
        (3, InputError, "returned int"),
        ({"latent": torch.ones(1, 1)}, UnknownChoiceError, "did you mean 'latents'"),
        ({"latents": torch.ones(2, 1)}, InputError, r"\(2, 1\) for 'latents': expected a tensor of \(1, 1\)"),
        ({"latents": None}, InputError, "NoneType for 'latents'"),
        ({"model_output": torch.ones(1, 1)}, InputError, "only for reading"),
    ],
)
def test_a_callback_that_returns_nonsense_is_told_so(returned, error, words):
    with pytest.raises(error, match=words):
        sample_loop(begin(), nothing, torch.ones(1, 1), callback=lambda *_: returned, wanted=("latents",))


@pytest.mark.parametrize("name", ["interrupt", "_interrupt"])
@pytest.mark.parametrize("when", [0, 3])
def test_interrupting_stops_before_the_next_step_even_after_the_last(name, when):
    call = begin(4)

    def callback(pipe, i, t, tensors):
        setattr(pipe, name, i == when)

    with pytest.raises(Cancelled, match=f"after step {when + 1} of 4"):
        sample_loop(call, nothing, torch.ones(1, 1), callback=callback)
    assert len(call.scheduler.log) == when + 1


def test_token_stops_from_outside():
    token = CancelToken()
    call = begin(4, cancel=token)

    def denoise(call, z, t):
        if call.step_index == 1:
            token.cancel()
        return torch.zeros_like(z)

    with pytest.raises(Cancelled, match="token"):
        sample_loop(call, denoise, torch.ones(1, 1))
    assert len(call.scheduler.log) == 2


@pytest.mark.parametrize(("bad", "steps", "runs"), [(0, 40, 16), (20, 40, 32), (39, 40, 40), (2, 3, 3)])
def test_the_first_non_finite_step_is_named(bad, steps, runs):
    call = begin(steps)

    def denoise(call, z, t):
        return torch.full_like(z, float("inf") if call.step_index == bad else 0.0)

    with pytest.raises(NonFiniteError, match=f"after step {bad + 1} of {steps}:"):
        sample_loop(call, denoise, torch.ones(1, 1))
    assert len(call.scheduler.log) == runs  # it does not go on to the end


class Bending(torch.nn.Module):
    """A network that predicts NaN from a call on, or for a condition."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Identity()

    def forward(self, z, bad):
        return self.inner(z) * (float("nan") if bad else 0.0)


def with_network():
    net = Bending()
    pipe = Pipe()
    pipe.components = {"scheduler": None, "unet": net}
    return pipe, net


@pytest.mark.parametrize("bad", [0, 6, 17])
def test_the_module_is_named_by_repeating_the_step_as_it_was(bad):
    """The condition that a callback sets for one step, and takes back, is in force again while the step is repeated."""
    pipe, net = with_network()
    call = PipelineCall(pipe, Halving(20), tensors={"spoilt": torch.tensor(bad == 0)}, guidance_scale=3)
    seen = []

    def denoise(call, z, t):
        seen.append((call.step_index, int(t), float(z.sum()), call.guidance_scale))
        return net(z, bool(call.tensors["spoilt"]))

    def callback(pipe, i, t, tensors):
        pipe.guidance_scale = 4 + i
        return {"spoilt": torch.tensor(i + 1 == bad)}

    with pytest.raises(NonFiniteError, match=f"after step {bad + 1} of 20: first in unet; use a wider dtype"):
        sample_loop(call, denoise, torch.ones(1, 1), callback=callback, wanted=("spoilt",))
    assert seen[-1] == seen[bad]
    assert len(seen) == (17 if bad < 16 else 21)
    assert not net._forward_hooks
    assert call.guidance_scale == 4 + len(seen) - 2  # the call itself was not turned back


def test_a_scheduler_that_spoils_a_finite_prediction_is_told_from_the_network():
    pipe, net = with_network()
    call = PipelineCall(pipe, Halving(3))
    call.scheduler.step = lambda output, t, z, **_: SimpleNamespace(prev_sample=z / 0)
    with pytest.raises(NonFiniteError, match="step 1 of 3: the prediction was finite, the scheduler's step"):
        sample_loop(call, lambda call, z, t: net(z, False), torch.ones(1, 1))
    call = PipelineCall(pipe, Halving(3))
    call.scheduler.scale_model_input = lambda z, t: z / 0
    with pytest.raises(NonFiniteError, match="step 1 of 3: the scheduler's scaling"):
        sample_loop(call, lambda call, z, t: net(z, False), torch.ones(1, 1))
    with pytest.raises(NonFiniteError, match="step 1 of 3: outside the network's modules"):
        sample_loop(PipelineCall(pipe, Halving(3)), lambda call, z, t: net(z, False) / 0, torch.ones(1, 1))


def test_a_step_that_cannot_be_repeated_is_still_reported():
    pipe, _ = with_network()
    once = iter([torch.full((1, 1), float("nan"))])
    with pytest.raises(NonFiniteError, match=r"after step 1 of 1: .*failed with StopIteration"):
        sample_loop(PipelineCall(pipe, Halving(1)), lambda *_: next(once), torch.ones(1, 1))


def test_watch_is_quiet_about_large_finite_numbers():
    watch = FiniteWatch(1)
    watch.see(torch.full((4,), 1e30))
    watch.check()
    assert not watch.turns  # what it held to explain a failure is let go
    watch.check()


def test_view_falls_through_and_keeps_writes_to_itself():
    pipe = Pipe()
    call = PipelineCall(pipe, Halving(5), guidance_scale=3)
    assert (call.colour, call.num_timesteps, call._num_timesteps) == ("red", 5, 5)
    assert call.guidance_scale == call._guidance_scale == 3
    assert call.do_classifier_free_guidance
    call._guidance_scale = 1
    call.note = "seen"
    assert (call.guidance_scale, call.note, call.do_classifier_free_guidance) == (1.0, "seen", False)
    assert not {"note", "guidance_scale"} & set(vars(pipe))
    with pytest.raises(AttributeError):
        _ = call.missing
    with pytest.raises(InputError, match="before calling it"):
        call.scheduler = None
    with pytest.raises(InputError, match="at least 0"):
        call.guidance_scale = float("nan")
    with pytest.raises(InputError, match="fixed for the whole call"):
        call.num_timesteps = 3


def test_interval_counts_noise_not_steps():
    call = begin(4, guidance_scale=5, guidance_interval=(0.2, 0.8))
    scales = []
    sample_loop(call, lambda c, z, t: scales.append(c.current_scale) or z * 0, torch.ones(1, 1))
    assert scales == [1, 5, 5, 1]  # t = 999, 666, 333, 0 lie at 0.001, 0.334, 0.667, 1
