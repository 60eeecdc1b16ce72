import pytest
import torch
from torch import nn

from latentia.codecs.autoencoder import Autoencoder
from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.denoisers.unet_2d import UNet2DModel
from latentia.errors import InputError, UnknownChoiceError
from latentia.schedulers.ddpm import DDPMScheduler
from latentia.schedulers.flow_match_euler import FlowMatchEulerDiscreteScheduler
from latentia.training.objectives import ClassificationObjective, DiffusionObjective, ReconstructionObjective

SMALL = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 2,
}


class Answer:
    def __init__(self, sample):
        self.sample = sample


class Oracle(ModelMixin):
    """Says `scale` times the input, and remembers what it was asked."""

    @register_to_config
    def __init__(self, scale: float = 0.0, num_class_embeds: int | None = None):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.asked = {}

    def forward(self, sample, timestep, class_labels=None):
        self.asked = {"sample": sample, "timestep": timestep, "class_labels": class_labels}
        return Answer(self.scale * sample)


def batch(count=512, labels=None):
    x = torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(99))
    return {"x": x} if labels is None else {"x": x, "label": torch.arange(count) % labels}


# --- reconstruction -------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_kl_autoencoder_loss_is_latent_diffusions(loss):
    torch.manual_seed(0)
    codec = AutoencoderKL(**SMALL)
    x = batch(3)["x"].repeat(1, 1, 2, 2)
    torch.manual_seed(1)
    out = ReconstructionObjective(codec, kl_weight=0.01, loss=loss)({"x": x})
    torch.manual_seed(1)
    posterior = codec.encode(x).latent_dist
    error = x - codec.decode(posterior.sample()).sample
    rec = (error.abs() if loss == "l1" else error.square()).sum() / 3
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).sum() / 3
    assert out.total.item() == pytest.approx((rec + 0.01 * kl).item(), rel=1e-5)
    assert out.parts["rec"].item() == pytest.approx(rec.item(), rel=1e-5)
    assert out.parts["kl"].item() == pytest.approx(kl.item(), rel=1e-5)
    assert not out.parts["kl"].requires_grad


def test_mean_is_the_sum_divided_by_the_elements_of_one_x():
    torch.manual_seed(0)
    codec = AutoencoderKL(**SMALL)
    x = batch(2)["x"].repeat(1, 1, 2, 2)
    totals = []
    for reduction in ("sum", "mean"):
        torch.manual_seed(1)
        totals.append(ReconstructionObjective(codec, 0.5, reduction)({"x": x}).total.item())
    assert totals[0] == pytest.approx(64 * totals[1], rel=1e-5)


def test_a_plain_autoencoder_has_no_kl():
    codec = Autoencoder(**SMALL)
    x = batch(2)["x"].repeat(1, 1, 2, 2)
    out = ReconstructionObjective(codec, loss="l2", reduction="mean")({"x": x})
    assert out.parts.keys() == {"rec"}
    assert out.total.item() == pytest.approx((codec(x).sample - x).square().mean().item(), rel=1e-5)
    assert list(ReconstructionObjective(codec).modules_by_name) == ["codec"]


def test_reconstruction_refuses():
    codec = Autoencoder(**SMALL)
    with pytest.raises(UnknownChoiceError, match="unknown loss 'lpips'"):
        ReconstructionObjective(codec, loss="lpips")
    with pytest.raises(UnknownChoiceError, match="reduction"):
        ReconstructionObjective(codec, reduction="max")
    with pytest.raises(InputError, match="kl_weight must be at least 0"):
        ReconstructionObjective(codec, kl_weight=-1)
    with pytest.raises(InputError, match="got Linear"):
        ReconstructionObjective(nn.Linear(1, 1))
    with pytest.raises(InputError, match="the batch has no 'x'; it has: image"):
        ReconstructionObjective(codec)({"image": torch.zeros(1)})


# --- diffusion ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_silent_network_costs_the_targets_variance(prediction):
    """ε, x₀ and v of unit-variance data all have variance 1 (lineage T27)."""
    torch.manual_seed(0)
    objective = DiffusionObjective(Oracle(), DDPMScheduler(prediction_type=prediction))
    assert objective(batch()).total.item() == pytest.approx(1, abs=0.05)


