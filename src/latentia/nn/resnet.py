"""The residual block of DDPM, ADM, LDM and Stable Diffusion."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from latentia.errors import check_choice
from latentia.nn.activations import get_activation
from latentia.nn.norms import group_norm
from latentia.nn.sampling import downsample_mean, upsample_nearest

RESAMPLERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"down": downsample_mean, "up": upsample_nearest}


@dataclass(frozen=True, slots=True)
class ResnetStyle:
    """What all residual blocks of one network share.

    Attributes:
        emb_channels: width of the time embedding; None: the block takes none.
        groups, eps: of the group normalisations.
        act: name of the activation.
        dropout: probability, before the second convolution.
        time_scale_shift: `default` adds the projected embedding, `scale_shift` modulates with it.
        output_scale: the residual sum is divided by this.
    """

    emb_channels: int | None = None
    groups: int = 32
    eps: float = 1e-6
    act: str = "silu"
    dropout: float = 0.0
    time_scale_shift: str = "default"
    output_scale: float = 1.0

    def group_norm(self, channels: int) -> nn.GroupNorm:
        """The normalisation of `channels`; raises `ConfigError` when they do not divide into the groups."""
        return group_norm(self.groups, channels, self.eps)


class ResnetBlock(nn.Module):
    """x (B, C, H, W), e (B, E) → x' + conv(act(norm(h + W·e))) with h = conv(act(norm(x))).

    With `scale_shift` (Nichol and Dhariwal 2021): norm(h)·(1 + s) + b, (s, b) = W·e. `resample` "up" or "down"
    changes the resolution inside the block (BigGAN). x' is x, or its 1×1 convolution when the width changes.

    The embedding comes in already activated: that costs once a network instead of once a block.
    """

    def __init__(self, in_channels: int, out_channels: int, style: ResnetStyle, resample: str | None = None) -> None:
        super().__init__()
        check_choice("resnet_time_scale_shift", style.time_scale_shift, ("default", "scale_shift"))
        self.act = get_activation(style.act, owned=True)
        self.modulates = style.time_scale_shift == "scale_shift"
        self.dropout = style.dropout
        self.output_scale = style.output_scale
        self.resample = RESAMPLERS[resample] if resample else None
        self.norm1 = style.group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj: nn.Linear | None = None
        if style.emb_channels is not None:
            self.time_emb_proj = nn.Linear(style.emb_channels, out_channels * (2 if self.modulates else 1))
        self.norm2 = style.group_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None

    def forward(self, x: torch.Tensor, emb: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, C_in, H, W), activated emb (B or 1, E) → (B, C_out, H', W')."""
        h = self.act(self.norm1(x))
        if self.resample is not None:
            x, h = self.resample(x), self.resample(h)
        h = self.conv1(h)
        # In place from here on: a convolution's output is nobody's saved tensor, and a fresh one costs a pass.
        if self.time_emb_proj is None:
            h = self.norm2(h)
        else:
            e = self.time_emb_proj(emb).unsqueeze(-1).unsqueeze(-1)  # (B or 1, C, 1, 1)
            if self.modulates:
                scale, shift = e.chunk(2, dim=1)
                h = torch.addcmul(shift, self.norm2(h), scale + 1)
            else:
                h = self.norm2(h.add_(e))
        h = self.act(h)
        if self.dropout and self.training:
            h = F.dropout(h, self.dropout)
        h = self.conv2(h)
        h.add_(x if self.conv_shortcut is None else self.conv_shortcut(x))
        return h if self.output_scale == 1.0 else h.div_(self.output_scale)
