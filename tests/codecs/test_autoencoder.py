import pytest
import torch

from latentia import Autoencoder, AutoencoderKL
from latentia.core.protocols import Codec

TINY = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "norm_num_groups": 4,
    "latent_channels": 2,
}


@pytest.fixture
def model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(**TINY).eval()


def test_is_the_kl_autoencoder_without_its_variance(model):
    """With the mean's weights alone the KL autoencoder's mode is the plain latent."""
    kl = AutoencoderKL(**TINY).eval()
    assert Autoencoder.config_arguments() == AutoencoderKL.config_arguments()
    state, wide = model.state_dict(), kl.state_dict()
    assert state.keys() == wide.keys()
    for key, value in state.items():
        wide[key].zero_()
        wide[key][tuple(slice(0, n) for n in value.shape)] = value
    kl.load_state_dict(wide)
    x = torch.randn(2, 3, 8, 8)
    latent = model.encode(x).latent
    torch.testing.assert_close(kl.encode(x).latent_dist.mode(), latent, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(kl(x).sample, model(x).sample, atol=1e-5, rtol=1e-5)


def test_latents_are_deterministic_and_unscaled_until_told(model):
    assert isinstance(model, Codec)
    x = torch.randn(2, 3, 8, 8)
    (latent,) = model.encode(x, return_dict=False)
    assert latent.shape == (2, *model.latent_shape((3, 8, 8)))
    assert torch.equal(model.to_latents(x, torch.Generator()), latent)
    assert torch.equal(model.from_latents(latent), model(x).sample)
    model.set_scale(-0.5, 4.0)
    torch.testing.assert_close(model.to_latents(x), (latent + 0.5) * 4)
    assert torch.equal(model(x, return_dict=False)[0], model.decode(latent).sample)


def test_learns_to_reconstruct():
    torch.manual_seed(0)
    model = Autoencoder(**TINY)
    x = torch.randn(4, 3, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = (model(x).sample - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
