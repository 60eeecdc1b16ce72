"""Same numbers as Diffusers 0.42.1 wherever it is right, over a wide grid.

Diffusers keeps its tables in float32, where 1 − ᾱ loses digits at the clean end and ᾱ at the noisy end of a cosine or
exponential schedule. There our float64 tables agree with it to 5e-4 only, and `compat=True`, which takes the float32
tables, to 1e-5. Errors are relative to the largest magnitude on the way: a κ-space run starts at up to 20,000.
"""

import itertools
import math
import random
import warnings

import diffusers
import pytest
import torch

import latentia

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BETAS = [{}, SD, {"beta_schedule": "squaredcos_cap_v2"}]
ALL = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["leading", "linspace", "trailing"]
COUNTS = (2, 5, 20)  # these divide 1000, so that Diffusers' fixed stride is right

GRIDS = {
    "DDIMScheduler": {
        "betas": BETAS,
        "prediction_type": ALL,
        "timestep_spacing": ["leading", "trailing"],
        "clip_sample": [True, False],
        "set_alpha_to_one": [True, False],
        "steps_offset": [0, 1],
        "step": [{}, {"eta": 0.7}, {"eta": 1.0, "use_clipped_model_output": True}],
    },
    "DDPMScheduler": {
        "betas": [*BETAS, {"beta_schedule": "sigmoid"}, {"beta_schedule": "laplace"}],
        "prediction_type": ALL,
        "timestep_spacing": SPACINGS,
        "clip_sample": [True, False],
        "variance_type": ["fixed_small", "fixed_large", "fixed_small_log"],
        "steps_offset": [0, 1],
    },
    "PNDMScheduler": {
        "betas": BETAS,
        "prediction_type": ["epsilon", "v_prediction"],
        "set_alpha_to_one": [True, False],
        "steps_offset": [0, 1],
        "skip_prk_steps": [True, False],
    },
    "EulerDiscreteScheduler": {
        "betas": BETAS,
        "prediction_type": ALL,
        "timestep_spacing": SPACINGS,
        "interpolation_type": ["linear", "log_linear"],
        "respaced": [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}],
        "final_sigmas_type": ["zero", "sigma_min"],
        "sigma_max": [None, 12.0],
        "rescale_betas_zero_snr": [False, True],
        "step": [{}, {"s_churn": 3.0, "s_noise": 1.01}],
    },
    "EulerAncestralDiscreteScheduler": {
        "betas": BETAS[:2],
        "prediction_type": ["epsilon", "v_prediction"],
        "timestep_spacing": SPACINGS,
        "rescale_betas_zero_snr": [False, True],
        "steps_offset": [0, 1],
    },
    "HeunDiscreteScheduler": {
        "betas": [{}, SD, {"beta_schedule": "exp"}],
        "prediction_type": ALL,
        "timestep_spacing": SPACINGS,
        "respaced": [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}],
        "clip_sample": [False, True],
    },
    "DPMSolverMultistepScheduler": {
        "betas": BETAS,
        "prediction_type": ALL,
        "timestep_spacing": SPACINGS,
        "algorithm": [
            {"algorithm_type": "dpmsolver++"},
            {"algorithm_type": "dpmsolver++", "final_sigmas_type": "sigma_min"},
            {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
            {"algorithm_type": "sde-dpmsolver++"},
            {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
        ],
        "solver_order": [1, 2, 3],
        "solver_type": ["midpoint", "heun"],
        "lower_order_final": [True, False],
        "euler_at_final": [True, False],
        "lambda_min_clipped": [-math.inf, -5.1],
    },
    "FlowMatchEulerDiscreteScheduler": {
        "shift": [1.0, 3.0],
        "respaced": [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}],
        "invert_sigmas": [False, True],
        "shift_terminal": [None, 0.1],
        "stochastic_sampling": [False, True],
    },
}


def spread(grid: dict, most: int = 40) -> list[dict]:
    combinations = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    return random.Random(0).sample(combinations, min(most, len(combinations)))


