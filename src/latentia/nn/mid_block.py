"""The bottleneck shared by UNets and autoencoders: residual block, attention, residual block."""

import torch
from torch import nn

from latentia.nn.attention import SelfAttention
from latentia.nn.checkpointing import CheckpointedBlock
from latentia.nn.resnet import ResnetBlock, ResnetStyle


class MidBlock(CheckpointedBlock):
    """ResnetBlock → SelfAttention (optional) → ResnetBlock, width and resolution unchanged.

    `attn_groups` None leaves the attention without normalisation.
    """

    def __init__(
        self,
        channels: int,
        style: ResnetStyle,
        head_dim: int | None = None,
        attn_groups: int | None = 32,
        add_attention: bool = True,
    ) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(
            [SelfAttention(channels, head_dim, attn_groups, style.eps, style.output_scale)] if add_attention else []
        )
        self.resnets = nn.ModuleList([ResnetBlock(channels, channels, style) for _ in range(2)])

    def forward(self, h: torch.Tensor, emb: torch.Tensor | None = None) -> torch.Tensor:
        """h (B, C, H, W), activated emb (B or 1, E) → (B, C, H, W)."""
        before, after = self.resnets
        h = self.run(before, h, emb)
        for attention in self.attentions:
            h = self.run(attention, h)
        return self.run(after, h, emb)
