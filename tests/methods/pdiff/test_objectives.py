import json

import pytest
import torch

from latentia.data.dataset import TensorDataset
from latentia.denoisers.unet_1d import UNet1D
from latentia.errors import InputError, UnknownChoiceError
from latentia.methods.pdiff.autoencoder import ParameterAutoencoder
from latentia.methods.pdiff.normalise import Whitener
from latentia.methods.pdiff.objectives import (
    LatentPriorObjective,
    ParameterReconstructionObjective,
    explained_variance,
)
from latentia.schedulers.ddpm import DDPMScheduler
from latentia.training.loop import train
from latentia.training.phase import EMA, Optim, Phase
from latentia.training.settings import Settings


def autoencoder(size=20):
    torch.manual_seed(0)
    return ParameterAutoencoder(size, encoder_channels=(4,), decoder_channels=(4,), strides=(2,), latent_dim=8)


class Identity(ParameterAutoencoder):
    """Latents are the vector itself, so that the noise can be measured."""

    def to_latents(self, x, generator=None):
        self.seen = x
        return x.unsqueeze(1)

    def from_latents(self, z, generator=None):
        return z.squeeze(1)


def identity(size=2000):
    return Identity(size, encoder_channels=(1,), decoder_channels=(1,), strides=(1,), latent_dim=1, latent_channels=1)


def test_without_noise_it_is_the_squared_error():
    model, x = autoencoder(), torch.randn(6, 20)
    loss = ParameterReconstructionObjective(model, 0, 0)({"x": x})
    expected = (model(x).sample - x).square().mean()
    torch.testing.assert_close(loss.total, expected)
    between = (x - x.mean(0)).square().sum(0).mean() / 5
    torch.testing.assert_close(loss.parts["explained"], 1 - expected.detach() / between)
    assert not loss.parts["mse"].requires_grad


@pytest.mark.parametrize(("parameter", "latent"), [(0.0, 0.1), (0.5, 0.0), (0.3, 0.4)])
def test_additive_noise_has_the_variance_it_says(parameter, latent):
    torch.manual_seed(0)
    loss = ParameterReconstructionObjective(identity(), parameter, latent)({"x": torch.randn(10, 2000)})
    assert loss.total.item() == pytest.approx(parameter**2 + latent**2, rel=0.05)


def test_mixed_noise_shrinks_and_clamps():
    """E((1−σ)x + σε − x)² = σ²(x² + 1) while nothing is clamped."""
    torch.manual_seed(0)
    x = torch.full((10, 2000), 0.1)
    objective = ParameterReconstructionObjective(identity(), 0, 0.2, noise="mix")
    assert objective({"x": x}).total.item() == pytest.approx(0.04 * 1.01, rel=0.05)
    clamped = ParameterReconstructionObjective(identity(), 0, 0.0, noise="mix")({"x": torch.full((2, 2000), 3.0)})
    assert clamped.total.item() == pytest.approx(4.0)


def test_the_later_codes_target_is_noisy():
    torch.manual_seed(0)
    x = torch.randn(4, 2000)
    assert ParameterReconstructionObjective(identity(), 0.5, 0, noisy_target=True)({"x": x}).total.item() == 0
    assert ParameterReconstructionObjective(identity(), 0.5, 0)({"x": x}).total.item() == pytest.approx(0.25, rel=0.1)


def test_a_batch_that_does_not_vary_explains_nothing():
    objective = ParameterReconstructionObjective(autoencoder())
    assert objective({"x": torch.ones(4, 20)}).parts["explained"] == 0
    assert set(objective({"x": torch.ones(1, 20)}).parts) == {"mse"}


def test_explained_variance():
    v = torch.randn(50, 30) + 100
    assert explained_variance(v, v) == 1
    assert explained_variance(v, v.mean(0).expand_as(v)) == pytest.approx(0, abs=1e-6)
    half = v.mean(0) + 0.5 * (v - v.mean(0))
    assert explained_variance(v, half) == pytest.approx(0.75, abs=1e-4)
    with pytest.raises(InputError, match="do not differ"):
        explained_variance(v[:1], v[:1])
    with pytest.raises(InputError, match=r"\(50, 30\) and \(49, 30\)"):
        explained_variance(v, v[1:])


def test_shared_time_is_the_first_samples():
    times = []

    class Spy(UNet1D):
        def forward(self, sample, timestep, *args, **kwargs):
            times.append(timestep)
            return super().forward(sample, timestep, *args, **kwargs)

    unet = Spy(in_channels=2, out_channels=2, block_out_channels=(8,), norm_num_groups=4)
    for shared in (False, True):
        LatentPriorObjective(unet, DDPMScheduler(), shared_time=shared)({"x": torch.randn(16, 2, 4)})
    assert len(times[0].unique()) > 8
    assert len(times[1]) == 16
    assert len(times[1].unique()) == 1
    assert LatentPriorObjective(unet, DDPMScheduler(), shared_time=True).settings()["shared_time"]


def test_task_codes_reach_the_network():
    unet = UNet1D(
        4,
        2,
        2,
        block_out_channels=(8,),
        norm_num_groups=4,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=3,
    )
    objective = LatentPriorObjective(unet, DDPMScheduler())
    loss = objective({"x": torch.randn(6, 2, 4), "label": torch.eye(3).repeat(2, 1)}).total
    loss.backward()
    assert loss.item() == pytest.approx(1, abs=0.5)


def test_both_phases_run_in_the_one_loop(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(30, 2) @ torch.randn(2, 20)
    model, scheduler = autoencoder(), DDPMScheduler(clip_sample=False)
    optim = Optim(lr=1e-2)

    def first():
        return Phase("autoencoder", ParameterReconstructionObjective(model), TensorDataset({"x": x}), 30, 16, optim)

    def second():
        z = model.encode_all(x)
        white = Whitener.fit(z)(z)
        unet = UNet1D(1, 8, 8, block_out_channels=(16,), layers_per_block=1)
        return Phase(
            "unet", LatentPriorObjective(unet, scheduler), TensorDataset({"x": white}), 20, 16, optim, ema=EMA()
        )

    settings = Settings(device="cpu", progress=False, tensorboard=False, log_every=10)
    results = train([("autoencoder", first), ("unet", second)], tmp_path / "run", settings)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    codec = [line for line in lines if line["phase"] == "autoencoder"]
    assert codec[-1]["explained"] > max(codec[0]["explained"], 0.5)
    assert codec[-1]["mse"] < codec[0]["mse"]
    assert set(results["unet"].averaged) == {"denoiser"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"parameter_noise": -0.1}, InputError, "parameter_noise"),
        ({"latent_noise": float("nan")}, InputError, "latent_noise"),
        ({"latent_noise": 1.5, "noise": "mix"}, InputError, "at most|between 0 and 1"),
        ({"noise": "additiv"}, UnknownChoiceError, "did you mean 'additive'"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        ParameterReconstructionObjective(autoencoder(), **arguments)
    with pytest.raises(InputError, match="has no 'x'"):
        ParameterReconstructionObjective(autoencoder())({"vectors": torch.zeros(2, 20)})
