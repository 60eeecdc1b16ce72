import pytest
import torch
from diffusers.models.attention_processor import Attention

from latentia.errors import ConfigError
from latentia.nn.attention import SelfAttention, rename_legacy_attention


def peer_of(ours: SelfAttention, channels: int, head_dim: int, groups: int | None, scale: float) -> Attention:
    theirs = Attention(
        channels,
        heads=channels // head_dim,
        dim_head=head_dim,
        norm_num_groups=groups,
        eps=1e-6,
        rescale_output_factor=scale,
        residual_connection=True,
        bias=True,
        _from_deprecated_attn_block=True,
    )
    theirs.load_state_dict(ours.state_dict())
    return theirs


@pytest.mark.parametrize(("head_dim", "groups", "scale"), [(16, 4, 1.0), (8, 2, 1.5), (5, 4, 1.0), (16, None, 2.0)])
def test_equals_the_peer(head_dim, groups, scale):
    torch.manual_seed(0)
    ours = SelfAttention(16, head_dim, groups, output_scale=scale).double()
    x = torch.randn(2, 16, 3, 5, dtype=torch.double)
    theirs = peer_of(ours, 16, head_dim, groups, scale).double()
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=1e-12)


def test_softmax_average_in_closed_form():
    """One channel, no normalisation, unit projections: the output is x + Σ softmax(x xᵀ) x."""
    attention = SelfAttention(1, groups=None)
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
            layer.weight.fill_(1.0)
            layer.bias.zero_()
    x = torch.tensor([0.0, 1.0, 2.0, -1.0])
    weights = torch.softmax(x[:, None] * x[None, :], dim=-1)
    torch.testing.assert_close(attention(x.view(1, 1, 2, 2)).flatten(), x + weights @ x)


def test_keeps_the_layout_of_its_input():
    torch.manual_seed(0)
    attention = SelfAttention(8, 4, 4)
    x = torch.randn(2, 8, 4, 4)
    last = attention(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, attention(x), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head_dim", [0, -8, 17])
def test_heads_must_fit(head_dim):
    with pytest.raises(ConfigError, match="does not fit 16 channels"):
        SelfAttention(16, head_dim)


def test_legacy_names_are_converted_and_others_left_alone():
    ours = SelfAttention(8, groups=4)
    modern = {f"mid_block.attentions.0.{k}": v for k, v in ours.state_dict().items()}
    modern["attentions_of_others.query.weight"] = torch.zeros(1)
    legacy = {}
    for key, value in modern.items():
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
            key = key.replace(f".{new}.", f".{old}.") if "mid_block" in key else key
        legacy[key] = value[:, :, None, None] if value.ndim == 2 else value
    assert "mid_block.attentions.0.proj_attn.weight" in legacy
    renamed = rename_legacy_attention(legacy)
    assert set(renamed) == set(modern)
    for key, value in modern.items():
        assert torch.equal(renamed[key], value)
    assert rename_legacy_attention(modern) == modern
