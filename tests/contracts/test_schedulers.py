"""What every registered scheduler class must do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import latentia
from latentia.errors import ArtifactError, ConfigError, InputError, UnknownChoiceError
from latentia.schedulers.scheduler import DIFFUSION_FAMILY, SchedulerMixin

PUBLIC = [name for name, home in latentia._HOME.items() if home.startswith("schedulers.") and name != "SchedulerMixin"]
NAMES = sorted(name for name in PUBLIC if issubclass(getattr(latentia, name), SchedulerMixin))
DIFFUSION = [name for name in NAMES if name in DIFFUSION_FAMILY]
SIGMA = [name for name in NAMES if "Euler" in name or "Heun" in name]
SPACINGS = ["leading", "linspace", "trailing"]
RUNS = (1, 2, 3, 4, 5, 7, 14, 15, 16, 33, 61, 100)

every = pytest.mark.parametrize("name", NAMES)
every_diffusion = pytest.mark.parametrize("name", DIFFUSION)


def build(name: str, **config) -> SchedulerMixin:
    return getattr(latentia, name)(**config)


def run(scheduler, x: torch.Tensor, generator=None) -> torch.Tensor:
    for t in scheduler.timesteps:
        y = 0.3 * scheduler.scale_model_input(x, t) + 0.1
        x = scheduler.step(y, t, x, generator=generator).prev_sample
    return x


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- configs ----------------------------------------------------------------------------------------------------


@every
def test_config_round_trip_through_a_folder(name, tmp_path):
    scheduler = build(name, num_train_timesteps=500)
    path = scheduler.save_pretrained(tmp_path / "scheduler")
    assert path.name == "scheduler_config.json"
    for again in (
        type(scheduler).from_pretrained(tmp_path / "scheduler"),
        type(scheduler).from_pretrained(tmp_path, subfolder="scheduler"),
    ):
        assert again.config == scheduler.config
        assert len(again) == 500
    changed = type(scheduler).from_pretrained(tmp_path / "scheduler", num_train_timesteps=700)
    assert len(changed) == 700
    with pytest.raises(ArtifactError):
        type(scheduler).from_pretrained(tmp_path)


@every_diffusion
@pytest.mark.parametrize("other", DIFFUSION)
def test_from_config_between_compatibles_loses_nothing(name, other):
    first = build(name, beta_start=0.001, beta_end=0.015, prediction_type="v_prediction", steps_offset=1)
    second = getattr(latentia, other).from_config(first.config)
    third = type(first).from_config(second.config)
    assert {k: third.config[k] for k in first.config} == dict(first.config)
    assert second.config.beta_start == 0.001
    assert second.config.prediction_type == "v_prediction"
    assert {type(second), type(first)} <= set(first.compatibles)


@every
def test_unknown_argument_names_the_nearest(name):
    with pytest.raises(ConfigError, match="did you mean 'num_train_timesteps'"):
        build(name, num_train_timestep=10)


@every_diffusion
@pytest.mark.parametrize(
    ("argument", "wrong", "right"),
    [
        ("beta_schedule", "linaer", "linear"),
        ("prediction_type", "epsilom", "epsilon"),
        ("timestep_spacing", "trailling", "trailing"),
    ],
)
def test_unknown_choice_is_refused_at_construction(name, argument, wrong, right):
    with pytest.raises(UnknownChoiceError, match=f"did you mean '{right}'"):
        build(name, **{argument: wrong})


@pytest.mark.parametrize(
    ("name", "argument", "wrong", "right"),
    [
        ("DPMSolverMultistepScheduler", "algorithm_type", "dpmsolver2", "dpmsolver"),
        ("DPMSolverMultistepScheduler", "solver_type", "huen", "heun"),
        ("DPMSolverMultistepScheduler", "final_sigmas_type", "zeros", "zero"),
        ("DPMSolverMultistepScheduler", "variance_type", "learn", "learned"),
        ("DPMSolverMultistepScheduler", "third_order", "correct", "corrected"),
        ("EulerDiscreteScheduler", "final_sigmas_type", "sigma_mni", "sigma_min"),
        ("EulerDiscreteScheduler", "interpolation_type", "log-linear", "log_linear"),
        ("EulerDiscreteScheduler", "timestep_type", "continous", "continuous"),
        ("DDPMScheduler", "variance_type", "fixed_smal", "fixed_small"),
        ("FlowMatchEulerDiscreteScheduler", "time_shift_type", "exponental", "exponential"),
    ],
)
def test_unknown_choice_of_one_class(name, argument, wrong, right):
    with pytest.raises(UnknownChoiceError, match=f"did you mean '{right}'"):
        build(name, **{argument: wrong})


# -- step counts ------------------------------------------------------------------------------------------------


def expected_length(name: str, config: dict, count: int) -> int:
    if name == "HeunDiscreteScheduler":
        return 2 * count - 1
    if name == "PNDMScheduler":
        extra = min(1, count - 1) if config.get("skip_prk_steps") else 3 * min(3, count - 1)
        return count + extra
    return count


def variants() -> list:
    out = [pytest.param("FlowMatchEulerDiscreteScheduler", {}, id="flow")]
    for name in DIFFUSION:
        for spacing in SPACINGS:
            config = {"timestep_spacing": spacing, "steps_offset": 1}
            out.append(pytest.param(name, config, id=f"{name[:8]}-{spacing}"))
    out.append(pytest.param("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, id="PNDM-skip"))
    for argument in ("use_karras_sigmas", "use_lu_lambdas"):
        out.append(pytest.param("DPMSolverMultistepScheduler", {argument: True}, id=f"DPM-{argument}"))
    cosine = {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"}
    out.append(pytest.param("DPMSolverMultistepScheduler", cosine, id="DPM-cosine-karras"))
    return out


@pytest.mark.parametrize(("name", "config"), variants())
def test_every_count_gives_exactly_that_many_valid_timesteps(name, config):
    scheduler = build(name, **config)
    scheduler._start_run = lambda key, make, device: setattr(scheduler, "made", make())  # the lists alone
    scheduler.timesteps = torch.zeros(1)
    scheduler.sigmas = torch.zeros(1)
    respaced = any(key.startswith("use_") for key in config)
    for count in range(1, 1001, 3 if name == "HeunDiscreteScheduler" else 1):  # Heun's lists are Euler's, doubled
        scheduler.set_timesteps(count)
        times = scheduler.made[0]
        assert len(times) == expected_length(name, config, count), count
        assert times.min() >= 0, count
        assert times.max() <= (1000 if "Flow" in name else 999), count
        assert (times[1:] <= times[:-1]).all() or name == "PNDMScheduler", count
        if not respaced and name not in ("PNDMScheduler", "HeunDiscreteScheduler"):
            assert (times[1:] < times[:-1]).all(), count


@pytest.mark.parametrize(("name", "config"), variants())
def test_runs_are_finite(name, config):
    scheduler = build(name, **config)
    for count in RUNS:
        scheduler.set_timesteps(count)
        x = run(scheduler, noise(1, 2, 2) * scheduler.init_noise_sigma, torch.Generator().manual_seed(0))
        assert x.isfinite().all(), count
        assert scheduler.num_inference_steps == count if name != "PNDMScheduler" else True
        assert scheduler.step_index == len(scheduler.timesteps)


@every
@pytest.mark.parametrize("count", [0, -1, 2.5, 1001, True, "10"])
def test_bad_step_counts(name, count):
    scheduler = build(name)
    with pytest.raises(InputError, match="whole number from 1 to 1000"):
        scheduler.set_timesteps(count)


@given(
    name=st.sampled_from(DIFFUSION),
    total=st.integers(2, 60),
    share=st.floats(0, 1),
    spacing=st.sampled_from(SPACINGS),
    offset=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_short_training_schedules(name, total, share, spacing, offset):
    scheduler = build(name, num_train_timesteps=total, timestep_spacing=spacing, steps_offset=offset, beta_end=0.3)
    count = 1 + round(share * (total - 1))
    scheduler.set_timesteps(count)
    assert len(scheduler.timesteps) == expected_length(name, {}, count)
    assert 0 <= scheduler.timesteps.min() <= scheduler.timesteps.max() <= total - 1
    x = run(scheduler, noise(1, 3) * scheduler.init_noise_sigma, torch.Generator().manual_seed(0))
    assert x.isfinite().all()


# -- steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != "DDPMScheduler"])
def test_step_before_set_timesteps(name):
    scheduler = build(name)
    with pytest.raises(InputError, match=r"call .*set_timesteps"):
        scheduler.step(noise(1, 2), scheduler.timesteps[0], noise(1, 2))
    if name in SIGMA and name in DIFFUSION:
        with pytest.raises(InputError, match="set_timesteps"):
            scheduler.scale_model_input(noise(1, 2), scheduler.timesteps[0])


def test_ddpm_runs_through_all_timesteps_without_set_timesteps():
    plain, chosen = build("DDPMScheduler"), build("DDPMScheduler")
    chosen.set_timesteps(1000)
    x, y = noise(1, 4), noise(1, 4, seed=1)
    a = plain.step(y, 500, x, torch.Generator().manual_seed(0)).prev_sample
    b = chosen.step(y, chosen.timesteps[499], x, torch.Generator().manual_seed(0)).prev_sample
    assert torch.equal(a, b)
    assert plain.previous_timestep(500) == 499
    assert plain.previous_timestep(0) == -1


@pytest.mark.parametrize("name", SIGMA)
def test_an_index_is_not_a_timestep(name):
    scheduler = build(name)
    scheduler.set_timesteps(10)
    for index in (0, torch.tensor(0)):
        with pytest.raises(InputError, match="not its index"):
            scheduler.step(noise(1, 2), index, noise(1, 2))


@every
def test_a_timestep_outside_the_schedule(name):
    scheduler = build(name)
    scheduler.set_timesteps(7)
    with pytest.raises(InputError, match="not in this schedule of"):
        scheduler.step(noise(1, 2), 123.25, noise(1, 2))
    with pytest.raises(InputError, match="one timestep for the whole batch"):
        scheduler.step(noise(1, 2), scheduler.timesteps[:2], noise(1, 2))


@every
def test_shapes_must_agree(name):
    scheduler = build(name)
    scheduler.set_timesteps(7)
    with pytest.raises(InputError, match="shape"):
        scheduler.step(noise(1, 2), scheduler.timesteps[0], noise(1, 3))
    with pytest.raises(InputError, match="one shape"):
        scheduler.add_noise(noise(1, 2), noise(1, 3), scheduler.timesteps[:1])
    with pytest.raises(InputError, match="timesteps for a batch of 3"):
        scheduler.add_noise(noise(3, 2), noise(3, 2), scheduler.timesteps[:2])


@every
@pytest.mark.parametrize("bad", [-1, 1001])
def test_training_timesteps_have_a_range(name, bad):
    with pytest.raises(InputError, match="timesteps must lie in 0"):
        build(name).add_noise(noise(1, 2), noise(1, 2), torch.tensor([bad]))


@every
def test_results_and_outputs(name):
    scheduler = build(name)
    scheduler.set_timesteps(7)
    x, y = noise(2, 3, 4), noise(2, 3, 4, seed=1)
    t = scheduler.timesteps[0]
    generator = torch.Generator().manual_seed(0)
    out = scheduler.step(y, t, x, generator=generator)
    assert out["prev_sample"] is out[0] is out.prev_sample
    assert out.pred_original_sample.shape == x.shape
    plain = scheduler.fresh()
    plain.set_timesteps(7)
    values = plain.step(y, plain.timesteps[0], x, generator=torch.Generator().manual_seed(0), return_dict=False)
    assert torch.equal(values[0], out.prev_sample)
    if not scheduler.config.get("clip_sample"):
        torch.testing.assert_close(out.pred_original_sample, scheduler.predict_x0(y, t, x), rtol=2e-4, atol=2e-4)


@every
def test_inputs_are_not_changed(name):
    scheduler = build(name)
    scheduler.set_timesteps(7)
    x = noise(2, 3) * scheduler.init_noise_sigma
    y = noise(2, 3, seed=1)
    for t in scheduler.timesteps:
        before = x.clone(), y.clone()
        scaled = scheduler.scale_model_input(x, t)
        out = scheduler.step(y, t, x, generator=torch.Generator().manual_seed(0))
        _ = out.pred_original_sample
        assert torch.equal(x, before[0])
        assert torch.equal(y, before[1])
        assert out.prev_sample.data_ptr() not in (x.data_ptr(), y.data_ptr(), scaled.data_ptr())
        x = out.prev_sample


@every
def test_a_list_of_generators_makes_batches_invariant(name):
    extra = {"stochastic_sampling": True} if "Flow" in name else {}
    extra = {"algorithm_type": "sde-dpmsolver++"} if "DPMSolver" in name else extra
    options = {"eta": 1.0} if name == "DDIMScheduler" else {}
    options = {"s_churn": 5.0} if name == "EulerDiscreteScheduler" else options
    assert set(options) <= type(build(name)).step_options
    scheduler = build(name, **extra)

    def sample(rows: list[int]) -> torch.Tensor:
        scheduler.set_timesteps(6)
        generators = [torch.Generator().manual_seed(i) for i in rows]
        x = torch.stack([noise(3, 2, seed=i) for i in rows]) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            y = 0.3 * scheduler.scale_model_input(x, t)
            x = scheduler.step(y, t, x, generator=generators, **options).prev_sample
        return x

    together = sample([0, 1, 2])
    for i in range(3):
        assert torch.equal(together[i : i + 1], sample([i]))
    scheduler.set_timesteps(6)
    if name not in ("PNDMScheduler", "HeunDiscreteScheduler"):
        y = noise(3, 2)
        with pytest.raises(InputError, match="one generator per sample"):
            scheduler.step(y, scheduler.timesteps[0], y, generator=[torch.Generator()], **options)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(name, dtype):
    scheduler = build(name)
    scheduler.set_timesteps(6)
    x = noise(2, 3, seed=3)
    reference = scheduler.step(
        noise(2, 3, seed=1).to(dtype).double(),
        scheduler.timesteps[0],
        x.to(dtype).double(),
        generator=torch.Generator().manual_seed(0),
    )
    again = scheduler.fresh()
    again.set_timesteps(6)
    out = again.step(noise(2, 3, seed=1).to(dtype), again.timesteps[0], x.to(dtype), generator=None)
    assert out.prev_sample.dtype == dtype
    assert out.pred_original_sample.dtype == dtype
    assert again.add_noise(x.to(dtype), x.to(dtype), again.timesteps[:1]).dtype == dtype
    if "Ancestral" not in name and "DDPM" not in name:
        scale = reference.prev_sample.abs().max().item()
        error = (out.prev_sample.double() - reference.prev_sample).abs().max().item()
        assert error <= 2 * torch.finfo(dtype).eps * scale + 1e-7 * scale


@every
def test_gradients_flow_through_a_step(name):
    scheduler = build(name)
    scheduler.set_timesteps(5)
    y = (0.1 * noise(1, 3)).requires_grad_()
    x = noise(1, 3, seed=1)
    out = scheduler.step(y, scheduler.timesteps[0], x, generator=torch.Generator().manual_seed(0))
    out.prev_sample.sum().backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()
