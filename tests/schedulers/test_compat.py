"""Diffusers 0.42.1's plain bugs: right here by default, reproduced with `compat=True`."""

import diffusers
import pytest
import torch

import latentia
from latentia.errors import InputError

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAILING = ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"]


def gaussian_std(scheduler, steps: int, std: float = 0.5) -> float:
    """Final standard deviation of data N(0, std²) under the exact noise prediction."""
    scheduler.set_timesteps(steps)
    level = scheduler.alphas_cumprod.double()
    x = torch.full((1, 1), 2.0, dtype=torch.float64)
    for t in scheduler.timesteps:
        alpha2 = float(level[t])
        eps = (1 - alpha2) ** 0.5 * x / (alpha2 * std**2 + 1 - alpha2)
        x = scheduler.step(eps, t, x).prev_sample
    return float(x) / 2


@pytest.mark.parametrize("name", TRAILING)
@pytest.mark.parametrize("count", [61, 103, 217])
def test_a_trailing_lists_end_before_minus_one(name, count):
    ours = getattr(latentia, name)(timestep_spacing="trailing")
    compat = getattr(latentia, name)(timestep_spacing="trailing", compat=True)
    theirs = getattr(diffusers, name)(timestep_spacing="trailing")
    for scheduler in (ours, compat, theirs):
        scheduler.set_timesteps(count)
    assert theirs.timesteps[-1] == -1
    assert compat.timesteps.tolist() == theirs.timesteps.tolist()
    assert ours.timesteps.tolist() == theirs.timesteps[:-1].tolist()


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_b_ddim_steps_to_the_next_timestep(spacing):
    config = {"timestep_spacing": spacing, "clip_sample": False}
    theirs = gaussian_std(diffusers.DDIMScheduler(**config), 300)
    assert theirs == pytest.approx(0.533, abs=3e-3)
    assert gaussian_std(latentia.DDIMScheduler(**config, compat=True), 300) == pytest.approx(theirs, abs=1e-5)
    assert gaussian_std(latentia.DDIMScheduler(**config), 300) == pytest.approx(0.4955, abs=2e-3)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("skip", [True, False])
def test_b_pndm_steps_to_the_next_timestep(spacing, skip):
    config = {**SD, "timestep_spacing": spacing, "skip_prk_steps": skip, "set_alpha_to_one": True}
    theirs = gaussian_std(diffusers.PNDMScheduler(**config), 300)
    assert gaussian_std(latentia.PNDMScheduler(**config, compat=True), 300) == pytest.approx(theirs, abs=1e-5)
    right = gaussian_std(latentia.PNDMScheduler(**config), 300)
    fine = gaussian_std(latentia.PNDMScheduler(**config), 1000)
    assert abs(right - fine) < 0.1 * abs(theirs - fine)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_c_a_thousand_steps_with_an_offset(name):
    config = {**SD, "steps_offset": 1, "timestep_spacing": "leading"}
    scheduler = getattr(latentia, name)(**config, **({"skip_prk_steps": True} if "PNDM" in name else {}))
    for count in (999, 1000):
        scheduler.set_timesteps(count)
        assert scheduler.timesteps.max() <= 999
        assert scheduler.timesteps.min() >= 0
        assert len(scheduler.timesteps.unique()) == count


def test_c_compat_reproduces_the_list_and_explains():
    scheduler = latentia.DDIMScheduler(**SD, steps_offset=1, compat=True)
    scheduler.set_timesteps(1000)
    assert scheduler.timesteps[0] == 1000
    with pytest.raises(InputError, match=r"timestep 1000 is outside the trained 0 … 999.*steps_offset"):
        scheduler.step(torch.zeros(1, 1), scheduler.timesteps[0], torch.zeros(1, 1))


@pytest.mark.parametrize("count", [999, 1000])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_c_dpm_solver_runs_at_full_length(count, order):
    scheduler = latentia.DPMSolverMultistepScheduler(solver_order=order)
    assert gaussian_std(scheduler, count) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
@pytest.mark.parametrize("count", [1, 2, 3, 20, 50])
def test_d_cosine_with_karras_sigmas(algorithm, count):
    scheduler = latentia.DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True, algorithm_type=algorithm
    )
    scheduler.set_timesteps(count)
    assert scheduler.timesteps[0] == 999
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(0.5 * x, t, x, generator=torch.Generator().manual_seed(1)).prev_sample
    assert len(scheduler.timesteps) == count
    assert x.isfinite().all()