def flat(case: dict) -> tuple[dict, dict]:
    """(constructor arguments, step arguments) of a grid point."""
    config: dict = {}
    for name, value in case.items():
        if name != "step":
            config |= value if isinstance(value, dict) else {name: value}
    return config, case.get("step", {})


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A fixed network, linear in x, that tells timesteps apart."""
    time = float(t)
    return 0.4 * math.cos(time / 300) * x + 0.1 * math.sin(time / 90) * torch.linspace(-1, 1, x[0].numel()).view(
        x[0].shape
    )


def draws(scheduler: object) -> bool:
    return any(word in type(scheduler).__name__ for word in ("DDIM", "DDPM", "Euler", "DPMSolver"))


def trajectory(scheduler, x: torch.Tensor, set_timesteps: dict, **step) -> tuple[torch.Tensor, float]:
    """(the final sample, the largest magnitude on the way)."""
    flow = "Flow" in type(scheduler).__name__
    scheduler.set_timesteps(**set_timesteps)
    if draws(scheduler):
        step["generator"] = torch.Generator().manual_seed(1)
    x = x if flow else x * float(scheduler.init_noise_sigma)
    peak = x.abs().max().item()
    for t in scheduler.timesteps:
        scaled = x if flow else scheduler.scale_model_input(x, t)
        x = scheduler.step(network(scaled, t), t, x, **step).prev_sample
        peak = max(peak, x.abs().max().item())
    return x, peak


def coarse(config: dict) -> bool:
    """Whether Diffusers' float32 table is too coarse for five digits."""
    return config.get("beta_schedule") in ("squaredcos_cap_v2", "exp")


def assert_same(
    name: str, config: dict, step: dict, set_timesteps: dict, ours: dict | None = None, tolerance: float = 1e-5
) -> None:
    noise = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = getattr(diffusers, name)(**config)
        expected, peak = trajectory(peer, noise, set_timesteps, **step)
    mine = getattr(latentia, name)(**config, **(ours or {}))
    found, _ = trajectory(mine, noise, set_timesteps, **step)
    assert mine.timesteps.dtype == peer.timesteps.dtype
    if mine.timesteps.is_floating_point():  # Diffusers interpolates them in a float32 table
        torch.testing.assert_close(mine.timesteps, peer.timesteps, rtol=1e-5, atol=0.2 if tolerance > 1e-5 else 6e-3)
    else:
        assert mine.timesteps.tolist() == peer.timesteps.tolist()
    assert found.isfinite().all()
    error = (found - expected).abs().max().item()
    assert error <= tolerance * max(1.0, peak), f"{error:.2e} at a peak of {peak:.3g}"


def cases() -> list:
    return [
        pytest.param(name, case, id=f"{name[:8]}-{i}")
        for name, grid in GRIDS.items()
        for i, case in enumerate(spread(grid))
    ]


@pytest.mark.parametrize(("name", "case"), cases())
def test_same_trajectory_as_diffusers(name, case):
    config, step = flat(case)
    third_sde = config.get("algorithm_type", "").startswith("sde") and config["solver_order"] == 3
    if third_sde and config["algorithm_type"] == "sde-dpmsolver":
        pytest.skip("Diffusers has no third order for sde-dpmsolver")
    counts = COUNTS[1:] if name in ("PNDMScheduler", "HeunDiscreteScheduler") else COUNTS
    for count in counts:
        set_timesteps = {"num_inference_steps": count}
        if "Flow" not in name and (third_sde or coarse(config)):
            assert_same(name, config, step, set_timesteps, {"compat": True})
        if not third_sde:
            assert_same(name, config, step, set_timesteps, tolerance=5e-4 if coarse(config) else 1e-5)


