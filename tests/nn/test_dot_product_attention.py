import pytest
import torch
from torch.nn import functional as F

from latentia.nn.dot_product_attention import dot_product_attention


@pytest.mark.parametrize("causal", [False, True])
def test_is_softmax_of_scores_times_values(causal):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 5, 8, dtype=torch.double).unbind(0)
    scores = 0.5 * q @ k.transpose(-1, -2)
    if causal:
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    wanted = scores.softmax(-1) @ v
    assert torch.allclose(dot_product_attention(q, k, v, is_causal=causal, scale=0.5), wanted, atol=1e-12)


def test_autocast_on_a_cpu_learns_by_plain_products():
    """The fused kernel's node is in the graph of float32 alone; both give the same numbers to bfloat16's precision."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 16, 8).unbind(0)

    def backward_of(dtype):
        given = [part.to(dtype).requires_grad_() for part in (q, k, v)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            out = dot_product_attention(*given)
            with torch.no_grad():
                assert torch.equal(dot_product_attention(*given), out)
        out.float().square().sum().backward()
        return type(out.grad_fn).__name__, out.detach().float(), given[0].grad.float()

    plain, coarse, coarse_grad = backward_of(torch.bfloat16)
    fused, fine, fine_grad = backward_of(torch.float32)
    assert "FlashAttention" in fused
    assert "FlashAttention" not in plain
    assert (coarse - fine).abs().max() < 0.03
    assert (coarse_grad - fine_grad).abs().max() < 0.05 * fine_grad.abs().max()
    half = q.bfloat16(), k.bfloat16(), v.bfloat16()
    assert torch.equal(dot_product_attention(*half), F.scaled_dot_product_attention(*half))


def test_long_sequences_are_left_to_the_fused_kernel(monkeypatch):
    from latentia.nn import dot_product_attention as module

    monkeypatch.setattr(module, "SHORT", 16 * 16 - 1)
    q = torch.randn(1, 2, 16, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = dot_product_attention(q, q, q)
        assert "FlashAttention" in type(out.grad_fn).__name__
