"""Closed forms that a sampler must meet, whoever wrote it: Gaussians solved exactly, orders of convergence measured.

With x₀ ~ N(μ, s²) the perfect prediction at x = α x₀ + σ ε is ε* = σ (x − αμ)/(α²s² + σ²), and the probability-flow
ODE maps x_T to αμ + √((α²s² + σ²)/(α_T²s² + σ_T²)) (x_T − α_T μ). All in float64.
"""

import math

import numpy as np
import pytest
import torch

import latentia
from latentia.schedulers.betas import make_betas, signal_level
from latentia.schedulers.ddim import ddim_coefficients
from latentia.schedulers.dpm_solver import make_path, multistep_weights
from latentia.schedulers.pndm import ADAMS_BASHFORTH, transfer
from latentia.schedulers.prediction import prediction_target

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
F64 = torch.float64


def gaussian_eps(x, alpha, sigma, mu=0.0, s=1.0):
    return sigma * (x - alpha * mu) / (alpha**2 * s**2 + sigma**2)


def gaussian_flow(x, start, end, mu, s):
    """The exact solution of the probability-flow ODE from (α, σ) `start` to `end`."""
    (a0, s0), (a1, s1) = start, end
    return a1 * mu + math.sqrt((a1**2 * s**2 + s1**2) / (a0**2 * s**2 + s0**2)) * (x - a0 * mu)


def sample(scheduler, x, mu, s, steps=None, **step):
    """Run a scheduler in float64 with the perfect network of N(μ, s²)."""
    if steps is not None:
        scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        alpha, sigma = scheduler.alpha_sigma(t, F64)
        eps = gaussian_eps(seen, alpha, sigma, mu, s)
        clean = (seen - sigma * eps) / alpha if float(alpha) > 0 else torch.full_like(seen, mu)
        y = prediction_target(scheduler.prediction_type, clean, eps, alpha, sigma)
        x = scheduler.step(y, t, x, **step).prev_sample
    return x


# -- T1, T9: where an exact solver ends -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {"clip_sample": False}),
        ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}),
        ("PNDMScheduler", {"set_alpha_to_one": True}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        ("EulerDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
    ],
)
def test_t1_final_mean_and_std(name, config):
    scheduler = getattr(latentia, name)(**SD, **config)
    mu, s = 0.8, 0.5
    scheduler.set_timesteps(500)
    alpha, sigma = (float(v) for v in scheduler.alpha_sigma(scheduler.timesteps[0], F64))
    unit = 1.0 if scheduler.init_noise_sigma == 1.0 else 1 / alpha  # κ-space samples are x/α
    found, exact = [], []
    for z in (-1.0, 1.0):
        found.append(float(sample(scheduler, torch.full((1, 1), z * unit, dtype=F64), mu, s, 500)))
        exact.append(gaussian_flow(z, (alpha, sigma), (1.0, 0.0), mu, s))
    assert sum(found) / 2 == pytest.approx(sum(exact) / 2, abs=6e-3)
    assert (found[1] - found[0]) / 2 == pytest.approx((exact[1] - exact[0]) / 2, abs=6e-3)


@pytest.mark.parametrize(("s", "bias"), [(0.25, -0.01710), (0.5, -0.03419), (1.0, -0.06826)])
def test_t9_nonzero_terminal_snr_bias(s, bias):
    level = float(signal_level(make_betas("scaled_linear", 1000, 0.00085, 0.012))[-1])
    assert -s * math.sqrt(level / (level * s**2 + 1 - level)) == pytest.approx(bias, abs=1e-5)
    scheduler = latentia.DPMSolverMultistepScheduler(**SD, timestep_spacing="trailing")
    assert float(sample(scheduler, torch.zeros(1, 1, dtype=F64), 1.0, s, 1000)) - 1 == pytest.approx(bias, abs=3e-4)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_t9_zero_terminal_snr_has_no_bias(prediction):
    scheduler = latentia.DDIMScheduler(
        **SD, rescale_betas_zero_snr=True, prediction_type=prediction, timestep_spacing="trailing", clip_sample=False
    )
    scheduler.set_timesteps(1000)
    assert float(sample(scheduler, torch.zeros(1, 1, dtype=F64), 1.0, 0.5)) == pytest.approx(1.0, abs=1e-9)


