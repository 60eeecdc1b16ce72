"""Attention by PyTorch's kernels, but where those are slow."""

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


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

    In bfloat16 on a CPU, while gradients are wanted, as plain matrix products: the backward pass of the fused kernel
    is three to four times slower.
    """
    if q.dtype is torch.bfloat16 and q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, scale=scale)
