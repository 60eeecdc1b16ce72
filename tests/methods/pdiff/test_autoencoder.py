import math
import time

import pytest
import torch

from latentia.core.protocols import Codec
from latentia.errors import ConfigError, InputError, UnknownChoiceError
from latentia.methods.pdiff.autoencoder import ParameterAutoencoder
from latentia.methods.pdiff.halves import instance_lengths
from latentia.methods.pdiff.normalise import Standardiser
from latentia.methods.pdiff.objectives import ParameterReconstructionObjective, explained_variance
from latentia.methods.pdiff.presets import PRESETS, preset

SMALL = {
    "straight": {"encoder_channels": (4, 4), "decoder_channels": (4, 4), "strides": (2, 2), "latent_dim": 8},
    "batch": {
        "encoder_channels": (4, 4),
        "decoder_channels": (4, 4),
        "strides": (2, 2),
        "latent_dim": 8,
        "latent_channels": 1,
    },
    "instance": {"encoder_channels": (4, 3), "decoder_channels": (3, 8), "kernel_size": 3},
}
every_kind = pytest.mark.parametrize("kind", SMALL)


def build(kind, size=50, **changes):
    torch.manual_seed(0)
    return ParameterAutoencoder(size, kind, **{**SMALL[kind], **changes})


def trajectory(count=300, size=2048, steps=60.0, spread=0.44, seed=0):
    """A base vector and an Ornstein–Uhlenbeck walk around it; about 13 % of the variance lies between the rows."""
    generator = torch.Generator().manual_seed(seed)
    base, x = torch.randn(2, size, generator=generator)
    keep, rows = math.exp(-1 / steps), []
    for _ in range(count):
        rows.append(x)
        x = keep * x + math.sqrt(1 - keep**2) * torch.randn(size, generator=generator)
    return math.sqrt(1 - spread**2) * base + spread * torch.stack(rows)


def train(autoencoder, x, steps, lr, **noise):
    objective = ParameterReconstructionObjective(autoencoder, **noise)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr, weight_decay=0, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    torch.manual_seed(1)
    for _ in range(steps):
        loss = objective({"x": x[torch.randint(0, len(x), (50,))]}).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def explained(name, v, steps, lr, **widths):
    """Train a preset's autoencoder; the share of the variance between the checkpoints that it rebuilds."""
    chosen = preset(name)
    torch.manual_seed(0)
    autoencoder = chosen.build_autoencoder(v.shape[1], **widths)
    standardiser = Standardiser.fit(v, chosen.standardise, [slice(0, v.shape[1])])
    train(autoencoder, standardiser(v), steps, lr, **chosen.noise)
    rebuilt = standardiser.inverse(autoencoder.decode_all(autoencoder.encode_all(standardiser(v))))
    return explained_variance(v, rebuilt)


# The published networks ----------------------------------------------------------------------------------


def test_v1_has_the_published_lengths():
    assert instance_lengths(2048, 5, 4) == [2500, 499, 99, 19, 3]
    assert instance_lengths(2048, 3, 4) == [2106, 702, 234, 78, 26]
    model = preset("v1").build_autoencoder(2048)
    assert model.latents == (4, 3)
    convolutions = [layer for layer in model.decoder.layers if isinstance(layer, torch.nn.Conv1d)]
    assert [layer.padding[0] for layer in convolutions] == [4, 4, 4, 5]
    assert model.decoder.layers(torch.zeros(1, 4, 3).normal_()).shape == (1, 1, 2501)
    small = preset("v1").build_autoencoder(
        2048, kernel_size=3, encoder_channels=(2,) * 4, decoder_channels=(2, 64, 64, 8)
    )
    assert small.latents == (2, 26)


def test_v1_is_blind_to_mean_and_scale_and_bounded():
    model, x = build("instance", size=54).eval(), torch.randn(4, 54)  # 54 = 6·9: nothing is padded
    z = model.to_latents(x)
    assert z.abs().max() < 1
    torch.testing.assert_close(model.to_latents(3 * x + 2), z, atol=1e-3, rtol=0)


def test_v2_has_the_published_size():
    model = preset("v2").build_autoencoder(2048)
    assert model.latents == (1, 128)
    assert model.num_parameters() == 2_182_689  # 2.20 M with the log-variance layer, which the default never uses
    assert model.encoder.layers(torch.zeros(2, 1, 2048)).shape == (2, 32, 64)
    assert [type(layer).__name__ for layer in model.encoder.layers[:3]] == ["Conv1d", "BatchNorm1d", "LeakyReLU"]
    odd = preset("v2").build_autoencoder(2049, encoder_channels=(2,) * 5, decoder_channels=(2,) * 5)
    assert odd.encoder.padding == 63  # to a multiple of 64


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_parts_that_fit(name):
    chosen = preset(name)
    narrow = {"decoder_channels": (4, 4, 4, 4)} if name == "v1" else {}
    model = chosen.build_autoencoder(300, **narrow)
    z = model.to_latents(torch.randn(2, 300))
    unet = chosen.build_unet(model.latents, block_out_channels=(8, 8))
    assert unet(z, 5).sample.shape == z.shape
    scheduler = chosen.build_scheduler()
    assert (scheduler.config.num_train_timesteps, scheduler.config.beta_start, scheduler.config.beta_end) == (
        1000,
        1e-4,
        0.02,
    )
    ParameterReconstructionObjective(model, **chosen.noise)


