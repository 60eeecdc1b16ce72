import pytest
import torch

from latentia.codecs.autoencoder import Autoencoder
from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.codecs.vq_model import VQModel
from latentia.data.dataset import TensorDataset
from latentia.errors import InputError
from latentia.training.latents import cache_latents, measure_scale

SMALL = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 2,
}


@pytest.fixture
def data():
    x = torch.randn(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset({"x": x, "label": torch.arange(30)})


@pytest.fixture
def kl():
    torch.manual_seed(0)
    return AutoencoderKL(**SMALL)


def test_posteriors_are_cached_scaled_and_shifted(kl, data):
    kl.set_scale(0.7, 3.0)
    kl.train()
    cached = cache_latents(kl, data, batch_size=7)
    assert kl.training
    with torch.no_grad():
        posterior = kl.eval().encode(data.tensors["x"]).latent_dist
    assert torch.allclose(cached.tensors["mean"], (posterior.mean - 0.7) * 3, atol=1e-5)
    assert torch.allclose(cached.tensors["std"], posterior.std * 3, rtol=1e-4)
    assert torch.equal(cached.tensors["label"], torch.arange(30))
    assert "x" not in cached.tensors
    assert not cached.tensors["mean"].requires_grad


def test_statistics_of_each_channel(data):
    torch.manual_seed(0)
    codec = AutoencoderKL(**SMALL, latents_mean=(1.0, -1.0), latents_std=(2.0, 0.5), scaling_factor=1.0).eval()
    cached = cache_latents(codec, data)
    with torch.no_grad():
        posterior = codec.encode(data.tensors["x"]).latent_dist
    expected = posterior.std / torch.tensor([2.0, 0.5]).view(1, 2, 1, 1)
    assert torch.allclose(cached.tensors["std"], expected, rtol=1e-4)


def test_draws_depend_on_seed_and_sample_alone(kl, data):
    a = cache_latents(kl, data, batch_size=7, seed=3, samples=2)
    b = cache_latents(kl, data, batch_size=30, seed=3, samples=2)
    assert len(a) == 60
    first = {int(i): z for i, z in zip(a.tensors["label"], a.tensors["x"])}
    second = {int(i): z for i, z in zip(b.tensors["label"], b.tensors["x"])}
    assert all(torch.allclose(first[i], second[i], atol=1e-5) for i in range(30))
    other = cache_latents(kl, data, batch_size=30, seed=4, samples=2)
    assert not torch.allclose(b.tensors["x"], other.tensors["x"], atol=1e-2)
    assert not torch.allclose(b.tensors["x"][:30], b.tensors["x"][30:], atol=1e-2)


def test_a_plain_autoencoder_leaves_x(data):
    torch.manual_seed(0)
    codec = Autoencoder(**SMALL).eval()
    cached = cache_latents(codec, data, batch_size=16)
    assert cached.tensors.keys() == {"x", "label"}
    with torch.no_grad():
        assert torch.allclose(cached.tensors["x"], codec.to_latents(data.tensors["x"]), atol=1e-6)


def test_a_vector_quantised_codec_leaves_continuous_latents(data):
    torch.manual_seed(0)
    codec = VQModel(**SMALL, num_vq_embeddings=3).eval()
    codec.set_scale(*measure_scale(codec, data))
    cached = cache_latents(codec, data, batch_size=16)
    assert cached.tensors.keys() == {"x", "label"}
    with torch.no_grad():
        assert torch.allclose(cached.tensors["x"], codec.to_latents(data.tensors["x"]), atol=1e-6)
    assert len(cached.tensors["x"].unique()) > 900  # of 960 numbers; quantised there would be 6
    assert cached.tensors["x"].std(correction=0).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("center", [False, True])
def test_measured_scale_gives_unit_deviation(kl, data, center):
    """std(z·scale) = 1 over all elements of posterior samples (lineage T22)."""
    kl.quant_conv.bias.data += 1.0
    shift, scale = measure_scale(kl, data, batch_size=8, center=center)
    kl.set_scale(shift, scale)
    torch.manual_seed(0)
    with torch.no_grad():
        z = torch.cat([kl.to_latents(data.tensors["x"]) for _ in range(50)])
    assert z.std().item() == pytest.approx(1, abs=0.01)
    assert shift == 0 if not center else z.mean().item() == pytest.approx(0, abs=0.02)


def test_measuring_some_is_spread_over_all(data):
    class Seen(TensorDataset):
        rows: list

        def batch(self, indices):
            self.rows = [*self.rows, *indices]
            return super().batch(indices)

    torch.manual_seed(0)
    seen = Seen(data.tensors)
    seen.rows = []
    measure_scale(Autoencoder(**SMALL), seen, batch_size=4, limit=10)
    assert seen.rows == list(range(0, 30, 3))


def test_refusals(kl, data):
    with pytest.raises(InputError, match="batch_size must be"):
        cache_latents(kl, data, batch_size=0)
    with pytest.raises(InputError, match="samples must be"):
        cache_latents(kl, data, samples=0)
    with pytest.raises(InputError, match="dataset is empty"):
        cache_latents(kl, TensorDataset({"x": torch.zeros(0, 1, 8, 8)}))
    constant = Autoencoder(**SMALL)
    for p in constant.parameters():
        p.data.zero_()
    with pytest.raises(InputError, match="have variance 0"):
        measure_scale(constant, data)
