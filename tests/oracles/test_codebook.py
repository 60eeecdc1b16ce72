"""Facts about vector quantisation that need no training (T12)."""

import math

import pytest
import torch

from latentia.codecs.quantizers.vq import VectorQuantizer
from latentia.codecs.vq_model import VQModel


def quantizer(codes: torch.Tensor, **arguments: object) -> VectorQuantizer:
    vq = VectorQuantizer(*codes.shape, **arguments).double()
    vq.embedding.weight.data.copy_(codes)
    return vq


@pytest.fixture
def vq() -> VectorQuantizer:
    return quantizer(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)))


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.double).requires_grad_()


def test_straight_through_is_the_identity_for_z_and_nothing_for_the_codes(vq, z):
    jacobian = torch.autograd.functional.jacobian(lambda t: vq(t).values.flatten(), z).flatten(1)
    assert torch.equal(jacobian, torch.eye(z.numel(), dtype=torch.double))
    vq(z).values.sum().backward()
    assert vq.embedding.weight.grad is None


def test_the_codebook_learns_from_its_own_term_alone(vq, z):
    """∂loss/∂e_k = 2/n Σ_{z assigned to k} (e_k − z), whatever β is; ∂loss/∂z = β·2/n·(z − e)."""
    out = vq(z)
    out.loss.backward()
    rows, n = z.detach().movedim(1, -1).flatten(0, -2), z.numel()
    codes, index = vq.embedding.weight.detach(), out.indices.flatten()
    expected = torch.zeros_like(codes).index_add_(0, index, 2 / n * (codes[index] - rows))
    torch.testing.assert_close(vq.embedding.weight.grad, expected)
    torch.testing.assert_close(z.grad, 0.25 * 2 / n * (z.detach() - out.values.detach()))


def test_beta_on_the_other_term_is_the_same_gradient_with_other_weights(vq, z):
    right, legacy = (quantizer(vq.embedding.weight.detach(), legacy_beta=flag) for flag in (False, True))
    gradients = []
    for each in (right, legacy):
        z.grad = None
        each(z).loss.backward()
        gradients.append((z.grad, each.embedding.weight.grad))
    torch.testing.assert_close(gradients[1][0], gradients[0][0] / 0.25)
    torch.testing.assert_close(gradients[1][1], gradients[0][1] * 0.25)


def test_one_code_without_commitment_goes_to_the_mean(z):
    vq = quantizer(torch.tensor([[5.0, -5.0]]), beta=0.0)
    optimizer = torch.optim.SGD(vq.parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        vq(z).loss.backward()
        optimizer.step()
    torch.testing.assert_close(vq.embedding.weight[0], z.detach().mean((0, 2)))
    assert z.grad.abs().max() == 0


def test_uniform_usage_and_collapse():
    vq = VectorQuantizer(1024, 4)
    uniform = vq.usage(torch.arange(1024).repeat(3))
    assert math.log(uniform.perplexity) == pytest.approx(math.log(1024))
    assert vq.usage(torch.zeros(1024, dtype=torch.int64)).perplexity == 1.0


def test_a_small_batch_is_not_a_collapse():
    """64 vectors cannot use more than 64 of 1024 codes."""
    vq = VectorQuantizer(1024, 4)
    usage = vq.usage(torch.randperm(1024, generator=torch.Generator().manual_seed(0))[:64])
    assert usage.perplexity == pytest.approx(64)
    assert usage.ceiling == 64


def test_bits_of_a_vqgan_picture():
    """f = 16, 256×256, K = 1024: 2560 bits."""
    with torch.device("meta"):
        vqgan = VQModel(
            down_block_types=("DownEncoderBlock2D",) * 5,
            up_block_types=("UpDecoderBlock2D",) * 5,
            block_out_channels=(32,) * 5,
            latent_channels=256,
            num_vq_embeddings=1024,
        )
    shape = vqgan.latent_shape((3, 256, 256))
    assert shape == (256, 16, 16)
    assert vqgan.bits_per_element() * math.prod(shape) == pytest.approx(2560)