# -- T2, T3: DDIM -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "factor"),
    [(5, 0.778093), (10, 0.883485), (20, 0.940119), (50, 0.975624), (100, 0.987738), (1000, 0.998767)],
)
def test_t2_uniform_angles_shrink_a_unit_gaussian(steps, factor):
    theta = np.linspace(math.pi / 2, 0, steps + 1)
    level = np.cos(theta) ** 2
    signal, heading, _ = ddim_coefficients(level[:-1], level[1:], 0.0)
    growth = np.prod(signal * np.cos(theta[:-1]) + heading * np.sin(theta[:-1]))
    assert growth == pytest.approx(math.cos(math.pi / 2 / steps) ** steps, rel=1e-12)
    assert growth == pytest.approx(factor, abs=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {"clip_sample": False}),
        ("DDPMScheduler", {"clip_sample": False}),
        ("DPMSolverMultistepScheduler", {"solver_order": 1}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("EulerDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {}),
    ],
)
def test_t3_a_single_point_is_found_in_any_number_of_steps(name, config, steps):
    scheduler = getattr(latentia, name)(**config)
    mu, x = 0.7, torch.tensor([[1.3]], dtype=F64)
    scheduler.set_timesteps(steps)
    x = x * scheduler.init_noise_sigma
    if "Flow" not in name:
        assert float(sample(scheduler, x, mu, 0.0)) == pytest.approx(mu, abs=1e-9)
        return
    for t in scheduler.timesteps:
        x = scheduler.step((x - mu) / scheduler.alpha_sigma(t, F64)[1], t, x).prev_sample
    assert float(x) == pytest.approx(mu, abs=1e-6)  # its timesteps are float32


# -- T4: orders of convergence on a uniform-λ grid of the continuous linear VP path -----------------------------


def vp_levels(steps: int) -> np.ndarray:
    """κ uniform in log κ between t = 1 and t = 1e-3 of β(t) = 0.1 + 19.9 t."""

    def log_kappa(t: float) -> float:
        log_level = -(0.1 * t + 19.9 * t**2 / 2)
        return 0.5 * (math.log(-math.expm1(log_level)) - log_level)

    return np.exp(np.linspace(log_kappa(1.0), log_kappa(1e-3), steps + 1))


def mixture_x0(x, alpha, sigma):
    """E[x₀ | x] for ½N(−1, ¼²) + ½N(1, ¼²)."""
    var = alpha**2 / 16 + sigma**2
    weight = np.tanh(alpha * x / var)
    return weight + alpha / 16 * (x - alpha * weight) / var


def gauss_x0(x, alpha, sigma):
    return 0.5 + alpha * 0.09 * (x - alpha * 0.5) / (alpha**2 * 0.09 + sigma**2)


def solve(model, kappa: np.ndarray, algorithm: str, solver: str, order: int, third: str) -> np.ndarray:
    path = make_path(kappa, flow=False)
    weights = [np.array(multistep_weights(algorithm, solver, k, path, third)) for k in range(1, order + 1)]
    x, history = np.linspace(-2, 2, 9), []
    for i in range(len(kappa) - 1):
        alpha, sigma = path.alpha[i], path.sigma[i]
        clean = model(x, alpha, sigma)
        history = [clean if algorithm.endswith("++") else (x - alpha * clean) / sigma, *history[:2]]
        c_x, *w, _ = weights[min(i + 1, order) - 1][:, i]
        x = c_x * x + sum(wk * m for wk, m in zip(w[: min(i + 1, order)], history))
    return x


def reference(model, steps: int = 1500) -> np.ndarray:
    """RK4 in λ for x/σ: d(x/σ)/dλ = (α/σ) x̂₀."""
    lam = np.linspace(*(-np.log(vp_levels(1))), steps + 1)
    h = lam[1] - lam[0]

    def slope(level, u):
        kappa = np.exp(-level)
        alpha = 1 / np.sqrt(1 + kappa**2)
        return model(u * kappa * alpha, alpha, kappa * alpha) / kappa

    x = np.linspace(-2, 2, 9)
    u = x / (np.exp(-lam[0]) / np.sqrt(1 + np.exp(-2 * lam[0])))
    for level in lam[:-1]:
        k1 = slope(level, u)
        k2 = slope(level + h / 2, u + h / 2 * k1)
        k3 = slope(level + h / 2, u + h / 2 * k2)
        k4 = slope(level + h, u + h * k3)
        u = u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return u * np.exp(-lam[-1]) / np.sqrt(1 + np.exp(-2 * lam[-1]))


def measured_order(errors: list[float]) -> float:
    return math.log2(errors[-2] / errors[-1])


@pytest.mark.parametrize("model", [gauss_x0, mixture_x0])
@pytest.mark.parametrize(
    ("algorithm", "solver", "order", "third", "low", "high"),
    [
        ("dpmsolver++", "midpoint", 1, "published", 0.9, 1.15),
        ("dpmsolver", "midpoint", 1, "published", 0.9, 1.15),
        ("dpmsolver++", "midpoint", 2, "published", 1.9, 2.15),
        ("dpmsolver++", "heun", 2, "published", 1.9, 2.15),
        ("dpmsolver", "midpoint", 2, "published", 1.85, 2.2),
        ("dpmsolver", "heun", 2, "published", 1.85, 2.2),
        ("dpmsolver++", "midpoint", 3, "published", 1.85, 2.2),
        ("dpmsolver++", "midpoint", 3, "corrected", 2.8, 4.2),
        ("dpmsolver", "midpoint", 3, "corrected", 2.7, 4.2),
    ],
)
def test_t4_orders(model, algorithm, solver, order, third, low, high):
    exact = reference(model)
    errors = [
        float(np.sqrt(np.mean((solve(model, vp_levels(n), algorithm, solver, order, third) - exact) ** 2)))
        for n in (160, 320, 640)
    ]
    assert low < measured_order(errors) < high, errors


