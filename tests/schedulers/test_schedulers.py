"""What single classes do beyond the common contract: refusals, late starts, special outputs."""

import json

import pytest
import torch

import latentia
from latentia.errors import ArtifactError, InputError
from latentia.schedulers.clock import Clock, listed_positions
from latentia.schedulers.scheduler import KEPT_PLANS

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_epsilon_cannot_start_without_signal(name):
    for spacing in ("trailing", "linspace"):
        scheduler = getattr(latentia, name)(rescale_betas_zero_snr=True, timestep_spacing=spacing)
        with pytest.raises(InputError, match="prediction_type='v_prediction'"):
            scheduler.set_timesteps(10)
    leading = getattr(latentia, name)(rescale_betas_zero_snr=True)
    leading.set_timesteps(10)
    x = randn(1, 4)
    assert leading.step(x, leading.timesteps[0], x).prev_sample.isfinite().all()
    getattr(latentia, name)(rescale_betas_zero_snr=True, timestep_spacing="trailing", compat=True).set_timesteps(10)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_runs(eta, prediction):
    scheduler = latentia.DDIMScheduler(
        rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type=prediction
    )
    scheduler.set_timesteps(10)
    x = randn(2, 4)
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x, eta=eta, generator=torch.Generator().manual_seed(0)).prev_sample
    assert x.isfinite().all()


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_ddim_eta(eta):
    scheduler = latentia.DDIMScheduler()
    scheduler.set_timesteps(10)
    x = randn(1, 4)
    with pytest.raises(InputError, match="eta must lie in"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=eta)


def test_noise_is_given_once():
    scheduler = latentia.DDIMScheduler()
    scheduler.set_timesteps(10)
    x = randn(1, 4)
    with pytest.raises(InputError, match="either generator or variance_noise"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=1.0, generator=torch.Generator(), variance_noise=x)


@pytest.mark.parametrize(
    ("name", "config", "match"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "final_sigmas_type='sigma_min'"),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order must be 1, 2 or 3"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "use_flow_sigmas=True"),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "use_lu_lambdas": True}, "karras, lu"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_beta_sigmas": True}, "karras, beta"),
        ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True, "rho": 4.0}, "rho must be"),
        ("FlowMatchEulerDiscreteScheduler", {"rho": -1.0}, "rho must be"),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 0.0}, "shift must be a number finite and above 0"),
        ("FlowMatchEulerDiscreteScheduler", {"num_train_timesteps": 0}, "num_train_timesteps must be an integer"),
        ("DDPMScheduler", {"trained_betas": [0.1, 0.2]}, "num_train_timesteps=2"),
        ("DDPMScheduler", {"trained_betas": "linear"}, "trained_betas must be a list of numbers"),
        (
            "DDPMScheduler",
            {"num_train_timesteps": 2.5},
            "num_train_timesteps must be an integer of at least 1, got 2.5",
        ),
        ("DDPMScheduler", {"num_train_timesteps": "1000"}, "got '1000'"),
        ("DDPMScheduler", {"beta_start": "0.1"}, "beta_start must be a number"),
        ("DDPMScheduler", {"steps_offset": -5}, "steps_offset must be an integer of at least 0, got -5"),
        ("DDPMScheduler", {"clip_sample_range": -1.0}, "clip_sample_range must be a number finite and above 0"),
        ("DDPMScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 2}, "between 0 and 1, got 2"),
        ("DDPMScheduler", {"thresholding": True, "sample_max_value": 0.5}, "sample_max_value must be"),
        ("DPMSolverMultistepScheduler", {"flow_shift": -1.0}, "flow_shift must be"),
    ],
)
def test_refused_at_construction(name, config, match):
    with pytest.raises(InputError, match=match):
        getattr(latentia, name)(**config)


@pytest.mark.parametrize(
    ("name", "config", "given", "match"),
    [
        ("DDPMScheduler", {}, {}, "exactly one"),
        ("DDPMScheduler", {}, {"num_inference_steps": 3, "timesteps": [3]}, "exactly one"),
        ("DDPMScheduler", {}, {"timesteps": [3, 5]}, "descend"),
        ("EulerDiscreteScheduler", {}, {}, "exactly one"),
        ("EulerDiscreteScheduler", {}, {"timesteps": [5, 3], "sigmas": [1.0, 0.0]}, "exactly one"),
        ("EulerDiscreteScheduler", {}, {"sigmas": [1.0]}, "at least two levels"),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {"timesteps": [5, 3]}, "use_karras_sigmas"),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous", "prediction_type": "v_prediction"},
            {"timesteps": [5, 3]},
            "continuous",
        ),
        ("HeunDiscreteScheduler", {}, {"num_inference_steps": 5, "num_train_timesteps": 10}, "1000 in the config"),
        ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, {"timesteps": [5, 3]}, "use_karras_sigmas"),
        ("DPMSolverMultistepScheduler", {}, {}, "exactly one"),
        ("DPMSolverMultistepScheduler", {}, {"num_inference_steps": 5, "mu": 1.0}, "use_dynamic_shifting"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, {"timesteps": [5, 3]}, "use_lu"),
        ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -1.0}, {"num_inference_steps": 900}, "take fewer"),
        ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, {"num_inference_steps": 5}, "needs mu"),
        ("FlowMatchEulerDiscreteScheduler", {}, {}, "pass num_inference_steps"),
        (
            "FlowMatchEulerDiscreteScheduler",
            {},
            {"num_inference_steps": 3, "sigmas": [1.0, 0.5]},
            r"lengths \[2, 3\]",
        ),
        ("FlowMatchEulerDiscreteScheduler", {}, {"sigmas": [0.5, 1.0]}, "descend"),
        ("FlowMatchEulerDiscreteScheduler", {}, {"sigmas": [1.5, 1.0]}, "0 … 1"),
    ],
)
def test_refused_by_set_timesteps(name, config, given, match):
    scheduler = getattr(latentia, name)(**config)
    with pytest.raises(InputError, match=match):
        scheduler.set_timesteps(**given)


