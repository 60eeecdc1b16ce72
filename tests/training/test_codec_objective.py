import math

import pytest
import torch
from torch import nn

from latentia.codecs.autoencoder import Autoencoder
from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.codecs.vq_model import VQModel
from latentia.data.dataset import TensorDataset
from latentia.errors import InputError, NonFiniteError, UnknownChoiceError
from latentia.losses.patchgan import PatchDiscriminator
from latentia.losses.perceptual import FeatureDistance
from latentia.metrics.photo_features import PhotoFeatures
from latentia.training.codec_objective import CodecObjective, perplexity
from latentia.training.phase import EMA, Optim, Phase

SIZES = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
    "latent_channels": 3,
    "mid_block_add_attention": False,
}


def codec(kind=VQModel, **more):
    torch.manual_seed(0)
    return kind(**SIZES, **({"num_vq_embeddings": 8} if kind is VQModel else {}), **more)


def judge(norm="batch"):
    torch.manual_seed(1)
    return PatchDiscriminator(1, 16, 1, norm)


def distance():
    torch.manual_seed(2)
    return FeatureDistance(PhotoFeatures(in_channels=1, channels=(4, 6, 6), feature_dim=4))


def pictures(count=8):
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def phase(name="codec", steps=12, objective=None, **changes):
    given = {"batch_size": 4, "optim": Optim(lr=2e-3), "ema": EMA(0.9), **changes}

    def build():
        made = objective() if objective else CodecObjective(codec(), judge(), distance(), start=2, warmup=3, ramp=3)
        return Phase(name, made, TensorDataset({"x": pictures(12)}), steps, **given)

    return [(name, build)]


# What is minimised


def test_reconstruction_alone_is_one_turn():
    objective = CodecObjective(codec(Autoencoder), loss="l2")
    assert objective.turns == ("main",)
    assert objective.turn_modules("main") == ("codec",)
    x = pictures()
    total, parts = objective({"x": x})
    (latents,) = objective.codec.encode(x, return_dict=False)
    (x_hat,) = objective.codec.decode(latents, return_dict=False)
    assert float(total.detach()) == pytest.approx(float((x - x_hat).detach().square().mean()), rel=1e-6)
    assert list(parts) == ["rec"]


def test_vq_adds_its_quantizers_loss_and_reports_the_codes():
    objective = CodecObjective(codec(), quantizer_weight=0.5)
    x = pictures()
    loss = objective({"x": x})
    found = objective.codec(x)
    expected = (found.sample - x).abs().mean() + 0.5 * found.commit_loss
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert set(loss.parts) == {"rec", "codebook", "commitment", "perplexity"}
    tokens = objective.codec.to_tokens(x)
    assert float(loss.parts["perplexity"]) == pytest.approx(objective.codec.quantize.usage(tokens).perplexity, rel=1e-4)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_kl_weight_means_the_same_in_both_reductions(reduction):
    torch.manual_seed(5)
    objective = CodecObjective(codec(AutoencoderKL), None, distance(), reduction=reduction, kl_weight=0.1)
    x = pictures(2)
    torch.manual_seed(6)
    loss = objective({"x": x})
    torch.manual_seed(6)
    (posterior,) = objective.codec.encode(x, return_dict=False)
    (x_hat,) = objective.codec.decode(posterior.sample(), return_dict=False)
    elements = x[0].numel()
    nll = (x - x_hat).abs().mean() + distance()(x, x_hat).mean()
    mean = nll + 0.1 * posterior.kl().mean() / elements
    expected = float(mean.detach()) * (elements if reduction == "sum" else 1)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(loss.parts["kl"]) == pytest.approx(float(posterior.kl().detach().mean()) / elements, rel=1e-5)


def test_latent_diffusions_convention_by_hand():
    """sum over elements of (|x − x̂| + LPIPS) / B + 1e-6 · Σ KL / B, as the authors' LPIPSWithDiscriminator."""
    torch.manual_seed(5)
    objective = CodecObjective(codec(AutoencoderKL), None, distance(), reduction="sum")
    x = pictures(3)
    torch.manual_seed(6)
    total = objective({"x": x}).total.detach()
    torch.manual_seed(6)
    (posterior,) = objective.codec.encode(x, return_dict=False)
    (x_hat,) = objective.codec.decode(posterior.sample(), return_dict=False)
    rec = (x - x_hat).abs() + distance()(x, x_hat)[:, None, None, None]
    theirs = rec.sum() / 3 + 1e-6 * posterior.kl().sum() / 3
    assert float(total) == pytest.approx(float(theirs.detach()), rel=1e-5)