def test_t4_the_correction_pays():
    exact = reference(mixture_x0)
    published, corrected = (
        float(np.abs(solve(mixture_x0, vp_levels(320), "dpmsolver++", "midpoint", 3, third) - exact).max())
        for third in ("published", "corrected")
    )
    assert corrected < 0.1 * published


def test_t4_linear_multistep_order():
    """PLMS: second order, although its weights are Adams-Bashforth's of order four."""
    exact = reference(gauss_x0)
    errors = []
    for n in (160, 320, 640):
        kappa = vp_levels(n)
        level = 1 / (1 + kappa**2)
        a, b = transfer(level[:-1], level[1:])
        x, history = np.linspace(-2, 2, 9), []
        for i in range(n):
            alpha, sigma = math.sqrt(level[i]), math.sqrt(1 - level[i])
            history = [(x - alpha * gauss_x0(x, alpha, sigma)) / sigma, *history[:3]]
            x = a[i] * x + b[i] * sum(w * e for w, e in zip(ADAMS_BASHFORTH[len(history) - 1], history))
        errors.append(float(np.sqrt(np.mean((x - exact) ** 2))))
    assert 1.8 < measured_order(errors) < 2.3


def test_t4_pndm_keeps_its_order_with_v_only_when_epsilon_is_averaged():
    """Averaging v and then turning the mean into ε, as Diffusers does, is only first order."""
    mu, s = 0.5, 0.5
    errors = {}
    for average_epsilon in (False, True):
        scheduler = latentia.PNDMScheduler(
            **SD,
            skip_prk_steps=True,
            set_alpha_to_one=True,
            prediction_type="v_prediction",
            average_epsilon=average_epsilon,
        )
        for n in (25, 50):
            scheduler.set_timesteps(n)
            start = [float(v) for v in scheduler.alpha_sigma(scheduler.timesteps[0], F64)]
            found = float(sample(scheduler, torch.ones(1, 1, dtype=F64), mu, s))
            errors[average_epsilon, n] = abs(found - gaussian_flow(1.0, start, (1.0, 0.0), mu, s))
    assert errors[False, 25] / errors[False, 50] == pytest.approx(2, abs=0.4)
    assert errors[True, 25] / errors[True, 50] > 3
    assert errors[True, 50] < 0.05 * errors[False, 50]


@pytest.mark.parametrize(("name", "low", "high"), [("Euler", 0.9, 1.1), ("Heun", 1.9, 2.1)])
def test_t4_orders_in_kappa(name, low, high):
    """Karras levels; the last step, to κ = 0, is Euler's for both and is taken out of the error."""
    mu, s = 0.5, 0.4
    scheduler = getattr(latentia, f"{name}DiscreteScheduler")(**SD, use_karras_sigmas=True)
    errors = []
    for n in (100, 200, 400):
        scheduler.set_timesteps(n)
        kappa = scheduler._kappa
        levels = dict(zip(scheduler._clock.times, kappa.tolist()))
        x = torch.tensor([[2.0 * kappa[0]]], dtype=F64)
        for t in scheduler.timesteps:
            level = levels[float(t)]
            y = gaussian_eps(x, 1.0, level, mu, s)
            x = scheduler.step(y, t, x).prev_sample
        last = kappa[-2]
        exact = mu + math.sqrt((s**2 + last**2) / (s**2 + kappa[0] ** 2)) * (2.0 * kappa[0] - mu)
        exact = exact - last * float(gaussian_eps(exact, 1.0, last, mu, s))
        errors.append(abs(float(x) - exact))
    assert low < measured_order(errors) < high, errors


