"""What every registered scheduler class must keep to itself (state), and how it makes noisy samples."""

import copy
import pickle

import pytest
import torch

import latentia
from latentia.errors import UnknownChoiceError
from latentia.schedulers.scheduler import DIFFUSION_FAMILY, SchedulerMixin

PUBLIC = [name for name, home in latentia._HOME.items() if home.startswith("schedulers.") and name != "SchedulerMixin"]
NAMES = sorted(name for name in PUBLIC if issubclass(getattr(latentia, name), SchedulerMixin))
SIGMA = [name for name in NAMES if "Euler" in name or "Heun" in name]

every = pytest.mark.parametrize("name", NAMES)


def build(name: str, **config) -> SchedulerMixin:
    return getattr(latentia, name)(**config)


def run(scheduler, x: torch.Tensor, generator=None) -> torch.Tensor:
    for t in scheduler.timesteps:
        y = 0.3 * scheduler.scale_model_input(x, t) + 0.1
        x = scheduler.step(y, t, x, generator=generator).prev_sample
    return x


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- state ------------------------------------------------------------------------------------------------------


@every
def test_copies_are_independent(name):
    scheduler = build(name)
    scheduler.set_timesteps(8)
    x = noise(1, 4) * scheduler.init_noise_sigma
    expected = run(scheduler, x, torch.Generator().manual_seed(0))
    scheduler.set_timesteps(8)
    half = x
    for t in scheduler.timesteps[:3]:
        y = 0.3 * scheduler.scale_model_input(half, t) + 0.1
        half = scheduler.step(y, t, half, generator=(g := torch.Generator().manual_seed(0))).prev_sample
    timesteps = scheduler.timesteps.clone()
    other = scheduler.fresh()
    other.set_timesteps(3)
    run(other, x, torch.Generator().manual_seed(5))
    assert torch.equal(scheduler.timesteps, timesteps)
    assert scheduler.step_index == 3
    assert g is not None
    scheduler.set_timesteps(8)
    assert torch.equal(run(scheduler, x, torch.Generator().manual_seed(0)), expected)
    other.set_timesteps(8)
    other.timesteps.zero_()  # even an abused copy leaves the original's next run alone
    scheduler.set_timesteps(8)
    assert torch.equal(run(scheduler, x, torch.Generator().manual_seed(0)), expected)


@every
def test_interleaved_runs_of_two_copies(name):
    alone = build(name)
    alone.set_timesteps(6)
    x = noise(1, 4) * alone.init_noise_sigma
    expected = run(alone, x, torch.Generator().manual_seed(0))
    pair = [build(name).fresh() for _ in range(1)]
    pair.append(pair[0].fresh())
    samples, generators = [x, x], [torch.Generator().manual_seed(0) for _ in range(2)]
    for scheduler in pair:
        scheduler.set_timesteps(6)
    for i in range(len(alone.timesteps)):
        for k, scheduler in enumerate(pair):
            t = scheduler.timesteps[i]
            y = 0.3 * scheduler.scale_model_input(samples[k], t) + 0.1
            samples[k] = scheduler.step(y, t, samples[k], generator=generators[k]).prev_sample
    assert torch.equal(samples[0], expected)
    assert torch.equal(samples[1], expected)