def test_generator_total_with_its_adaptive_weight_by_hand():
    objective = CodecObjective(codec(), judge("none"), distance(), gan_weight=0.6)
    x = pictures(4)
    loss = objective({"x": x}, "generator", 0)
    found = objective.codec(x)
    nll = (found.sample - x).abs().mean() + distance()(x, found.sample).mean()
    gan = -objective.discriminator(found.sample).mean()
    last = objective.codec.decoder.conv_out.weight
    up, down = (torch.autograd.grad(v, last, retain_graph=True)[0].norm() for v in (nll, gan))
    weight = 0.6 * float(up / (down + 1e-4))
    assert float(loss.parts["gan_weight"]) == pytest.approx(weight, rel=1e-4)
    expected = float((nll + found.commit_loss).detach()) + weight * float(gan.detach())
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-4)


def test_discriminator_total_by_hand():
    objective = CodecObjective(codec(), judge("none"), r1_weight=10.0, lecam_weight=0.5)
    assert objective.turn_modules("generator") == ("codec",)
    assert objective.turn_modules("discriminator") == ("discriminator", "lecam")
    x = pictures(4)
    objective({"x": x}, "generator", 0)
    loss = objective({"x": x}, "discriminator", 0)
    with torch.no_grad():
        real, fake = objective.discriminator(x), objective.discriminator(objective.codec(x).sample)
    pair = 0.5 * (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
    expected = float(pair) + 10 * float(loss.parts["r1"]) + 0.5 * float(loss.parts["lecam"])
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-4)
    assert float(loss.parts["real"]) == pytest.approx(float(real.mean()), rel=1e-4)


def test_pull_over_the_steps():
    objective = CodecObjective(codec(), judge(), start=2, warmup=3, ramp=3)
    assert [objective.pull(k) for k in range(10)] == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    published = CodecObjective(codec(), judge(), start=2)
    assert [published.pull(k) for k in range(4)] == [0, 0, 1, 1]
    assert CodecObjective(codec()).pull(9) == 0


def test_both_sides_see_the_same_reconstruction_once(monkeypatch):
    objective = CodecObjective(codec(), judge())
    calls = []
    plain = objective._reconstruct
    monkeypatch.setattr(objective, "_reconstruct", lambda x: calls.append(len(x)) or plain(x))
    micro = [{"x": pictures(4)}, {"x": pictures(6)}]
    for batch in micro:
        objective(batch, "generator", 0)
    for batch in micro:
        objective(batch, "discriminator", 0)
    assert calls == [4, 6]
    assert not objective._made
    objective(micro[0], "generator", 1)
    objective(micro[0], "discriminator", 2)  # another step: made anew
    assert calls == [4, 6, 4, 4]


def test_discriminators_turn_does_not_teach_the_codec():
    objective = CodecObjective(codec(), judge())
    objective({"x": pictures()}, "discriminator", 0).total.backward()
    assert all(p.grad is None for p in objective.codec.parameters())
    assert all(p.grad is not None for p in objective.discriminator.parameters())
    assert objective.codec.training


def test_perplexity():
    assert float(perplexity(torch.tensor([0, 1, 2, 3]), 8)) == pytest.approx(4)
    assert float(perplexity(torch.tensor([[5, 5]]), 8)) == pytest.approx(1)
    assert float(perplexity(torch.tensor([0, 0, 0, 1]), 2)) == pytest.approx(math.exp(0.5623351446), rel=1e-5)


# Trained by the one loop


def test_trains_both_turns_and_the_discriminator_rests_first(lab, tmp_path):
    results = lab.train(phase(), tmp_path, lab.quiet(log_every=1))
    lines = lab.lines(tmp_path)
    assert [line["discriminator/grad_norm"] == 0 for line in lines] == [True] * 2 + [False] * 10
    assert [line["generator/gan_weight"] == 0 for line in lines] == [True] * 5 + [False] * 7
    assert lines[-1]["generator/rec"] < lines[0]["generator/rec"]
    assert set(results["codec"].modules) == {"codec", "discriminator"}
    assert not any(name.startswith("perceptual") for name in results["codec"].averaged)