def test_a_flow_shift_of_none_is_no_shift():
    runs = []
    for shift in (None, 1.0):
        scheduler = latentia.DPMSolverMultistepScheduler(
            flow_shift=shift, use_flow_sigmas=True, prediction_type="flow_prediction"
        )
        scheduler.set_timesteps(5)
        runs.append(scheduler.sigmas)
    assert torch.equal(*runs)


def test_a_later_shift_is_checked_too():
    with pytest.raises(InputError, match="shift must be a number finite and above 0"):
        latentia.FlowMatchEulerDiscreteScheduler().set_shift(-1.0)


def test_learned_variance_needs_twice_the_channels():
    scheduler = latentia.DDPMScheduler(variance_type="learned_range")
    scheduler.set_timesteps(10)
    x = randn(1, 4, 2, 2)
    with pytest.raises(InputError, match="8 output channels"):
        scheduler.step(x, scheduler.timesteps[0], x)


def test_dpm_solver_ignores_variance_channels():
    plain = latentia.DPMSolverMultistepScheduler()
    learned = latentia.DPMSolverMultistepScheduler(variance_type="learned_range")
    x, y = randn(1, 4, 2, 2), randn(1, 8, 2, 2, seed=1)
    plain.set_timesteps(10)
    learned.set_timesteps(10)
    a = plain.step(y[:, :4], plain.timesteps[0], x).prev_sample
    assert torch.equal(a, learned.step(y, learned.timesteps[0], x).prev_sample)


def test_saved_configs_that_cannot_be_used(tmp_path):
    (tmp_path / "scheduler_config.json").write_text('{"beta_start": 0.1')
    with pytest.raises(ArtifactError, match="truncated"):
        latentia.DDIMScheduler.from_pretrained(tmp_path)
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "DDIMScheduler", "bogus": 1}))
    with pytest.warns(UserWarning, match="bogus"):
        latentia.DDIMScheduler.from_pretrained(tmp_path)
    scheduler, unused = latentia.DDIMScheduler.from_pretrained(tmp_path, return_unused_kwargs=True)
    assert unused == {"bogus": 1}
    assert isinstance(scheduler, latentia.DDIMScheduler)


def test_the_stable_diffusion_scheduler_file(tmp_path):
    config = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        **SD,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }
    (tmp_path / "scheduler_config.json").write_text(json.dumps(config))
    pndm = latentia.PNDMScheduler.from_pretrained(tmp_path)
    ddim = latentia.DDIMScheduler.from_pretrained(tmp_path)
    assert ddim.config.clip_sample is False
    assert ddim.config.skip_prk_steps is True
    dpm = latentia.DPMSolverMultistepScheduler.from_config(pndm.config, use_karras_sigmas=True)
    assert dpm.config.steps_offset == 1
    back = latentia.PNDMScheduler.from_config(dpm.config)
    assert {k: back.config[k] for k in pndm.config} == dict(pndm.config)


# -- runs -------------------------------------------------------------------------------------------------------


def test_relatives_of_dpm_solver():
    deis = latentia.DPMSolverMultistepScheduler(algorithm_type="deis", solver_type="logrho")
    plain = latentia.DPMSolverMultistepScheduler()
    x, y = randn(2, 1, 4)
    for scheduler in (deis, plain):
        scheduler.set_timesteps(10)
    assert torch.equal(deis.step(y, deis.timesteps[0], x).prev_sample, plain.step(y, plain.timesteps[0], x).prev_sample)


@pytest.mark.parametrize("begin", [0, 1, 2, 3, 10])
def test_pndm_may_begin_anywhere(begin):
    """With the true noise of one picture every transfer is exact, from whichever entry a run begins."""
    scheduler = latentia.PNDMScheduler(**SD, skip_prk_steps=True, set_alpha_to_one=True)
    scheduler.set_timesteps(20)
    clean, eps = randn(2, 1, 8).double()
    x = scheduler.add_noise(clean, eps, scheduler.timesteps[begin])
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(eps, t, x).prev_sample
    torch.testing.assert_close(x, clean, rtol=1e-9, atol=1e-9)