def test_flow_costs_two_and_sees_the_line():
    torch.manual_seed(0)
    scheduler = FlowMatchEulerDiscreteScheduler()
    oracle = Oracle()
    data = batch()
    assert DiffusionObjective(oracle, scheduler)(data).total.item() == pytest.approx(2, abs=0.1)
    t = oracle.asked["timestep"]
    assert t.dtype == torch.float32
    assert t.min() >= 0
    assert t.max() < 1000
    torch.manual_seed(5)
    objective = DiffusionObjective(oracle, scheduler)
    objective(data)
    torch.manual_seed(5)
    noise = torch.randn_like(data["x"])
    sigma = torch.rand(512).view(-1, 1, 1, 1)
    assert torch.allclose(oracle.asked["sample"], (1 - sigma) * data["x"] + sigma * noise, atol=1e-6)


def test_noisy_samples_are_the_schedulers():
    scheduler, oracle, data = DDPMScheduler(), Oracle(), batch(8)
    torch.manual_seed(5)
    DiffusionObjective(oracle, scheduler)(data)
    torch.manual_seed(5)
    noise = torch.randn_like(data["x"])
    assert torch.equal(oracle.asked["sample"], scheduler.add_noise(data["x"], noise, oracle.asked["timestep"]))


def times(scheduler, count=20_000, **arguments):
    torch.manual_seed(0)
    return DiffusionObjective(Oracle(), scheduler, **arguments).draw_times(count, torch.device("cpu"))


def test_whole_times_cover_the_range_evenly():
    t = times(DDPMScheduler(num_train_timesteps=10))
    assert t.dtype == torch.int64
    counts = torch.bincount(t, minlength=10)
    assert len(counts) == 10
    assert (counts - 2000).abs().max() < 200


def test_antithetic_times_come_in_pairs():
    t = times(DDPMScheduler(), 64, times="antithetic")
    assert torch.equal(t[:32] + t[32:], torch.full((32,), 999))
    assert len(times(DDPMScheduler(), 7, times="antithetic")) == 7
    flow = times(FlowMatchEulerDiscreteScheduler(), 64, times="antithetic")
    assert torch.allclose(flow[:32] + flow[32:], torch.tensor(1000.0))


def test_logit_normal_times():
    t = times(FlowMatchEulerDiscreteScheduler(), times="logit_normal", times_mean=0.5, times_std=0.8) / 1000
    logit = torch.log(t / (1 - t))
    assert logit.mean() == pytest.approx(0.5, abs=0.02)
    assert logit.std() == pytest.approx(0.8, abs=0.02)
    assert times(DDPMScheduler(), times="logit_normal", times_mean=30.0).max() == 999


def test_shift_moves_flow_times_to_noise():
    t = times(FlowMatchEulerDiscreteScheduler(shift=3.0)) / 1000
    u = times(FlowMatchEulerDiscreteScheduler()) / 1000
    assert torch.allclose(t, 3 * u / (1 + 2 * u), atol=1e-6)


def test_labels_are_dropped_one_by_one():
    torch.manual_seed(0)
    oracle = Oracle(num_class_embeds=11)
    objective = DiffusionObjective(oracle, DDPMScheduler(), label_dropout=0.25)
    data = batch(8000, labels=10)
    objective(data)
    given = oracle.asked["class_labels"]
    dropped = given == 10
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(given[~dropped], data["label"][~dropped])
    kept = DiffusionObjective(oracle, DDPMScheduler())
    kept(data)
    assert torch.equal(oracle.asked["class_labels"], data["label"])
    always = DiffusionObjective(oracle, DDPMScheduler(), label_dropout=1.0)
    always(data)
    assert (oracle.asked["class_labels"] == 10).all()