def test_a_resting_discriminator_does_not_move(lab, tmp_path):
    before = {k: v.clone() for k, v in judge("none").state_dict().items()}
    objective = lambda: CodecObjective(codec(), judge("none"), start=5)  # noqa: E731
    results = lab.train(phase(steps=4, objective=objective), tmp_path, lab.quiet())
    after = results["codec"].modules["discriminator"].state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_killed_and_resumed_is_bit_equal(lab, tmp_path, stop):
    def build():
        return phase(objective=lambda: CodecObjective(
            codec(), judge("none"), distance(), start=2, warmup=3, ramp=3, r1_weight=1.0, lecam_weight=0.1
        ))  # fmt: skip

    whole = lab.weights(lab.train(build(), tmp_path / "whole", lab.quiet(log_every=1)))

    class Stop(Exception):
        pass

    ((name, builder),) = build()

    def stopping():
        made = builder()
        plain = made.objective.forward

        def forward(batch, turn="main", step=0):
            if step == stop and turn == "discriminator":
                raise Stop
            return plain(batch, turn, step)

        made.objective.forward = forward
        return made

    with pytest.raises(Stop):
        lab.train([(name, stopping)], tmp_path / "killed", lab.quiet(save_every=1, log_every=1))
    again = lab.weights(lab.train(build(), tmp_path / "killed", lab.quiet(log_every=1), resume=True))
    lab.assert_same(again, whole)
    assert lab.lines(tmp_path / "killed") == lab.lines(tmp_path / "whole")


@pytest.mark.parametrize("turn", ["generator", "discriminator"])
def test_a_nan_in_either_turn_stops_and_keeps_the_last_good(lab, tmp_path, turn):
    class Poisoned(CodecObjective):
        def forward(self, batch, turn_="main", step=0):
            loss = super().forward(batch, turn_, step)
            return loss._replace(total=loss.total * float("nan")) if (turn_, step) == (turn, 8) else loss

    def until(steps):
        return phase(steps=steps, objective=lambda: Poisoned(codec(), judge(), start=2))

    with pytest.raises(NonFiniteError, match=rf"step 9, turn '{turn}'.*last good checkpoint is .*"):
        lab.train(until(12), tmp_path / "bad", lab.quiet(save_every=4))
    whole = lab.weights(lab.train(until(8), tmp_path / "whole", lab.quiet()))
    kept = lab.train(until(8), tmp_path / "bad", lab.quiet(), resume=True)
    lab.assert_same(lab.weights(kept), whole)


def test_accumulated_batches_train_both_sides(lab, tmp_path):
    lab.train(phase(accumulate=2, steps=6), tmp_path, lab.quiet(log_every=1))
    assert lab.lines(tmp_path)[-1]["discriminator/grad_norm"] > 0


def test_bf16(lab, tmp_path):
    lab.train(phase(steps=8), tmp_path, lab.quiet(precision="bf16", log_every=1))
    assert all(math.isfinite(line["generator/loss"]) for line in lab.lines(tmp_path))


# Bad input


def test_what_it_does_not_train():
    with pytest.raises(InputError, match="got Linear; FlowMo has objectives of its own"):
        CodecObjective(nn.Linear(2, 2))
    with pytest.raises(InputError, match="lookup_from_codebook"):
        CodecObjective(codec(lookup_from_codebook=True))
    with pytest.raises(InputError, match="batch norm mixes pictures"):
        CodecObjective(codec(), judge("batch"), r1_weight=1.0)
    with pytest.raises(UnknownChoiceError, match="did you mean 'hinge'"):
        CodecObjective(codec(), judge(), gan="hinged")
    with pytest.raises(UnknownChoiceError, match="loss"):
        CodecObjective(codec(), loss="l3")


@pytest.mark.parametrize("name", ["perceptual_weight", "kl_weight", "quantizer_weight", "gan_weight", "r1_weight"])
def test_weights_are_not_negative(name):
    with pytest.raises(InputError, match=name):
        CodecObjective(codec(), judge("none"), **{name: -1.0})


@pytest.mark.parametrize("name", ["start", "warmup", "ramp"])
def test_steps_are_counts(name):
    with pytest.raises(InputError, match=name):
        CodecObjective(codec(), judge(), **{name: -1})


def test_pictures_that_do_not_fit():
    objective = CodecObjective(codec(), judge())
    with pytest.raises(InputError, match="divisible by 2"):
        objective({"x": torch.zeros(1, 1, 15, 16)}, "generator")
    with pytest.raises(InputError, match="no 'x'"):
        objective({"label": torch.zeros(1)}, "generator")


def test_settings_name_what_a_resumed_run_must_agree_on():
    said = CodecObjective(codec(), judge(), distance(), start=7).settings()
    assert said["perceptual"] == "photo_features"
    assert said["start"] == 7
    assert "gan" not in CodecObjective(codec()).settings()