GIVEN = [
    ("DDPMScheduler", {}, {"timesteps": [900, 500, 77, 3]}),
    ("EulerDiscreteScheduler", SD, {"timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]}),
    ("EulerDiscreteScheduler", SD, {"sigmas": [14.615, 6.475, 3.861, 2.697, 0.7, 0.152, 0.0]}),
    ("HeunDiscreteScheduler", SD, {"timesteps": [999, 500, 100]}),
    ("DPMSolverMultistepScheduler", SD, {"timesteps": [999, 850, 736, 645, 24]}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}, {"sigmas": [1.0, 0.6, 0.3, 0.1]}),
    ("FlowMatchEulerDiscreteScheduler", {}, {"timesteps": [999.0, 400.0], "sigmas": [0.9, 0.5]}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {"num_inference_steps": 7, "mu": 0.8}),
    (
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"num_inference_steps": 7, "mu": 0.8},
    ),
    (
        "DPMSolverMultistepScheduler",
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        {"num_inference_steps": 11},
    ),
    ("DPMSolverMultistepScheduler", {**SD, "use_karras_sigmas": True}, {"num_inference_steps": 10}),
    ("DPMSolverMultistepScheduler", {**SD, "use_lu_lambdas": True}, {"num_inference_steps": 10}),
    ("DPMSolverMultistepScheduler", {**SD, "thresholding": True, "sample_max_value": 2.0}, {"num_inference_steps": 9}),
    ("DDIMScheduler", {"thresholding": True, "sample_max_value": 2.0}, {"num_inference_steps": 10}),
    ("DDIMScheduler", {"thresholding": True, "prediction_type": "v_prediction"}, {"num_inference_steps": 10}),
    (
        "EulerDiscreteScheduler",
        {**SD, "prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True},
        {"num_inference_steps": 10},
    ),
    (
        "DDIMScheduler",
        {
            **SD,
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
            "timestep_spacing": "trailing",
            "clip_sample": True,
        },
        {"num_inference_steps": 10},
    ),
    (
        "DPMSolverMultistepScheduler",
        {**SD, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"num_inference_steps": 10},
    ),
]


@pytest.mark.parametrize(("name", "config", "set_timesteps"), GIVEN)
def test_given_lists_and_special_schedules(name, config, set_timesteps):
    assert_same(name, config, {}, set_timesteps)


@pytest.mark.parametrize("respaced", ["use_exponential_sigmas", "use_beta_sigmas"])
def test_truncated_timesteps_of_respaced_sigmas(respaced):
    """Diffusers truncates these timesteps after float32 noise, so that κ_max may become 998; here it is 999."""
    ours = latentia.DPMSolverMultistepScheduler(**SD, **{respaced: True})
    theirs = diffusers.DPMSolverMultistepScheduler(**SD, **{respaced: True})
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=2e-4, atol=1e-5)
    assert ours.timesteps[0] == 999
    assert (ours.timesteps - theirs.timesteps).abs().max() <= 1


@pytest.mark.parametrize("name", list(GRIDS))
def test_same_defaults_and_argument_names(name):
    ours, theirs = getattr(latentia, name)(), getattr(diffusers, name)()
    extra = type(ours).extensions
    assert {k: v for k, v in ours.config.items() if k not in extra} == {
        k: v for k, v in theirs.config.items() if not k.startswith("_")
    }
    assert ours.order == theirs.order
    assert list(type(ours).config_arguments())[: -len(extra)] == [k for k in theirs.config if not k.startswith("_")]


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "FlowMatchEulerDiscreteScheduler"])
@pytest.mark.parametrize("betas", BETAS)
def test_same_tables_noise_and_initial_sigma(name, betas):
    ours, theirs = getattr(latentia, name)(**betas), getattr(diffusers, name)(**betas)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-4)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma), rel=1e-4)
    x, noise = torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    t = theirs.timesteps[[1, 5, 9]]
    expected = theirs.add_noise(x, noise, t)
    scale = max(1.0, expected.abs().max().item())
    assert (ours.add_noise(x, noise, t) - expected).abs().max().item() <= 1e-5 * scale


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_same_velocity(name):
    x, noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 400, 999])
    expected = getattr(diffusers, name)().get_velocity(x, noise, t)
    torch.testing.assert_close(getattr(latentia, name)().get_velocity(x, noise, t), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_learned_variances(variance_type):
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    both = torch.rand(2, 6, 4, 4, generator=torch.Generator().manual_seed(2))
    samples = []
    for library in (latentia, diffusers):
        scheduler = library.DDPMScheduler(variance_type=variance_type, clip_sample=False)
        scheduler.set_timesteps(10)
        generator = torch.Generator().manual_seed(1)
        samples.append(scheduler.step(both, scheduler.timesteps[4], x, generator=generator).prev_sample)
    torch.testing.assert_close(*samples, rtol=1e-5, atol=1e-5)


def test_per_token_timesteps():
    x, v = torch.randn(2, 2, 5, 3, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([[1000.0, 800.0, 400.0, 400.0, 100.0]] * 2)
    samples = []
    for library in (latentia, diffusers):
        scheduler = library.FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(6)
        step = scheduler.step(v, scheduler.timesteps[2], x, per_token_timesteps=times)
        samples.append(step.prev_sample)
    torch.testing.assert_close(*samples, rtol=1e-5, atol=1e-5)