@pytest.mark.parametrize(("count", "evaluations"), [(1, 1), (2, 5), (3, 9), (4, 13), (50, 59)])
def test_f_pndm_with_few_runge_kutta_steps(count, evaluations):
    scheduler = latentia.PNDMScheduler(**SD, set_alpha_to_one=True)
    std = gaussian_std(scheduler, count)
    assert len(scheduler.timesteps) == evaluations
    assert 0.3 < std < 0.9 if count > 1 else std == std


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler"])
def test_r_any_training_timestep_after_set_timesteps(name):
    scheduler = getattr(latentia, name)(**SD)
    t = torch.arange(1000)
    x, noise = torch.randn(2, 1000, 3, generator=torch.Generator().manual_seed(0))
    before = scheduler.add_noise(x, noise, t)
    scheduler.set_timesteps(7)
    torch.testing.assert_close(scheduler.add_noise(x, noise, t), before)
    kappa = ((1 - scheduler.alphas_cumprod.double()) / scheduler.alphas_cumprod.double()).sqrt()
    torch.testing.assert_close(before, (x + kappa[:, None] * noise).float(), rtol=1e-3, atol=1e-4)


def test_r_dpm_solver_too():
    scheduler = latentia.DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True)
    t = torch.arange(1000)
    x, noise = torch.randn(2, 1000, 3, generator=torch.Generator().manual_seed(0))
    plain = scheduler.add_noise(x, noise, t)
    scheduler.set_timesteps(10)
    found = scheduler.add_noise(x, noise, t)
    listed = scheduler.timesteps
    others = ~torch.isin(t, listed)
    torch.testing.assert_close(found[others], plain[others])
    kappa = scheduler.sigmas[:-1].double()
    alpha = 1 / (kappa**2 + 1).sqrt()
    expected = alpha[:, None] * x[listed] + (kappa * alpha)[:, None] * noise[listed]
    torch.testing.assert_close(found[listed], expected.float(), rtol=1e-5, atol=1e-5)


def test_third_order_sde_constant():
    """Diffusers subtracts ½ where ½ must be added: with small steps its weight of D₂ does not vanish (lineage 8.6)."""
    import numpy as np

    from latentia.schedulers.dpm_solver import make_path, multistep_weights

    for h, right, wrong in ((0.1, 0.0317, -0.968), (0.05, 0.0163, -0.984), (0.01, 0.0033, -0.997)):
        path = make_path(np.exp(-h * np.arange(5)), flow=False)
        for compat, coefficient in ((False, right), (True, wrong)):
            weights = multistep_weights("sde-dpmsolver++", "midpoint", 3, path, compat=compat)
            oldest = weights[3][-1] / path.alpha[-1]  # (d₁/2 + d₂/2)/r₁ for equal steps
            first = 1 - (1 - np.exp(-2 * h)) / (2 * h)
            assert 2 * oldest - first == pytest.approx(coefficient, abs=1e-3)


def test_one_linspace_step_starts_from_noise():
    for name in ("DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"):
        ours, compat = (getattr(latentia, name)(timestep_spacing="linspace", compat=flag) for flag in (False, True))
        ours.set_timesteps(1)
        compat.set_timesteps(1)
        assert ours.timesteps.tolist() == [999]
        assert compat.timesteps.tolist() == [0]


def test_compat_is_not_written_unless_set(tmp_path):
    latentia.DPMSolverMultistepScheduler().save_pretrained(tmp_path)
    assert "compat" not in (tmp_path / "scheduler_config.json").read_text()
    assert "third_order" not in (tmp_path / "scheduler_config.json").read_text()
    diffusers.DPMSolverMultistepScheduler.from_pretrained(tmp_path)
    latentia.DPMSolverMultistepScheduler(compat=True).save_pretrained(tmp_path)
    assert latentia.DPMSolverMultistepScheduler.from_pretrained(tmp_path).config.compat is True


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("begin", [0, 1, 2, 3, 7, 9, 10])
def test_pndm_begins_in_the_middle_as_in_diffusers(begin, prediction_type):
    """Image to image: Diffusers counts turns from where the run begins, and repeats the second of them."""
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    config |= {"skip_prk_steps": True, "prediction_type": prediction_type}
    pair = diffusers.PNDMScheduler(**config), latentia.PNDMScheduler(**config, compat=True)
    start = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    ends = []
    for scheduler in pair:
        scheduler.set_timesteps(10)
        if scheduler is pair[1]:
            scheduler.set_begin_index(begin)
        x = start
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(torch.sin(3 * x + t / 500), t, x).prev_sample
        ends.append(x)
    torch.testing.assert_close(ends[1], ends[0], atol=2e-5, rtol=1e-5)


def test_pndm_does_not_begin_inside_a_runge_kutta_step():
    scheduler = latentia.PNDMScheduler()
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(4)
    with pytest.raises(InputError, match="position 5, inside a Runge-Kutta step"):
        scheduler.set_begin_index(5)
