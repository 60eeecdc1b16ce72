"""The spatial transformer of latent diffusion (Rombach et al. 2022): the positions of a map look at a text."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from latentia.errors import ConfigError
from latentia.nn.cross_attention import CrossAttention
from latentia.nn.norms import group_norm

NORM_EPS = 1e-6
"""Of the group normalisation in front of every transformer; published models keep it whatever their `norm_eps`."""


@dataclass(frozen=True, slots=True)
class TransformerStyle:
    """What the transformers of one stage share.

    Attributes:
        heads: number of attention heads; each is channels // heads wide.
        context_channels: width D of the context.
        groups: of the normalisation in front.
        linear_projection: project in and out by matrices instead of 1×1 convolutions (the same function of the map,
            but other shapes in the state dict).
        only_cross_attention: the first attention looks at the context too, instead of at the map itself.
        upcast: attention scores in float32.
    """

    heads: int
    context_channels: int
    groups: int = 32
    linear_projection: bool = False
    only_cross_attention: bool = False
    upcast: bool = False


class GEGLU(nn.Module):
    """a·gelu(b), (a ‖ b) = W·x + bias (Shazeer 2020): (…, C) → (…, hidden)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, C) → (…, hidden)."""
        a, b = self.proj(x).chunk(2, dim=-1)
        if torch.is_grad_enabled():
            return a * F.gelu(b)
        return F.gelu(b).mul_(a)  # one pass over memory fewer; with gradients the product needs both factors


class FeedForward(nn.Module):
    """Linear ∘ GEGLU with four times the width inside: (…, C) → (…, C)."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = expansion * channels
        # The middle one stands where Diffusers keeps its dropout, so that the last layer's key is `net.2`.
        self.net = nn.Sequential(GEGLU(channels, hidden), nn.Identity(), nn.Linear(hidden, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, C) → (…, C)."""
        out: torch.Tensor = self.net(x)
        return out


class BasicTransformerBlock(nn.Module):
    """x + attn₁(LN x), then + attn₂(LN x, context), then + FF(LN x), on tokens of `heads`·`head_dim` channels."""

    def __init__(self, head_dim: int, style: TransformerStyle) -> None:
        super().__init__()
        self.only_cross = style.only_cross_attention
        heads, context = style.heads, style.context_channels
        channels = heads * head_dim
        first = context if self.only_cross else None
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = CrossAttention(channels, heads, head_dim, first, style.upcast)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = CrossAttention(channels, heads, head_dim, context, style.upcast)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor,
        self_bias: torch.Tensor | None = None,
        cross_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x (B, N, C), context (B, L, D), biases of the first and second attention (B, 1, 1, keys) → (B, N, C)."""
        # In place onto the branch: a linear layer's output is nobody's saved tensor.
        x = self.attn1(self.norm1(x), context if self.only_cross else None, self_bias).add_(x)
        x = self.attn2(self.norm2(x), context, cross_bias).add_(x)
        out: torch.Tensor = self.ff(self.norm3(x)).add_(x)
        return out


class Transformer2DModel(nn.Module):
    """x + P_out·blocks(P_in·norm(x), context) over the H·W positions of a map.

    Args:
        channels: width C of the map; the heads are C // `style.heads` wide.
        num_layers: transformer blocks.
        style: what the stage's transformers share.

    Raises `ConfigError` for more heads than channels, or groups that do not divide them.
    """

    def __init__(self, channels: int, num_layers: int, style: TransformerStyle) -> None:
        super().__init__()
        if not 1 <= style.heads <= channels:
            raise ConfigError(
                f"{style.heads} attention heads over {channels} channels: give 1 to {channels} "
                "(attention_head_dim of a conditional UNet is the number of heads)"
            )
        head_dim = channels // style.heads
        inner = style.heads * head_dim
        self.linear = style.linear_projection
        self.norm = group_norm(style.groups, channels, NORM_EPS)
        self.proj_in = nn.Linear(channels, inner) if self.linear else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(BasicTransformerBlock(head_dim, style) for _ in range(num_layers))
        self.proj_out = nn.Linear(inner, channels) if self.linear else nn.Conv2d(inner, channels, 1)

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor,
        self_bias: torch.Tensor | None = None,
        cross_bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """x (B, C, H, W), context (B, L, D), biases of the attentions (B, 1, 1, keys) → (B, C, H, W)."""
        batch, _, height, width = x.shape
        h = self.norm(x)
        if self.linear:
            h = self.proj_in(_tokens(h))
        else:
            h = _tokens(self.proj_in(h))
        for block in self.transformer_blocks:
            h = block(h, context, self_bias, cross_bias)
        if self.linear:
            h = self.proj_out(h)
        # A map whose channels are last in memory: no copy here, the sum below goes back to the layout of x.
        h = h.view(batch, height, width, h.shape[-1]).permute(0, 3, 1, 2)
        return x + (h if self.linear else self.proj_out(h))


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) → (B, H·W, C), rows in order in memory (no copy for a channels-last map)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()