@every
@pytest.mark.parametrize("remake", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_deep_copies_keep_their_place(name, remake):
    scheduler = build(name)
    scheduler.set_timesteps(6)
    x = noise(1, 4) * scheduler.init_noise_sigma
    t = scheduler.timesteps[0]
    first = scheduler.step(0.1 * x, t, x, generator=torch.Generator().manual_seed(0)).prev_sample
    other = remake(scheduler)
    after = [
        s.step(0.1 * first, s.timesteps[1], first, generator=torch.Generator().manual_seed(1)).prev_sample
        for s in (scheduler, other)
    ]
    assert torch.equal(*after)


@every
@pytest.mark.parametrize("convert", [lambda t: t.clone(), lambda t: t.item(), lambda t: t.reshape(1)])
def test_timesteps_may_be_views_copies_or_numbers(name, convert):
    scheduler = build(name)
    x = noise(1, 4)
    results = []
    for change in (lambda t: t, convert):
        scheduler.set_timesteps(6)
        sample, generator = x * scheduler.init_noise_sigma, torch.Generator().manual_seed(0)
        for t in scheduler.timesteps:
            y = 0.3 * scheduler.scale_model_input(sample, change(t))
            sample = scheduler.step(y, change(t), sample, generator=generator).prev_sample
        results.append(sample)
    assert torch.equal(*results)


@every
def test_a_run_that_begins_late(name):
    """Image to image: the last k of n steps from a noised image arrive near it when the network knows the answer."""
    scheduler = build(name, **({} if "Flow" in name else {"beta_schedule": "scaled_linear"}))
    clean = 0.5 * noise(1, 64)
    extra = {} if "Flow" in name or "clip_sample" not in scheduler.config else {"clip_sample": False}
    scheduler = type(scheduler).from_config(scheduler.config, **extra)
    for start in (2, 4, 8, 12):
        scheduler.set_timesteps(20)
        begin = start * scheduler.order if name != "PNDMScheduler" else start // 4 * 4
        scheduler.set_begin_index(begin)
        t = scheduler.timesteps[begin]
        eps = noise(1, 64, seed=2)
        x = scheduler.add_noise(clean, eps, t.reshape(1))
        for t in scheduler.timesteps[begin:]:
            alpha, sigma = scheduler.alpha_sigma(t)
            seen = scheduler.scale_model_input(x, t)
            target = (seen - clean) / sigma if "Flow" in name else (seen - alpha * clean) / sigma
            x = scheduler.step(target, t, x, generator=torch.Generator().manual_seed(3)).prev_sample
        assert (x - clean).abs().max().item() < 0.3, start


# -- the forward process ----------------------------------------------------------------------------------------


@every
def test_add_noise_in_closed_form(name):
    scheduler = build(name)
    x, eps = noise(5, 3, 2).double(), noise(5, 3, 2, seed=1).double()
    t = torch.tensor([1, 10, 300, 700, 999])
    alpha, sigma = scheduler.alpha_sigma(t, torch.float64)
    assert alpha.shape == sigma.shape == (5,)
    if "Flow" in name:
        torch.testing.assert_close(sigma, t / 1000.0, check_dtype=False)
        torch.testing.assert_close(alpha, 1 - t.double() / 1000)
    else:
        torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(5, dtype=torch.float64))
        torch.testing.assert_close(alpha**2, scheduler.alphas_cumprod[t].double(), rtol=1e-5, atol=1e-8)
    noisy = scheduler.add_noise(x, eps, t)
    a, s = alpha.view(5, 1, 1), sigma.view(5, 1, 1)
    in_kappa = name in SIGMA and name in DIFFUSION_FAMILY
    torch.testing.assert_close(noisy, x + s / a * eps if in_kappa else a * x + s * eps, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(noisy[2:3], scheduler.add_noise(x[2:3], eps[2:3], 300))


@every
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_targets_and_predictions_are_inverse(name, prediction):
    config = {} if "Flow" in name else {"prediction_type": prediction}
    if name == "PNDMScheduler" and prediction == "sample":
        with pytest.raises(UnknownChoiceError, match="prediction_type"):
            build(name, **config)
        return
    scheduler = build(name, **config)
    x, eps = noise(4, 3).double(), noise(4, 3, seed=1).double()
    t = torch.tensor([1, 200, 600, 990])
    target = scheduler.training_target(x, eps, t)
    if "Flow" in name:
        assert torch.equal(target, eps - x)
    elif prediction == "v_prediction":
        assert torch.equal(target, scheduler.get_velocity(x, eps, t))
    found = scheduler.predict_x0(target, t, scheduler.add_noise(x, eps, t))
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)
