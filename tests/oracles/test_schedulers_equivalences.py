"""Two ways to the same step must agree to 1e-10 in float64; and the tables and timestep lists that the field knows."""

import math

import numpy as np
import pytest
import torch

import latentia
from latentia.schedulers.betas import make_betas, rescale_zero_terminal_snr, signal_level
from latentia.schedulers.ddim import ddim_coefficients
from latentia.schedulers.pndm import transfer
from latentia.schedulers.prediction import eps_coefficients, prediction_target, x0_coefficients
from latentia.schedulers.spacing import karras_sigmas, power_sigmas

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
F64 = torch.float64


# -- T7: equivalences, to 1e-10 in float64 ----------------------------------------------------------------------


def network(x, t):
    return 0.5 * x * math.cos(float(t) / 200) + 0.3 * torch.sin(2 * x)


TIMES = [950, 800, 610, 400, 222, 100, 30, 0]
TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def noises(seed=5):
    return torch.randn(len(TIMES), 1, 6, dtype=F64, generator=torch.Generator().manual_seed(seed))


def ddim_by_hand(eta: float, z: torch.Tensor) -> torch.Tensor:
    level = signal_level(make_betas("scaled_linear", 1000, 0.00085, 0.012)).numpy()[TIMES]
    signal, heading, noise = ddim_coefficients(level, np.append(level[1:], 1.0), eta)
    x = torch.linspace(-2, 2, 6, dtype=F64)[None]
    for i, t in enumerate(TIMES):
        eps = network(x, t)
        clean = (x - math.sqrt(1 - level[i]) * eps) / math.sqrt(level[i])
        x = signal[i] * clean + heading[i] * eps + noise[i] * z[i]
    return x


@pytest.mark.parametrize(("algorithm", "eta"), [("dpmsolver++", 0.0), ("sde-dpmsolver++", 1.0)])
def test_t7_first_order_dpm_solver_is_ddim(algorithm, eta):
    scheduler = latentia.DPMSolverMultistepScheduler(**SD, solver_order=1, algorithm_type=algorithm)
    scheduler.set_timesteps(timesteps=TIMES)
    x, z = torch.linspace(-2, 2, 6, dtype=F64)[None], noises()
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, t), t, x, variance_noise=z[i]).prev_sample
    torch.testing.assert_close(x, ddim_by_hand(eta, z), **TIGHT)


def test_t7_ddim_scheduler_is_its_formula():
    scheduler = latentia.DDIMScheduler(**SD, clip_sample=False)
    scheduler.set_timesteps(10)
    level = scheduler._level[scheduler.timesteps.numpy()]
    signal, heading, noise = ddim_coefficients(level, np.append(level[1:], 1.0), 0.6)
    x, z = torch.linspace(-2, 2, 6, dtype=F64)[None], torch.randn(10, 1, 6, dtype=F64)
    for i, t in enumerate(scheduler.timesteps):
        eps = network(x, t)
        clean = (x - math.sqrt(1 - level[i]) * eps) / math.sqrt(level[i])
        expected = signal[i] * clean + heading[i] * eps + noise[i] * z[i]
        x = scheduler.step(eps, t, x, eta=0.6, variance_noise=z[i]).prev_sample
        torch.testing.assert_close(x, expected, **TIGHT)


def test_t7_euler_is_ddim_after_dividing_by_alpha():
    scheduler = latentia.EulerDiscreteScheduler(**SD)
    scheduler.set_timesteps(timesteps=TIMES)
    alpha, _ = scheduler.alpha_sigma(torch.tensor(TIMES[0]), F64)
    x = torch.linspace(-2, 2, 6, dtype=F64)[None] / alpha
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    torch.testing.assert_close(x, ddim_by_hand(0.0, noises()), **TIGHT)