def test_unknown_preset():
    with pytest.raises(UnknownChoiceError, match="known: digits, v1, v2"):
        preset("v3")


# All kinds -----------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("size", [1, 7, 50, 200])
def test_any_size_round_trips_in_shape(kind, size):
    model = build(kind, size).eval()
    z = model.to_latents(torch.randn(3, size))
    assert tuple(z.shape[1:]) == model.latents == model.latent_shape((size,))
    assert model.from_latents(z).shape == model(torch.randn(3, size)).sample.shape == (3, size)
    assert isinstance(model, Codec)


@every_kind
def test_gradient_reaches_every_parameter(kind):
    model = build(kind).train()
    for parameter in model.parameters():
        parameter.data = parameter.data if parameter.any() else torch.randn_like(parameter)
    (model(torch.randn(4, 50)).sample * torch.randn(4, 50)).sum().backward()
    blind = ("bias",) if kind != "straight" else ()  # a norm takes out the offset of the convolution before it
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0 or key.endswith(blind), key


@every_kind
def test_folder_round_trip(kind, tmp_path):
    model, x = build(kind).eval(), torch.randn(2, 50)
    model.save_pretrained(tmp_path)
    again = ParameterAutoencoder.from_pretrained(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(x).sample, model(x).sample)


@every_kind
def test_batches_do_not_matter_in_evaluation(kind):
    model, x = build(kind), torch.randn(7, 50)
    model(x)  # moves the statistics of batch normalisation
    together = model.encode_all(x)
    torch.testing.assert_close(model.encode_all(x, batch_size=2), together, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.decode_all(together, batch_size=3), model.decode_all(together), atol=1e-5, rtol=0)
    assert model.training


def test_straight_starts_as_two_matrices():
    model, x = build("straight").eval(), torch.randn(3, 50)
    z = x @ model.encoder.straight.weight.T + model.encoder.straight.bias
    torch.testing.assert_close(model.to_latents(x).flatten(1), z)
    expected = z @ model.decoder.straight.weight.T + model.decoder.straight.bias
    torch.testing.assert_close(model(x).sample, expected)


def test_batch_statistics_in_evaluation():
    model, x = build("batch", batch_statistics=True).eval(), torch.randn(4, 50)
    alone = model.from_latents(model.to_latents(x))
    assert torch.equal(model.from_latents(model.to_latents(x)[:2]), alone[:2])  # decoded one by one
    assert (model.to_latents(x[:2]) - model.to_latents(x)[:2]).abs().max() > 1e-4  # encoded together


# What it is for ------------------------------------------------------------------------------------------


def test_ours_explains_the_variance_between_checkpoints_and_v2_does_not():
    v = trajectory(120, 384)
    assert explained("digits", v, 80, 6e-3) > 0.9
    narrow = {"encoder_channels": (4, 8, 8, 8, 4), "decoder_channels": (4, 8, 8, 8, 4)}
    assert explained("v2", v, 80, 2e-3, **narrow) < 0.5


@pytest.mark.slow
def test_ours_at_full_size_in_15_cpu_seconds():
    started = time.process_time()
    training = preset("digits").autoencoder_training
    assert explained("digits", trajectory(), training.steps, training.optim.lr) > 0.95
    assert time.process_time() - started < 15


# Bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        ("straight", {"kind": "strait"}, UnknownChoiceError, "did you mean 'straight'"),
        ("straight", {"size": 0}, ConfigError, "size"),
        ("straight", {"strides": (2,)}, ConfigError, "equally long"),
        ("straight", {"kernel_size": 4}, ConfigError, "odd"),
        ("straight", {"latent_channels": 3}, ConfigError, "does not divide"),
        ("straight", {"batch_statistics": True}, ConfigError, "no batch normalisation"),
        ("instance", {"decoder_channels": (4, 8)}, ConfigError, r"encoder_channels\[-1\] = 3"),
        ("instance", {"decoder_channels": (3,)}, ConfigError, "equally long"),
        ("instance", {"kernel_size": 2}, ConfigError, "odd"),
        ("batch", {"encoder_channel": (4,)}, ConfigError, "did you mean 'encoder_channels'"),
    ],
)
def test_bad_arguments(kind, changes, error, message):
    with pytest.raises(error, match=message):
        ParameterAutoencoder(**{"size": 50, "kind": kind, **SMALL[kind], **changes})


@every_kind
def test_bad_shapes(kind):
    model = build(kind)
    for bad in (torch.zeros(2, 51), torch.zeros(50), torch.zeros(2, 1, 50)):
        with pytest.raises(InputError, match=r"expected \(batch, 50\)"):
            model.to_latents(bad)
    with pytest.raises(InputError, match="expected"):
        model.from_latents(torch.zeros(2, 9, 9))
    with pytest.raises(InputError, match=r"expected \(50,\)"):
        model.latent_shape((51,))
