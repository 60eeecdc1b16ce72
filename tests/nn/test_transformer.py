import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock as PeerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel as PeerTransformer
from torch.nn import functional as F

from latentia.errors import ConfigError, InputError
from latentia.nn import cross_attention
from latentia.nn.cross_attention import CrossAttention, mask_to_bias
from latentia.nn.transformer import GEGLU, BasicTransformerBlock, Transformer2DModel, TransformerStyle


@pytest.mark.parametrize("only_cross", [False, True])
def test_block_equals_the_peer(only_cross):
    torch.manual_seed(0)
    ours = BasicTransformerBlock(4, TransformerStyle(2, 6, only_cross_attention=only_cross)).double()
    theirs = PeerBlock(8, 2, 4, cross_attention_dim=6, only_cross_attention=only_cross).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x, text = torch.randn(2, 9, 8, dtype=torch.double), torch.randn(2, 5, 6, dtype=torch.double)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected = theirs(x, encoder_hidden_states=text)
            torch.testing.assert_close(ours(x, text), expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_transformer_equals_the_peer(linear, heads):
    """Three heads over eight channels: the tokens inside are six wide."""
    torch.manual_seed(0)
    ours = Transformer2DModel(8, 2, TransformerStyle(heads, 6, groups=4, linear_projection=linear)).double()
    theirs = PeerTransformer(
        heads, 8 // heads, 8, num_layers=2, norm_num_groups=4, cross_attention_dim=6, use_linear_projection=linear
    ).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x, text = torch.randn(2, 8, 3, 5, dtype=torch.double), torch.randn(2, 5, 6, dtype=torch.double)
    torch.testing.assert_close(ours(x, text), theirs(x, text).sample, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("linear", [False, True])
def test_keeps_the_layout_of_its_input(linear):
    torch.manual_seed(0)
    model = Transformer2DModel(8, 1, TransformerStyle(2, 6, 4, linear))
    x, text = torch.randn(2, 8, 4, 6), torch.randn(2, 5, 6)
    plain, last = model(x, text), model(x.to(memory_format=torch.channels_last), text)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, plain, atol=1e-6, rtol=1e-5)


def test_softmax_average_in_closed_form():
    """One channel and unit projections: the output is Σ softmax(x yᵀ) y."""
    attention = CrossAttention(1, 1, 1, 1)
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
            layer.weight.fill_(1.0)
        attention.to_out[0].bias.zero_()
    x, y = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([0.5, -1.0, 3.0, 2.0])
    weights = torch.softmax(x[:, None] * y[None, :], dim=-1)
    torch.testing.assert_close(attention(x.view(1, 3, 1), y.view(1, 4, 1)).flatten(), weights @ y)
    bias = mask_to_bias(torch.tensor([[1, 1, 0, 0]]), torch.float)
    assert bias.tolist() == [[[[0, 0, -10000, -10000]]]]
    weights = torch.softmax(x[:, None] * y[None, :2], dim=-1)
    torch.testing.assert_close(attention(x.view(1, 3, 1), y.view(1, 4, 1), bias).flatten(), weights @ y[:2])


def test_geglu_in_closed_form():
    torch.manual_seed(0)
    layer, x = GEGLU(3, 5), torch.randn(2, 3)
    a, b = F.linear(x, layer.proj.weight, layer.proj.bias).split(5, dim=-1)
    expected = a * b * 0.5 * (1 + torch.erf(b / 2**0.5))
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("devices", [frozenset(("cpu",)), frozenset()])
def test_upcast_attention_survives_large_scores(dtype, devices, monkeypatch):
    """Scores of about 10⁶ overflow float16; the kernels here add up in float32, others are made to."""
    monkeypatch.setattr(cross_attention, "FLOAT32_SCORES", devices)
    torch.manual_seed(0)
    attention = CrossAttention(64, 1, 64, upcast=True).to(dtype)
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k):
            layer.weight.copy_(torch.eye(64) * 128)
    x = torch.randn(1, 40, 64).to(dtype)
    scores = attention.to_q(x).double() @ attention.to_k(x).double().mT
    assert scores.max() > 1e6
    out = attention(x, bias=torch.zeros(1, 1, 1, 40, dtype=dtype))
    assert out.dtype == dtype
    reference = attention.double()(x.double())
    torch.testing.assert_close(out.double(), reference, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("heads", [0, -1, 9])
def test_heads_must_fit(heads):
    with pytest.raises(ConfigError, match=f"{heads} attention heads over 8 channels: give 1 to 8"):
        Transformer2DModel(8, 1, TransformerStyle(heads, 6, 4))


def test_a_mask_of_another_length_is_named():
    with pytest.raises(InputError, match="mask over 4 keys meets attention over 5"):
        CrossAttention(8, 2, 4, 6)(torch.zeros(1, 3, 8), torch.zeros(1, 5, 6), torch.zeros(1, 1, 1, 4))
