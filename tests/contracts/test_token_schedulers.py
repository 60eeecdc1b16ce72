"""What every registered scheduler of tokens must do."""

import copy
import pickle

import pytest
import torch

import latentia
from latentia.errors import ArtifactError, ConfigError, InputError
from latentia.schedulers.tokens import TokenScheduler

NAMES = sorted(
    name
    for name, home in latentia._HOME.items()
    if home.startswith("schedulers.") and issubclass(getattr(latentia, name), TokenScheduler)
)
every = pytest.mark.parametrize("name", NAMES)
K, SHAPE = 5, (2, 3)


def build(name: str, **config) -> TokenScheduler:
    return getattr(latentia, name)(**{"mask_token_id": K, **config})


def logits_for(scheduler, sample: torch.Tensor, seed: int = 1) -> torch.Tensor:
    """Of every token, or of the next one."""
    generator = torch.Generator().manual_seed(seed)
    every_one = torch.randn(*SHAPE, K, generator=generator).expand(len(sample), -1, -1, -1)
    if isinstance(scheduler, latentia.MaskedScheduler):
        return every_one
    return every_one.flatten(1, 2)[:, scheduler.step_index % 6]


def run(scheduler, batch: int = 2, steps: int = 6, generator=None, **options) -> torch.Tensor:
    scheduler.set_timesteps(steps)
    x = torch.full((batch, *SHAPE), K)
    for t in scheduler.timesteps:
        x = scheduler.step(logits_for(scheduler, x), t, x, generator=generator, **options).prev_sample
    return x


def test_all_schedulers_are_of_one_kind_or_the_other():
    assert NAMES == ["AutoregressiveScheduler", "MaskedScheduler"]


@every
def test_config_round_trip_through_a_folder(name, tmp_path):
    scheduler = build(name, temperature=0.7)
    assert scheduler.save_pretrained(tmp_path / "scheduler").name == "scheduler_config.json"
    again = type(scheduler).from_pretrained(tmp_path, subfolder="scheduler")
    assert again.config == scheduler.config
    assert len(type(scheduler).from_pretrained(tmp_path / "scheduler", num_train_timesteps=700)) == 700
    with pytest.raises(ArtifactError):
        type(scheduler).from_pretrained(tmp_path)


@every
def test_unknown_argument_names_the_nearest(name):
    with pytest.raises(ConfigError, match="did you mean 'mask_token_id'"):
        build(name, mask_token=10)


@every
@pytest.mark.parametrize(
    ("argument", "value"),
    [("mask_token_id", 0), ("num_train_timesteps", 2.5), ("temperature", -1.0), ("temperature", float("nan"))],
)
def test_wrong_values_are_named(name, argument, value):
    with pytest.raises((InputError, ConfigError), match=argument):
        build(name, **{argument: value})


@every
@pytest.mark.parametrize("count", [0, -1, 2.5, True, "10", None])
def test_bad_step_counts(name, count):
    with pytest.raises(InputError, match="num_inference_steps"):
        build(name).set_timesteps(count)


@every
def test_timesteps_fall_from_the_top(name):
    scheduler = build(name)
    for count in (1, 2, 7, 64, 1500):
        scheduler.set_timesteps(count)
        times = scheduler.timesteps
        assert len(times) == scheduler.num_inference_steps == count
        assert times[0] == 1000
        assert times[-1] > 0
        assert (times[1:] < times[:-1]).all()


@every
def test_a_run_ends_without_masks_and_codes_stay_in_range(name):
    x = run(build(name))
    assert x.dtype == torch.int64
    assert 0 <= x.min() <= x.max() < K


@every
def test_steps_come_in_order(name):
    scheduler = build(name)
    x = torch.full((1, *SHAPE), K)
    y = logits_for(scheduler, x)
    with pytest.raises(InputError, match="set_timesteps"):
        scheduler.step(y, 1000, x)
    scheduler.set_timesteps(6)
    for wrong in (scheduler.timesteps[1], 123.25, scheduler.timesteps[:2]):
        with pytest.raises(InputError, match="not that of step 1 of 6"):
            scheduler.step(y, wrong, x)
    run(scheduler)
    with pytest.raises(InputError, match="all 6 steps are taken"):
        scheduler.step(y, scheduler.timesteps[-1], x)