@pytest.mark.parametrize(
    ("name", "config", "errors"),
    [
        ("DDIMScheduler", {"clip_sample": False}, (0.092, 0.052, 0.023, 0.012)),
        ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, (0.114, 0.068, 0.033, 0.018)),
        ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True}, (0.025, 0.0091, 0.0016, 0.0001)),
        ("DPMSolverMultistepScheduler", {}, (0.099, 0.051, 0.020, 0.010)),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, (0.018, 0.0049, 0.00031, 0.00096)),
    ],
)
def test_t5_errors_fall_with_steps(name, config, errors):
    """Errors on a Gaussian shrink with the number of steps, at the rate (not the constant) measured elsewhere."""
    mu, s = 0.5, 0.5
    found = []
    for n in (10, 20, 50, 100):
        scheduler = getattr(latentia, name)(**SD, **config)
        scheduler.set_timesteps(n)
        alpha, sigma = (float(v) for v in scheduler.alpha_sigma(scheduler.timesteps[0], F64))
        exact = gaussian_flow(1.0, (alpha, sigma), (1.0, 0.0), mu, s)
        found.append(abs(float(sample(scheduler, torch.ones(1, 1, dtype=F64), mu, s)) - exact))
    assert found[2] < found[1] < found[0]
    assert found[0] / found[2] > 0.3 * errors[0] / errors[2]
    assert found[3] < 2 * errors[3] + 1e-3


# -- T6: the variances of DDPM ----------------------------------------------------------------------------------


def variance_after(variance_type: str, delta: bool, stop: int) -> float:
    """Variance of the samples that arrive at timestep `stop`, from the mean factor and the noise of each step."""
    scheduler = latentia.DDPMScheduler(variance_type=variance_type, clip_sample=False)
    scheduler.set_timesteps(1000)
    alphas, sigmas = scheduler.alpha_sigma(scheduler.timesteps, F64)
    z = torch.randn(1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    variance = 1.0
    for t, alpha, sigma in zip(scheduler.timesteps, alphas, sigmas):
        if int(t) <= stop:
            break
        # at x = 0 the step leaves only the noise, at x = 1 the mean's factor besides
        at = [
            float(
                scheduler.step(
                    torch.full((1, 1), v / float(sigma) if delta else v * float(sigma), dtype=F64),
                    t,
                    torch.full((1, 1), v, dtype=F64),
                    generator=torch.Generator().manual_seed(0),
                ).prev_sample
            )
            for v in (0.0, 1.0)
        ]
        variance = (at[1] - at[0]) ** 2 * variance + (at[0] / float(z)) ** 2
        assert alpha > 0
    return variance


def test_t6_variances():
    assert variance_after("fixed_large", False, -1) == pytest.approx(0.9999, abs=1e-6)
    assert variance_after("fixed_small", False, -1) == pytest.approx(0.99107, abs=1e-5)
    assert variance_after("fixed_small", True, 500) == pytest.approx(0.9222033, abs=2e-7)
    assert variance_after("fixed_large", True, 500) == pytest.approx(0.92263, abs=5e-6)
    level = signal_level(make_betas("linear", 1000, 1e-4, 0.02))
    assert float(1 - level[500]) == pytest.approx(0.9222033, abs=1e-7)


# -- T8, T10 ----------------------------------------------------------------------------------------------------


def test_t8_guidance_on_gaussians_of_one_width():
    m, s, guidance = 0.4, 0.5, 3.0
    scheduler = latentia.DPMSolverMultistepScheduler(**SD)
    scheduler.set_timesteps(200)
    x = torch.tensor([[-1.0, 1.0]], dtype=F64)
    start = scheduler.alpha_sigma(scheduler.timesteps[0], F64)
    for t in scheduler.timesteps:
        alpha, sigma = scheduler.alpha_sigma(t, F64)
        null, cond = gaussian_eps(x, alpha, sigma, 0.0, s), gaussian_eps(x, alpha, sigma, m, s)
        eps = null + guidance * (cond - null)
        torch.testing.assert_close(eps, gaussian_eps(x, alpha, sigma, guidance * m, s), rtol=1e-10, atol=1e-10)
        x = scheduler.step(eps, t, x).prev_sample
    ends = [gaussian_flow(z, [float(v) for v in start], (1.0, 0.0), guidance * m, s) for z in (-1.0, 1.0)]
    torch.testing.assert_close(x, torch.tensor([ends], dtype=F64), rtol=0, atol=6e-3)


def test_t10_rectified_flow_of_a_gaussian():
    mu, s = 1.0, 0.5
    errors = []
    z = np.array([-1.0, 0.0, 1.0])
    for n in (10, 20, 40, 80, 160):
        scheduler = latentia.FlowMatchEulerDiscreteScheduler(rho=1.0)
        scheduler.set_timesteps(n)
        x = torch.tensor(z)[None]
        for i, t in enumerate(scheduler.timesteps):
            sigma = (n - i) / n
            var = (1 - sigma) ** 2 * s**2 + sigma**2
            v = -mu + (sigma - (1 - sigma) * s**2) / var * (x - (1 - sigma) * mu)
            x = scheduler.step(v, t, x).prev_sample
        errors.append(float(np.sqrt(np.mean((x.numpy()[0] - (mu + s * z)) ** 2))))
    assert measured_order(errors) == pytest.approx(0.99, abs=0.03)
    assert errors[0] / errors[-1] == pytest.approx(8.2e-2 / 5.5e-3, rel=0.1)