def test_t7_full_length_ddim_with_eta_one_is_ddpm():
    ddim = latentia.DDIMScheduler(**SD, clip_sample=False)
    ddpm = latentia.DDPMScheduler(**SD, clip_sample=False)
    ddim.set_timesteps(1000)
    ddpm.set_timesteps(1000)
    x, y = torch.randn(2, 1, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    for k in (0, 1, 500, 998, 999):
        a = ddim.step(y, ddim.timesteps[k], x, eta=1.0, generator=torch.Generator().manual_seed(k)).prev_sample
        b = ddpm.step(y, ddpm.timesteps[k], x, generator=torch.Generator().manual_seed(k)).prev_sample
        torch.testing.assert_close(a, b, **TIGHT)


def test_t7_pndm_transfer_is_ddim():
    level, after = np.array([0.01, 0.3, 0.9]), np.array([0.05, 0.6, 1.0])
    a, b = transfer(level, after)
    signal, heading, _ = ddim_coefficients(level, after, 0.0)
    np.testing.assert_allclose(a, signal / np.sqrt(level), rtol=1e-12)
    np.testing.assert_allclose(b, heading - signal * np.sqrt((1 - level) / level), rtol=1e-12)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"])
def test_t7_the_first_step_is_first_order(algorithm):
    x, y = torch.randn(2, 1, 6, dtype=F64, generator=torch.Generator().manual_seed(0))
    steps = []
    for order in (1, 2, 3):
        scheduler = latentia.DPMSolverMultistepScheduler(
            **SD, solver_order=order, algorithm_type=algorithm, final_sigmas_type="sigma_min"
        )
        scheduler.set_timesteps(20)
        generator = torch.Generator().manual_seed(0)
        steps.append(scheduler.step(y, scheduler.timesteps[0], x, generator=generator).prev_sample)
    assert torch.equal(steps[0], steps[1])
    assert torch.equal(steps[0], steps[2])


def test_t7_rectified_euler_is_ddim_with_alpha_one_minus_sigma():
    scheduler = latentia.FlowMatchEulerDiscreteScheduler(rho=1.0)
    scheduler.set_timesteps(8)
    levels = power_sigmas(8, 1.0).tolist() + [0.0]
    x = y = torch.linspace(-2, 2, 6, dtype=F64)[None]
    for i, t in enumerate(scheduler.timesteps):
        v = network(x, t)
        x = scheduler.step(v, t, x).prev_sample
        v = network(y, t)
        clean, eps = y - levels[i] * v, y + (1 - levels[i]) * v
        y = (1 - levels[i + 1]) * clean + levels[i + 1] * eps
    torch.testing.assert_close(x, y, **TIGHT)


# -- T16 – T19: predictions, tables, lists ----------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize(("alpha", "sigma"), [(0.6, 0.8), (1e-4, math.sqrt(1 - 1e-8)), (math.sqrt(1 - 1e-6), 1e-3)])
def test_t16_round_trips(prediction, alpha, sigma):
    x0, eps = torch.randn(2, 7, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = alpha * x0 + sigma * eps
    y = prediction_target(prediction, x0, eps, alpha, sigma)
    p, q = x0_coefficients(prediction, alpha, sigma)
    torch.testing.assert_close(p * x + q * y, x0, **TIGHT)
    p, q = eps_coefficients(prediction, alpha, sigma)
    torch.testing.assert_close(p * x + q * y, eps, **TIGHT)


@pytest.mark.parametrize(
    ("schedule", "start", "end", "at", "level"),
    [
        ("scaled_linear", 0.00085, 0.012, 0, 0.99915),
        ("scaled_linear", 0.00085, 0.012, 1, 0.998296),
        ("scaled_linear", 0.00085, 0.012, 100, 0.894223),
        ("scaled_linear", 0.00085, 0.012, 250, 0.673793),
        ("scaled_linear", 0.00085, 0.012, 500, 0.276333),
        ("scaled_linear", 0.00085, 0.012, 750, 0.0561698),
        ("scaled_linear", 0.00085, 0.012, 981, 0.0057755),
        ("scaled_linear", 0.00085, 0.012, 999, 0.0046601),
        ("linear", 1e-4, 0.02, 499, 0.0785872),
        ("linear", 1e-4, 0.02, 999, 4.03583e-5),
        ("scaled_linear", 0.0015, 0.0195, 999, 1.42304e-4),
        ("scaled_linear", 0.0015, 0.0155, 999, 6.68665e-4),
        ("scaled_linear", 0.0015, 0.0205, 999, 9.69109e-5),
        ("squaredcos_cap_v2", 0, 0, 499, 0.493843),
        ("squaredcos_cap_v2", 0, 0, 998, 2.4288e-6),
        ("squaredcos_cap_v2", 0, 0, 999, 2.4287e-9),
    ],
)
def test_t17_signal_levels(schedule, start, end, at, level):
    assert float(signal_level(make_betas(schedule, 1000, start, end))[at]) == pytest.approx(level, rel=1.5e-5)


def test_t17_zero_terminal_snr():
    betas = rescale_zero_terminal_snr(make_betas("scaled_linear", 1000, 0.00085, 0.012))
    level = signal_level(betas)
    assert float(level[-1]) == 0.0
    assert float(level[0]) == pytest.approx(0.99915, abs=1e-12)
    assert float(level[499]) == pytest.approx(0.242359, abs=1e-6)
    assert float(level[998]) == pytest.approx(1.96796e-7, rel=1e-4)
    assert float(betas[998]) == pytest.approx(0.75113, abs=1e-5)
    assert float(betas[999]) == 1.0


@pytest.mark.parametrize(
    ("name", "config", "steps", "first", "last"),
    [
        ("DDIMScheduler", {"steps_offset": 1}, 50, [981, 961], [21, 1]),
        ("DDIMScheduler", {"steps_offset": 1}, 30, [958], [1]),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, 50, [999, 979, 958], [20, 0]),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, 50, [999, 979], [19]),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, 30, [999, 966, 932], [32]),
        ("DPMSolverMultistepScheduler", {}, 20, [999, 949], [50]),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "steps_offset": 1}, 20, [941], [48]),
        ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, 50, [981, 961, 961, 941], [21, 1]),
        (
            "PNDMScheduler",
            {},
            50,
            [980, 970, 970, 960, 960, 950, 950, 940, 940, 930, 930, 920, 920, 900],
            [20, 0],
        ),
        (
            "DPMSolverMultistepScheduler",
            {"use_karras_sigmas": True},
            10,
            [999, 916, 815, 687, 523, 327, 146, 41, 7, 0],
            [0],
        ),
    ],
)
def test_t18_t19_timestep_lists(name, config, steps, first, last):
    scheduler = getattr(latentia, name)(**SD, **config)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    assert times[: len(first)] == first
    assert times[-len(last) :] == last
    extra = {"PNDMScheduler": 1 if config.get("skip_prk_steps") else 9}.get(name, 0)
    assert len(times) == steps + extra