@every
def test_shapes_must_agree(name):
    scheduler = build(name)
    scheduler.set_timesteps(6)
    x = torch.full((2, *SHAPE), K)
    y = logits_for(scheduler, x)
    for bad in (y[:1], y[:, None]):
        with pytest.raises(InputError, match="shape"):
            scheduler.step(bad, scheduler.timesteps[0], x)
    with pytest.raises(InputError, match="one generator per sample"):
        scheduler.step(y, scheduler.timesteps[0], x, generator=[torch.Generator()])
    with pytest.raises(InputError, match="one shape"):
        scheduler.add_noise(x, torch.rand(2, 3), torch.tensor([500.0]))
    with pytest.raises(InputError, match="timesteps for a batch of 2"):
        scheduler.add_noise(x, torch.rand(x.shape), torch.tensor([500.0, 1, 2]))
    for bad in (-1.0, 1001.0, float("nan")):
        with pytest.raises(InputError, match="timesteps must lie in 0"):
            scheduler.add_noise(x, torch.rand(x.shape), torch.tensor([bad]))


@every
def test_results_and_outputs(name):
    scheduler = build(name)
    scheduler.set_timesteps(6)
    x = torch.full((2, *SHAPE), K)
    y = logits_for(scheduler, x)
    before = x.clone(), y.clone()
    out = scheduler.step(y, scheduler.timesteps[0], x, generator=torch.Generator().manual_seed(0))
    assert out["prev_sample"] is out[0] is out.prev_sample
    assert out.prev_sample.shape == out.pred_original_sample.shape == x.shape
    assert (out.prev_sample == K).any()
    assert (out.pred_original_sample < K).all()
    known = out.prev_sample != K
    assert torch.equal(out.prev_sample[known], out.pred_original_sample[known])
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    scheduler.set_timesteps(6)
    generator = torch.Generator().manual_seed(0)
    values = scheduler.step(y, scheduler.timesteps[0], x, generator=generator, return_dict=False)
    assert torch.equal(values[0], out.prev_sample)
    assert scheduler.scale_model_input(x, 1) is x
    assert scheduler.init_noise_sigma == 1


@every
def test_a_list_of_generators_makes_batches_invariant(name):
    scheduler = build(name)

    def rows(*seeds):
        return run(scheduler, len(seeds), generator=[torch.Generator().manual_seed(i) for i in seeds])

    together = rows(0, 1, 2)
    assert not torch.equal(together[0], together[1])
    for i in range(3):
        assert torch.equal(together[i : i + 1], rows(i))


@every
def test_copies_are_independent(name):
    scheduler = build(name)
    expected = run(scheduler, generator=torch.Generator().manual_seed(0))
    for copied in (scheduler.fresh(), copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert torch.equal(run(copied, generator=torch.Generator().manual_seed(0)), expected)
    pair = [build(name), build(name)]
    pair[1] = pair[0].fresh()
    samples, generators = [torch.full((2, *SHAPE), K)] * 2, [torch.Generator().manual_seed(0) for _ in pair]
    for each in pair:
        each.set_timesteps(6)
    for i in range(6):
        for k, each in enumerate(pair):
            y = logits_for(each, samples[k])
            samples[k] = each.step(y, each.timesteps[i], samples[k], generator=generators[k]).prev_sample
    assert torch.equal(samples[0], expected)
    assert torch.equal(samples[1], expected)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_of_logits(name, dtype):
    scheduler = build(name)
    scheduler.set_timesteps(6)
    x = torch.full((2, *SHAPE), K)
    out = scheduler.step(logits_for(scheduler, x).to(dtype), scheduler.timesteps[0], x)
    assert out.prev_sample.dtype == torch.int64


@every
def test_cold_runs_take_the_likeliest_codes(name):
    scheduler = build(name)
    likeliest = torch.randn(*SHAPE, K, generator=torch.Generator().manual_seed(1)).argmax(-1)
    cold = run(scheduler, temperature=0.0)
    assert torch.equal(cold, likeliest.expand_as(cold))


@every
def test_forgetting_everything_and_nearly_nothing(name):
    scheduler = build(name)
    x = torch.randint(K, (3, *SHAPE))
    assert (scheduler.add_noise(x, torch.rand(x.shape), torch.tensor([1000])) == K).all()
    masked = (scheduler.add_noise(x, torch.rand(x.shape), torch.tensor([0.0, 1.0, 500.0])) == K).flatten(1).sum(1)
    assert masked[0] <= 1
    assert masked[0] <= masked[1] < masked[2] < 6
