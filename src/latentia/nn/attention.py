"""Self-attention over the positions of a feature map."""

import re
from collections.abc import Mapping

import torch
from torch import nn

from latentia.core.execution import SliceableAttention
from latentia.errors import ConfigError
from latentia.nn.dot_product_attention import dot_product_attention
from latentia.nn.norms import group_norm


class SelfAttention(SliceableAttention):
    """x + W_o·softmax(QKᵀ/√d)·V over all H·W positions, Q, K, V from the normalised x.

    Args:
        channels: width C of the map.
        head_dim: width d of one head; C // d heads. None: a single head over all channels.
        groups: groups of the normalisation; None: no normalisation.
        eps: of the normalisation.
        output_scale: the sum is divided by this.

    Raises `ConfigError` when a head is wider than the map, or groups do not divide it.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int | None = None,
        groups: int | None = 32,
        eps: float = 1e-6,
        output_scale: float = 1.0,
    ) -> None:
        super().__init__()
        head_dim = channels if head_dim is None else head_dim
        if not 1 <= head_dim <= channels:
            raise ConfigError(f"attention_head_dim {head_dim} does not fit {channels} channels: give 1 to {channels}")
        self.heads, self.head_dim = channels // head_dim, head_dim
        self.output_scale = output_scale
        inner = self.heads * head_dim
        self.group_norm = group_norm(groups, channels, eps) if groups is not None else None
        self.to_q = nn.Linear(channels, inner)
        self.to_k = nn.Linear(channels, inner)
        self.to_v = nn.Linear(channels, inner)
        self.to_out = nn.Sequential(nn.Linear(inner, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) → (B, C, H, W)."""
        batch, channels, height, width = x.shape
        h = x if self.group_norm is None else self.group_norm(x)
        # One copy to (B, N, C), N = H·W, so that the three projections below read rows in order.
        h = h.flatten(2).transpose(1, 2).contiguous()
        split = (batch, height * width, self.heads, self.head_dim)  # in full: a batch may be empty
        q = self.to_q(h).view(split).transpose(1, 2)  # (B, heads, N, d)
        k = self.to_k(h).view(split).transpose(1, 2)
        v = self.to_v(h).view(split).transpose(1, 2)
        h = attend(q, k, v, None, self.slice_size)
        h = self.to_out(h.transpose(1, 2).flatten(2))  # (B, N, C)
        out = x + h.transpose(1, 2).view(batch, channels, height, width)
        return out if self.output_scale == 1.0 else out / self.output_scale


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, slice_size: int | None
) -> torch.Tensor:
    """softmax(QKᵀ/√d + bias)·V, for `slice_size` heads of one sample at a time unless that is None.

    q (B, heads, N, d), k and v (B, heads, keys, d), bias (B or 1, 1, 1, keys) → (B, heads, N, d).
    """
    if slice_size is None:
        return dot_product_attention(q, k, v, bias)
    batch, heads, length, _ = q.shape
    # Stored as (B, N, heads, d), which is how the layer behind the attention reads it.
    out = q.new_empty(batch, length, heads, v.shape[-1]).transpose(1, 2)
    for i in range(batch):
        row = slice(i, i + 1)
        added = bias if bias is None or len(bias) == 1 else bias[row]
        for first in range(0, heads, slice_size):
            some = slice(first, first + slice_size)
            out[row, some] = dot_product_attention(q[row, some], k[row, some], v[row, some], added)
    return out


_LEGACY = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEGACY_KEY = re.compile(r"^(.*attentions\.\d+\.)(query|key|value|proj_attn)(\.(?:weight|bias))$")


def rename_legacy_attention(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """State dicts of 2022 (`query`, `key`, `value`, `proj_attn`) with today's names; others pass unchanged.

    Projections stored as 1×1 convolutions (C, C, 1, 1) become matrices (C, C).
    """
    renamed = {}
    for key, tensor in state_dict.items():
        match = _LEGACY_KEY.match(key)
        if match:
            key = match[1] + _LEGACY[match[2]] + match[3]
            tensor = tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor
        renamed[key] = tensor
    return renamed