def test_t18_noise_levels():
    kappa = karras_sigmas(0.0291672, 14.6146, 10)
    expected = [14.6146, 9.1029, 5.4784, 3.1686, 1.7494, 0.9141, 0.4469, 0.2014, 0.0819, 0.0292]
    np.testing.assert_allclose(kappa, expected, atol=6e-5)
    scheduler = latentia.DPMSolverMultistepScheduler(**SD, use_lu_lambdas=True)
    scheduler.set_timesteps(10)
    expected = [14.6146, 7.3249, 3.6712, 1.8400, 0.9222, 0.4622, 0.2317, 0.1161, 0.0582, 0.0292, 0]
    np.testing.assert_allclose(scheduler.sigmas.numpy(), expected, atol=6e-5)


def test_t18_flowmo_spacing():
    expected = [1.0, 0.8493, 0.7164, 0.5997, 0.4979, 0.4096, 0.3336, 0.2687, 0.2138, 0.1678, 0.1296, 0.0983]
    scheduler = latentia.FlowMatchEulerDiscreteScheduler(rho=4.0)
    scheduler.set_timesteps(25)
    np.testing.assert_allclose(scheduler.sigmas[:12].numpy(), expected, atol=6e-5)
    assert int((scheduler.sigmas[:-1] < 0.1).sum()) == 14
    assert int(((scheduler.sigmas >= 0.1453) & (scheduler.sigmas <= 0.5050)).sum()) == 6
