import diffusers.models.autoencoders.vae as peer
import pytest
import torch

from latentia.codecs.quantizers.quantizer import Quantizer, Usage
from latentia.codecs.quantizers.vq import VectorQuantizer
from latentia.errors import ConfigError, InputError


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vq() -> VectorQuantizer:
    torch.manual_seed(0)
    found = VectorQuantizer(11, 3)
    torch.nn.init.normal_(found.embedding.weight)
    return found


@pytest.mark.parametrize("positions", [(), (7,), (4, 5), (2, 3, 4)])
def test_contract(vq, positions):
    z = normal(2, 3, *positions).requires_grad_()
    out = vq(z)
    assert isinstance(vq, Quantizer)
    assert out.values.shape == z.shape
    assert out.indices.shape == (2, *positions)
    assert out.indices.dtype == torch.int64
    assert torch.equal(out.values, vq.embed(out.indices))
    assert torch.equal(out.indices, vq.assign(z))
    assert out.loss.shape == ()
    assert out.loss.item() == pytest.approx((out.parts["codebook"] + 0.25 * out.parts["commitment"]).item())
    assert not any(part.requires_grad for part in out.parts.values())
    assert vq.bits_per_position() == pytest.approx(3.459432)
    assert vq.tokens == 1


@pytest.mark.parametrize("beta", [0.25, 1.5])
@pytest.mark.parametrize("legacy", [False, True])
def test_equals_the_peer_with_beta_on_either_term(vq, beta, legacy):
    ours = VectorQuantizer(11, 3, beta, legacy).double()
    theirs = peer.VectorQuantizer(11, 3, beta, legacy=legacy).double()
    for quantizer in (ours, theirs):
        quantizer.load_state_dict(vq.state_dict())
    gradients = []
    for quantizer in (ours, theirs):
        z = normal(2, 3, 4, 5).double().requires_grad_()
        values, second, third = tuple(quantizer(z))[:3]
        indices, loss = (third[2], second) if quantizer is theirs else (second, third)
        (loss + (values**3).sum()).backward()
        gradients.append((values, indices.flatten(), loss, z.grad, quantizer.embedding.weight.grad))
    for mine, other in zip(*gradients):
        torch.testing.assert_close(mine, other, atol=1e-12, rtol=1e-12)
    assert gradients[0][4].abs().max() > 0


def test_loss_without_gradients_is_the_same(vq):
    z = normal(2, 3, 4, 5)
    with torch.no_grad():
        silent = vq(z)
    assert silent.loss.item() == pytest.approx(vq(z).loss.item())
    assert silent.parts["commitment"] == silent.parts["codebook"]


def test_starts_uniform_within_one_over_k():
    torch.manual_seed(0)
    weight = VectorQuantizer(50, 400).embedding.weight
    assert weight.abs().max() <= 1 / 50
    assert weight.std().item() == pytest.approx(1 / 50 / 3**0.5, rel=0.02)


def test_nan_does_not_become_a_code(vq):
    z = normal(1, 3, 4)
    z[0, 1, 2] = float("nan")
    with torch.no_grad():
        values = vq(z).values
    assert values[0, 1, 2].isnan()
    assert values[..., [0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(vq, dtype):
    half = VectorQuantizer(11, 3).to(dtype)
    half.load_state_dict(vq.state_dict())
    z = normal(2, 3, 8, 8).to(dtype)
    out = half(z)
    assert out.values.dtype == dtype
    assert out.loss.dtype == torch.float32
    wide = VectorQuantizer(11, 3)
    wide.load_state_dict(half.state_dict())
    assert torch.equal(out.indices, wide(z.float()).indices)
    assert out.loss.item() == pytest.approx(wide(z.float()).loss.item(), rel=1e-6)


def test_keeps_the_memory_format(vq):
    z = normal(2, 3, 4, 5)
    assert vq(z).values.is_contiguous()
    assert vq.embed(vq.assign(z)).is_contiguous()
    last = z.to(memory_format=torch.channels_last)
    assert vq(last).values.is_contiguous(memory_format=torch.channels_last)


def test_usage_stands_beside_its_ceiling(vq):
    assert vq.usage(torch.arange(11)) == Usage(pytest.approx(11), 11, 11, 11)
    assert vq.usage(torch.arange(4).view(2, 2)) == Usage(pytest.approx(4), 4, 4, 11)
    assert vq.usage(torch.full((3, 9), 7)) == Usage(1.0, 11, 1, 11)
    assert vq.usage(torch.tensor([0, 0, 0, 1])).perplexity == pytest.approx(1.754765)
    assert vq.usage(torch.empty(0, dtype=torch.int64)) == Usage(0.0, 0, 0, 11)
    assert Usage.of_counts(torch.tensor([3, 0, 1]), 3) == Usage(pytest.approx(1.754765), 3, 2, 3)


def test_empty_batches(vq):
    indices = vq.assign(torch.zeros(0, 3, 4, 4))
    assert indices.shape == (0, 4, 4)
    assert vq.embed(indices).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("z", [torch.zeros(3), torch.zeros(2, 4, 5), torch.zeros(2, 3, 5, dtype=torch.int64)])
def test_wrong_vectors(vq, z):
    for call in (vq, vq.assign):
        with pytest.raises(InputError, match=r"expected floats of shape \(batch, 3, \.\.\.\)"):
            call(z)


def test_wrong_tokens(vq):
    for call in (vq.embed, vq.usage):
        with pytest.raises(InputError, match="expected integers"):
            call(torch.zeros(2, 3))
        with pytest.raises(InputError, match="run from 0 to 11, but the 11 codes from 0 to 10"):
            call(torch.tensor([[0, 11]]))
        with pytest.raises(InputError, match="run from -1 to 5"):
            call(torch.tensor([[5, -1]]))


@pytest.mark.parametrize("given", [(0, 3), (8, 0), (2.5, 3), (8, True)])
def test_wrong_sizes(given):
    with pytest.raises(ConfigError, match="must be an integer of at least 1"):
        VectorQuantizer(*given)


@pytest.mark.parametrize("beta", [-1.0, float("nan"), "much"])
def test_wrong_weights(beta):
    with pytest.raises(InputError, match="beta must be"):
        VectorQuantizer(8, 3, beta)
