"""Attention by PyTorch's kernels, but where those are slow."""

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

SHORT = 2**20


def dot_product_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """softmax(scale·QKᵀ + mask)·V, shapes and arguments as in `torch.nn.functional.scaled_dot_product_attention`.

    Under autocast on a CPU, which is how small networks train there, as plain matrix products up to `SHORT` scores a
    head: the backward pass of the fused bfloat16 kernel is three to four times slower. Whether gradients are wanted
    makes no difference, so that it makes none to the outcome.
    """
    short = q.shape[-2] * k.shape[-2] <= SHORT
    if short and q.dtype is torch.bfloat16 and q.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scale)