def test_half_steps_cannot_begin_a_run():
    heun = latentia.HeunDiscreteScheduler()
    heun.set_timesteps(5)
    x = randn(1, 4)
    with pytest.raises(InputError, match="second half of a Heun step"):
        heun.step(x, heun.timesteps[1], x)
    pndm = latentia.PNDMScheduler()
    pndm.set_timesteps(5)
    with pytest.raises(InputError, match="inside a Runge-Kutta step"):
        pndm.step(x, pndm.timesteps[2], x)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "PNDMScheduler"])
def test_a_jump_starts_a_new_history(name):
    scheduler = getattr(latentia, name)(**SD)
    scheduler.set_timesteps(30)
    x, y = randn(2, 1, 4)
    late = scheduler.timesteps[20]
    expected = scheduler.step(y, late, x).prev_sample
    scheduler.set_timesteps(30)
    for t in scheduler.timesteps[:8]:
        scheduler.step(y, t, x)
    assert torch.equal(scheduler.step(y, scheduler.timesteps[20], x).prev_sample, expected)


def test_heun_says_which_half_is_next():
    scheduler = latentia.HeunDiscreteScheduler()
    scheduler.set_timesteps(3)
    x, states = randn(1, 4), []
    for t in scheduler.timesteps:
        states.append(scheduler.state_in_first_order)
        x = scheduler.step(0.1 * x, t, x).prev_sample
    assert states == [True, False, True, False, True]


def test_static_and_dynamic_shift():
    scheduler = latentia.FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert scheduler.shift == 3.0
    scheduler.set_timesteps(5)
    before = scheduler.sigmas.clone()
    scheduler.set_shift(1.0)
    scheduler.set_timesteps(5)
    assert (scheduler.sigmas[1:-1] < before[1:-1]).all()
    dynamic = latentia.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    dynamic.set_timesteps(5, mu=1.0)
    assert float(dynamic.sigmas[-2]) == pytest.approx(0.1)
    dynamic.set_timesteps(1, mu=1.0)
    assert dynamic.sigmas.tolist() == [1.0, 0.0]


def test_flow_schedulers_scale_noise():
    scheduler = latentia.FlowMatchEulerDiscreteScheduler()
    x, eps = randn(2, 3, 4)
    t = torch.tensor([1000.0, 250.0, 0.0])
    expected = torch.stack([eps[0], 0.75 * x[1] + 0.25 * eps[1], x[2]])
    torch.testing.assert_close(scheduler.scale_noise(x, t, eps), expected)
    torch.testing.assert_close(scheduler.add_noise(x, eps, t), expected)
    with pytest.raises(InputError, match="noise"):
        scheduler.scale_noise(x, t)


def test_continuous_timesteps_are_noise_levels():
    scheduler = latentia.EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction")
    scheduler.set_timesteps(5)
    torch.testing.assert_close(scheduler.timesteps, 0.25 * scheduler.sigmas[:-1].log())
    alpha, sigma = scheduler.alpha_sigma(scheduler.timesteps)
    torch.testing.assert_close(sigma / alpha, scheduler.sigmas[:-1], rtol=1e-5, atol=1e-6)


# -- the clock --------------------------------------------------------------------------------------------------


def test_the_clock_knows_views_by_their_address():
    timesteps = torch.tensor([9, 5, 5, 1])
    clock = Clock(timesteps, timesteps.tolist())
    assert [clock.locate(t, 0) for t in timesteps] == [0, 1, 2, 3]
    assert clock.locate(timesteps[1:][0], 0) == 1
    assert clock.locate(5, 1) == 1
    assert clock.locate(5, 0) == 2
    assert clock.locate(torch.tensor(1), 0) == 3
    with pytest.raises(InputError, match=r"timestep 7 is not in this schedule of 4 \(9, 5, 5, … 1\)"):
        clock.locate(7, 0)


def test_listed_positions_prefer_the_current_one():
    listed = torch.tensor([9, 5, 5, 1])
    position, found = listed_positions(torch.tensor([5, 9, 7]), listed, None)
    assert position[:2].tolist() == [2, 0]
    assert found.tolist() == [True, True, False]
    assert listed_positions(torch.tensor(5), listed, 1)[0].item() == 1


def test_numbers_of_a_run_are_kept():
    scheduler = latentia.EulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    rows = scheduler._rows
    for count in range(1, 10):
        scheduler.set_timesteps(count)
    scheduler.set_timesteps(10)
    assert scheduler._rows is rows
    for count in range(1, 100):
        scheduler.set_timesteps(count)
        assert len(scheduler._plans) <= KEPT_PLANS
