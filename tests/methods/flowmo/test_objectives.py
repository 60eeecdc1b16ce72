import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from latentia.data.dataset import TensorDataset
from latentia.errors import InputError, UnknownChoiceError
from latentia.methods.flowmo.objectives import FlowMoPostTraining, FlowMoPretraining, FlowMoRegression
from latentia.methods.flowmo.sampler import Sampler
from latentia.training.loop import train
from latentia.training.phase import EMA, Optim, Phase
from latentia.training.settings import Settings


class Pixels(nn.Module):
    """A perceptual network that sees pixels, through a weight that must not be trained."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x, x_hat):
        return (self.gain * (x - x_hat)).square().flatten(1).mean(1)


def batch(n=16):
    torch.manual_seed(5)
    return {"x": torch.rand(n, 1, 8, 8) * 2 - 1}


def test_parts_and_total_of_stage_1a(tiny):
    objective = FlowMoPretraining(tiny(), Pixels(), perceptual_weight=0.3)
    torch.manual_seed(1)
    loss = objective(batch())
    torch.manual_seed(1)
    bare = FlowMoPretraining(tiny())(batch())
    assert set(loss.parts) == {"flow", "perceptual", *(name for name in bare.parts if name != "flow")}
    assert float(loss.parts["flow"]) == float(bare.parts["flow"])
    assert float((loss.total - bare.total).detach()) == pytest.approx(0.3 * float(loss.parts["perceptual"]), rel=1e-4)
    assert objective.frozen == ("perceptual",)
    assert set(objective.modules_by_name) == {"codec"}


@pytest.mark.parametrize("prediction", ["flow_prediction", "sample", "preconditioned"])
def test_the_default_flow_loss_is_the_mean_square_error_of_v(tiny, prediction):
    objective = FlowMoPretraining(tiny(prediction_type=prediction))
    x, z = torch.randn(2, 6, 1, 8, 8)
    t = torch.linspace(0.1, 1, 6)
    v = torch.randn_like(x)
    x_t = torch.lerp(x, z, t[:, None, None, None])
    loss = objective.flow_loss(x, z, t, v, x_t - t[:, None, None, None] * v)
    torch.testing.assert_close(loss, (v - (z - x)).square().mean())


@pytest.mark.parametrize("prediction", ["flow_prediction", "sample", "preconditioned"])
def test_the_weight_over_time_is_of_the_error_in_x(tiny, prediction):
    objective = FlowMoPretraining(tiny(prediction_type=prediction), weight_power=1.0, weight_floor=0.25)
    x, z, v = torch.randn(3, 2, 1, 8, 8)
    t = torch.tensor([0.1, 0.8])
    estimate = torch.lerp(x, z, t[:, None, None, None]) - t[:, None, None, None] * v
    error = (estimate - x).square().flatten(1).mean(1)
    expected = (error[0] / 0.25 + error[1] / 0.8) / 2
    torch.testing.assert_close(objective.flow_loss(x, z, t, v, estimate), expected)


@pytest.mark.parametrize(("prediction", "spread"), [("flow_prediction", False), ("sample", True)])
def test_regression_shows_the_decoder_nothing_and_a_picture_needs_no_time(tiny, prediction, spread, monkeypatch):
    codec = tiny(prediction_type=prediction)
    objective, asked, plain = FlowMoRegression(codec), [], codec.estimate

    def estimate(x_t, t, code):
        v, said = plain(x_t, t, code)
        asked.append((x_t, t, said))
        return v, said

    monkeypatch.setattr(codec, "estimate", estimate)
    x = batch()["x"]
    loss = objective({"x": x})
    ((x_t, t, said),) = asked
    assert not x_t.any()
    assert len(t.unique()) == (len(x) if spread else 1)
    assert spread or float(t[0]) == 1
    assert float(loss.parts["mse"]) == pytest.approx(float((said - x).square().mean().detach()))


def test_times_of_a_batch_are_spread_over_their_distribution(tiny):
    torch.manual_seed(0)
    objective = FlowMoPretraining(tiny(), uniform_times=0.0)
    t = objective.draw_times(1000, torch.device("cpu")).sort().values
    strata = torch.special.ndtr(torch.logit(t.double())) * 1000
    assert bool((strata.floor() == torch.arange(1000)).all())


def test_times_have_thick_tails(tiny):
    torch.manual_seed(0)
    thick = FlowMoPretraining(tiny(), uniform_times=0.1).draw_times(200_000, torch.device("cpu"))
    thin = FlowMoPretraining(tiny(), uniform_times=0.0).draw_times(200_000, torch.device("cpu"))

    def above(t):  # P(sigmoid(n) > 0.98)
        return 0.5 * math.erfc(math.log(0.98 / 0.02) / math.sqrt(2))

    assert float((thin > 0.98).float().mean()) == pytest.approx(above(thin), abs=2e-4)
    assert float((thick > 0.98).float().mean()) == pytest.approx(0.9 * above(thick) + 0.1 * 0.02, abs=4e-4)
    flat = FlowMoPretraining(tiny(), uniform_times=1.0).draw_times(100_000, torch.device("cpu"))
    assert float(flat.var()) == pytest.approx(1 / 12, rel=0.01)


def test_a_dropped_code_is_not_heard(tiny):
    x = batch()["x"]
    losses = []
    for values in (torch.zeros(16, 6, 4), torch.ones(16, 6, 4)):
        torch.manual_seed(2)
        losses.append(FlowMoPretraining(tiny(), code_dropout=1.0).flow(x, values)[0])
    assert torch.equal(*losses)


def test_noise_anneals_from_continuous_to_quantised(tiny):
    objective = FlowMoPretraining(tiny(), anneal_steps=10)
    x = batch()["x"]
    (latents,) = objective.codec.encode(x, return_dict=False)
    signs = torch.where(latents > 0, 1.0, -1.0)
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)):
        values = objective.code_of(x, step)[0]
        torch.testing.assert_close(values, torch.lerp(latents.tanh(), signs, share), atol=1e-5, rtol=0)
        (gradient,) = torch.autograd.grad(values.sum(), objective.codec.encoder.out.bias)
        torch.testing.assert_close(gradient, torch.full_like(gradient, 16 * 4))  # straight through, at every step


def test_noise_synchronisation(tiny):
    objective = FlowMoPretraining(tiny(continuous=True), noise_sync=1.0)
    torch.manual_seed(0)
    t, values = objective._synchronised(torch.full((4000,), 0.01), torch.ones(4000, 6, 4))
    assert float(t.mean()) == pytest.approx(0.75, abs=0.02)  # U[level, 1] of level ~ U(0, 1)
    assert float(values.mean()) == pytest.approx(0.5, abs=0.02)
    with pytest.raises(InputError, match="continuous"):
        FlowMoPretraining(tiny(), noise_sync=0.1)


def test_a_frozen_encoder_is_not_trained(tiny):
    objective = FlowMoPretraining(tiny(), freeze_encoder=True)
    loss = objective(batch())
    loss.total.backward()
    assert all(p.grad is None for p in objective.codec.encoder.parameters())
    assert any(p.grad is not None for p in objective.codec.decoder.parameters())
    FlowMoPretraining(objective.codec)
    assert all(p.requires_grad for p in objective.codec.encoder.parameters())


def test_a_frozen_encoder_keeps_its_codebook(tiny):
    codec = tiny(quantizer="vq_ema", quantizer_options={"num_codes": 8})
    FlowMoPretraining(codec)(batch())  # the first batch starts the codebook
    before = {name: value.clone() for name, value in codec.quantizer.state_dict().items()}
    loss = FlowMoPretraining(codec, freeze_encoder=True)(batch())
    assert set(loss.parts) == {"flow"}
    for name, value in codec.quantizer.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    FlowMoPretraining(codec)({"x": batch()["x"].flip(-1)})
    assert any(not torch.equal(value, before[name]) for name, value in codec.quantizer.state_dict().items())


def test_random_grids_descend_from_one_to_zero(tiny):
    objective = FlowMoPostTraining(tiny(), Pixels(), chain_steps=8)
    torch.manual_seed(0)
    times = objective.draw_grid(5000, torch.device("cpu"))
    assert times.shape == (5000, 9)
    assert bool((times[:, 0] == 1).all())
    assert bool((times[:, -1] == 0).all())
    widths = times[:, :-1] - times[:, 1:]
    assert bool((widths >= 0).all())
    torch.testing.assert_close(widths.mean(0), torch.full((8,), 1 / 8), atol=0.004, rtol=0)


def test_the_chain_is_the_sampler_and_its_gradient_is_that_without_checkpoints(tiny):
    model = tiny(prediction_type="sample")
    objective = FlowMoPostTraining(model, Pixels(), chain_steps=4)
    z, values = torch.randn(3, 1, 8, 8), torch.where(torch.randn(3, 6, 4) > 0, 1.0, -1.0)
    grid = torch.tensor([1.0, 0.7, 0.3, 0.1, 0.0])
    objective.draw_grid = lambda n, device: grid.expand(n, -1)
    out = objective.chain(z, values)
    by_hand = z
    for t, after in pairwise(grid):
        by_hand = by_hand - (t - after) * model.velocity(by_hand, t.expand(3), model.flagged(values))
    torch.testing.assert_close(out, by_hand)
    weights = [p for p in model.decoder.parameters() if p.requires_grad]
    for a, b in zip(torch.autograd.grad(out.sum(), weights), torch.autograd.grad(by_hand.sum(), weights)):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_stage_1b_trains_the_decoder_alone(tiny):
    objective = FlowMoPostTraining(tiny(), Pixels(), sample_weight=0.01)
    loss = objective(batch(4))
    assert set(loss.parts) == {"flow", "sample"}
    expected = loss.parts["flow"] + 0.01 * loss.parts["sample"]
    torch.testing.assert_close(loss.total.detach(), expected)
    loss.total.backward()
    assert all(p.grad is None for p in objective.codec.encoder.parameters())
    assert objective.settings()["freeze_encoder"]


@pytest.mark.parametrize(
    "given",
    [{"code_dropout": 1.5}, {"uniform_times": -0.1}, {"weight_power": -1.0}, {"anneal_steps": -1}],
)  # fmt: skip
def test_bad_numbers(tiny, given):
    with pytest.raises(InputError):
        FlowMoPretraining(tiny(), **given)


def test_unknown_norm(tiny):
    with pytest.raises(UnknownChoiceError, match="weight_norm"):
        FlowMoPretraining(tiny(), weight_norm="l3")


def two_pictures():
    """A cross and a frame."""
    x = -torch.ones(2, 1, 8, 8)
    x[0, :, 3:5], x[0, :, :, 3:5] = 1, 1
    x[1, :, ::7], x[1, :, :, ::7] = 1, 1
    return TensorDataset({"x": x})


def phases(tiny, steps=(240, 6)):
    """1A, then 1B on what it left."""
    kept = {}

    def first():
        kept["codec"] = tiny(alive=False, prediction_type="sample", code_layout="grid")
        objective = FlowMoPretraining(kept["codec"], Pixels(), weight_floor=0.2, anneal_steps=steps[0] // 3)
        return Phase("pretraining", objective, two_pictures(), steps[0], 16, Optim(lr=2e-3), ema=EMA(0.9))

    def second():
        objective = FlowMoPostTraining(kept["codec"], Pixels(), 0.1, 2, weight_floor=0.2)
        return Phase("post-training", objective, two_pictures(), steps[1], 8, Optim(lr=5e-4), ema=EMA(0.9))

    return [("pretraining", first), ("post-training", second)]


def quiet(**changes):
    return Settings(progress=False, tensorboard=False, device="cpu", **changes)


def test_two_pictures_are_learned_and_told_apart(tiny, tmp_path):
    results = train(phases(tiny), tmp_path / "run", quiet())
    codec = results["post-training"].modules["codec"].eval()
    x = two_pictures().tensors["x"]
    tokens = codec.to_tokens(x)
    assert not torch.equal(tokens[0], tokens[1])
    with torch.no_grad():
        out = codec.decode(codec.to_latents(x), torch.Generator().manual_seed(0), Sampler(4, 4.0, 1.0)).sample
    assert float((out - x).square().mean()) < 0.02


class Stop(Exception):
    pass


@pytest.mark.parametrize(("kind", "at"), [(FlowMoPretraining, 11), (FlowMoPostTraining, 4)])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(tiny, tmp_path, monkeypatch, kind, at):
    """Bit for bit, with forced norms, annealing and both stages."""
    steps, settings = (20, 6), quiet(save_every=4)
    whole = train(phases(tiny, steps), tmp_path / "whole", settings)
    forward = kind.forward

    def poisoned(self, batch, turn="main", step=0):
        if step == at:
            raise Stop
        return forward(self, batch, turn, step)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "forward", poisoned)
        with pytest.raises(Stop):
            train(phases(tiny, steps), tmp_path / "cut", settings)
    resumed = train(phases(tiny, steps), tmp_path / "cut", settings, resume=True)
    for name, result in whole.items():
        assert_same(resumed[name].averaged["codec"], result.averaged["codec"])
    last = "post-training"
    assert_same(resumed[last].modules["codec"].state_dict(), whole[last].modules["codec"].state_dict())


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert [key for key in a if not torch.equal(a[key], b[key])] == []