def test_labels_reach_only_networks_with_classes():
    oracle = Oracle()
    DiffusionObjective(oracle, DDPMScheduler())(batch(8, labels=10))
    assert oracle.asked["class_labels"] is None
    with pytest.raises(InputError, match="no 'label'"):
        DiffusionObjective(Oracle(num_class_embeds=11), DDPMScheduler())(batch(8))


def test_cached_posteriors_are_drawn_anew():
    oracle = Oracle()
    objective = DiffusionObjective(oracle, DDPMScheduler())
    mean, std = torch.full((4000, 1, 2, 2), 3.0), torch.full((4000, 1, 2, 2), 0.5)
    torch.manual_seed(0)
    draws = [objective.clean({"mean": mean, "std": std}) for _ in range(2)]
    assert not torch.equal(*draws)
    assert draws[0].mean() == pytest.approx(3, abs=0.02)
    assert draws[0].std() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error(prediction):
    torch.manual_seed(0)
    scheduler = DDPMScheduler(prediction_type=prediction)
    oracle, data = Oracle(), batch(16)
    objective = DiffusionObjective(oracle, scheduler, min_snr_gamma=5.0)
    torch.manual_seed(3)
    total = objective(data).total.item()
    t = oracle.asked["timestep"]
    torch.manual_seed(3)
    target = scheduler.training_target(data["x"], torch.randn_like(data["x"]), t)
    level = scheduler.alphas_cumprod[t].double()
    snr = level / (1 - level)
    by = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones(16)}[prediction]
    expected = (snr.clamp(max=5) / by * target.double().square().flatten(1).mean(1)).mean()
    assert total == pytest.approx(expected.item(), rel=1e-4)


def test_min_snr_survives_zero_terminal_snr():
    scheduler = DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    objective = DiffusionObjective(Oracle(), scheduler, min_snr_gamma=5.0, times="logit_normal", times_mean=30.0)
    out = objective(batch(4))
    out.total.backward()
    assert torch.isfinite(out.total)
    assert torch.isfinite(objective.denoiser.scale.grad)


def test_diffusion_refuses():
    with pytest.raises(UnknownChoiceError, match="did you mean 'uniform'"):
        DiffusionObjective(Oracle(), DDPMScheduler(), times="unifrom")
    with pytest.raises(UnknownChoiceError, match="unknown loss"):
        DiffusionObjective(Oracle(), DDPMScheduler(), loss="hinge")
    with pytest.raises(InputError, match=r"probability in \[0, 1\]"):
        DiffusionObjective(Oracle(num_class_embeds=3), DDPMScheduler(), label_dropout=1.5)
    with pytest.raises(InputError, match="needs a denoiser with num_class_embeds"):
        DiffusionObjective(Oracle(), DDPMScheduler(), label_dropout=0.1)
    with pytest.raises(InputError, match="min_snr_gamma must be positive"):
        DiffusionObjective(Oracle(), DDPMScheduler(), min_snr_gamma=0)
    with pytest.raises(InputError, match="epsilon prediction says nothing about x0"):
        DiffusionObjective(Oracle(), DDPMScheduler(rescale_betas_zero_snr=True))

    class Wide(Oracle):
        def forward(self, sample, timestep, class_labels=None):
            return Answer(sample.repeat(1, 2, 1, 1))

    with pytest.raises(InputError, match="differ in shape"):
        DiffusionObjective(Wide(), DDPMScheduler())(batch(2))


def test_a_real_network_learns_the_mean_of_one_picture():
    torch.manual_seed(0)
    net = UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        num_class_embeds=11,
    )
    objective = DiffusionObjective(net, DDPMScheduler(prediction_type="sample"), label_dropout=0.1)
    data = {"x": batch(1)["x"].expand(16, -1, -1, -1), "label": torch.arange(16) % 10}
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        total = objective(data).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert sum(losses[-3:]) < 0.3 * sum(losses[:3])


# --- classification -------------------------------------------------------------------------------


def test_classification():
    network = nn.Flatten()
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    out = ClassificationObjective(network)({"x": logits, "label": torch.tensor([0, 1])})
    assert out.parts["accuracy"].item() == 0.5
    assert out.total.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).item(), rel=1e-6
    )
