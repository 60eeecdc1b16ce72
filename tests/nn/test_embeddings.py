import diffusers.models.embeddings as peer
import pytest
import torch

from latentia.errors import ConfigError
from latentia.nn.embeddings import FourierFeatures, TimestepEmbedding, Timesteps, frequencies, sinusoidal_embedding

TIMES = torch.tensor([0.0, 1.0, 17.5, 999.0])


@pytest.mark.parametrize("dim", [4, 7, 32])
@pytest.mark.parametrize(("flip", "shift"), [(True, 0), (False, 1), (True, 0.5)])
def test_sinusoids_equal_the_peer(dim, flip, shift):
    ours = sinusoidal_embedding(TIMES, dim, flip, shift)
    theirs = peer.get_timestep_embedding(TIMES, dim, flip_sin_to_cos=flip, downscale_freq_shift=shift)
    assert torch.equal(ours, theirs)
    assert torch.equal(Timesteps(dim, flip, shift)(TIMES), theirs)


def test_frequencies_need_room():
    with pytest.raises(ConfigError, match="dim 1"):
        frequencies(1)
    with pytest.raises(ConfigError, match="no frequencies"):
        frequencies(2, freq_shift=1)


def test_frequencies_survive_casts_and_the_meta_device():
    plain = Timesteps(32, True, 0)
    assert plain.to(torch.bfloat16).omega.dtype == torch.float32
    with torch.device("meta"):
        born_on_meta = Timesteps(32, True, 0)
    assert torch.equal(born_on_meta.to_empty(device="cpu")(TIMES), plain(TIMES))
    assert torch.equal(plain.to("meta").omega, frequencies(32))
    assert list(plain.state_dict()) == []


def test_fourier_features_equal_the_peer():
    ours = FourierFeatures(8)
    theirs = peer.GaussianFourierProjection(8, scale=16)
    theirs.load_state_dict(ours.state_dict())
    sigma = torch.tensor([0.01, 1.0, 80.0])
    assert torch.equal(ours(sigma), theirs(sigma))
    assert not ours.weight.requires_grad


def test_timestep_embedding_is_linear_silu_linear():
    torch.manual_seed(0)
    mlp = TimestepEmbedding(4, 6)
    x = torch.randn(3, 4)
    expected = mlp.linear_2(torch.nn.functional.silu(mlp.linear_1(x)))
    torch.testing.assert_close(mlp(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), expected)
