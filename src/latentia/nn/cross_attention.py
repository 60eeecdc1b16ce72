"""Attention between sequences of tokens: to themselves, or to a context such as a text."""

import torch
from torch import nn

from latentia.core.execution import SliceableAttention
from latentia.errors import InputError
from latentia.nn.attention import attend

FLOAT32_SCORES = frozenset(("cpu", "cuda"))
"""Devices on which every kernel of `scaled_dot_product_attention` adds up QKᵀ and takes the softmax in float32."""

HALVES = (torch.float16, torch.bfloat16)
MASKED = -10000.0
"""Added to the scores of keys that a mask leaves out (Diffusers' number: the softmax of a full mask stays finite)."""


class CrossAttention(SliceableAttention):
    """W_o·softmax(QKᵀ/√d + bias)·V; Q from the tokens, K and V from the context, or from the tokens without one.

    The projections to Q, K and V have no bias, the one out of the heads has.

    Args:
        channels: width C of the tokens.
        heads, head_dim: number of heads and width d of each; heads·d need not be C.
        context_channels: width of the context; None: self-attention.
        upcast: QKᵀ and softmax in float32 whatever the dtype of the model (Stable Diffusion 2.1 overflows in float16
            without). Costs nothing where the kernels do so anyway, see `FLOAT32_SCORES`.
    """

    def __init__(
        self, channels: int, heads: int, head_dim: int, context_channels: int | None = None, upcast: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.upcast = heads, head_dim, upcast
        inner = heads * head_dim
        source = channels if context_channels is None else context_channels
        self.to_q = nn.Linear(channels, inner, bias=False)
        self.to_k = nn.Linear(source, inner, bias=False)
        self.to_v = nn.Linear(source, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, channels))

    def forward(
        self, x: torch.Tensor, context: torch.Tensor | None = None, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x (B, N, C), context (B, L, D), bias (B, 1, 1, keys) → (B, N, C), which nobody else holds."""
        source = x if context is None else context
        split = (*source.shape[:2], self.heads, self.head_dim)
        q = self.to_q(x).view(*x.shape[:2], self.heads, self.head_dim).transpose(1, 2)  # (B, heads, N, d)
        k = self.to_k(source).view(split).transpose(1, 2)  # (B, heads, keys, d)
        v = self.to_v(source).view(split).transpose(1, 2)
        if bias is not None and bias.shape[-1] != k.shape[2]:
            raise InputError(
                f"a mask over {bias.shape[-1]} keys meets attention over {k.shape[2]}: attention_mask fits networks in "
                "which all self-attention sees equally many positions; to mask text give encoder_attention_mask"
            )
        if self.upcast and q.dtype in HALVES and q.device.type not in FLOAT32_SCORES:
            bias = None if bias is None else bias.float()
            h = attend(q.float(), k.float(), v.float(), bias, self.slice_size).to(q.dtype)
        else:
            h = attend(q, k, v, bias, self.slice_size)
        out: torch.Tensor = self.to_out(h.transpose(1, 2).flatten(2))
        return out


def mask_to_bias(mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Mask (B, keys), 1 keep and 0 leave out → what is added to the scores, (B, 1, 1, keys); None stays None."""
    return None if mask is None else ((1 - mask.to(dtype)) * MASKED)[:, None, None, :]
