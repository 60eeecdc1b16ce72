"""The two halves of a convolutional autoencoder: Encoder x → moments or z, Decoder z → x̂.

Rombach et al. 2022: group normalisation with eps 1e-6, no time embedding, single-head attention,
strided convolutions padded right and below on the way down, nearest-neighbour doubling on the way up.
"""

from itertools import zip_longest

import torch
from torch import nn

from latentia.errors import ConfigError, unknown_choice
from latentia.nn.activations import silu_
from latentia.nn.attention import SelfAttention
from latentia.nn.checkpointing import CheckpointedBlock
from latentia.nn.mid_block import MidBlock
from latentia.nn.resnet import ResnetBlock, ResnetStyle
from latentia.nn.sampling import Downsample, Upsample

DOWN_BLOCKS = {"AttnDownEncoderBlock2D": True, "DownEncoderBlock2D": False}
"""Block type name → attention after each residual block."""
UP_BLOCKS = {"AttnUpDecoderBlock2D": True, "UpDecoderBlock2D": False}


class _Stage(CheckpointedBlock):
    """Residual blocks at one resolution, each with attention or not; the base of both kinds of stage."""

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, style: ResnetStyle, attention: bool
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (num_layers - 1)
        self.attentions = nn.ModuleList(
            SelfAttention(out_channels, None, style.groups, style.eps) for _ in range(num_layers * attention)
        )
        self.resnets = nn.ModuleList(ResnetBlock(width, out_channels, style) for width in widths)

    def run_layers(self, h: torch.Tensor) -> torch.Tensor:
        """All residual blocks and attentions in turn."""
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            h = self.run(resnet, h)
            if attention is not None:
                h = self.run(attention, h)
        return h


class EncoderBlock(_Stage):
    """Residual blocks, then half the resolution (`downsample`)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        style: ResnetStyle,
        attention: bool,
        downsample: bool,
    ) -> None:
        super().__init__(in_channels, out_channels, num_layers, style, attention)
        self.downsamplers = nn.ModuleList([Downsample(out_channels, padding=0)] if downsample else [])

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """h (B, C_in, H, W) → (B, C_out, H/2, W/2), or H, W in the last stage."""
        h = self.run_layers(h)
        for downsampler in self.downsamplers:
            h = downsampler(h)
        return h


class DecoderBlock(_Stage):
    """Residual blocks, then double the resolution (`upsample`)."""

    def __init__(
        self, in_channels: int, out_channels: int, num_layers: int, style: ResnetStyle, attention: bool, upsample: bool
    ) -> None:
        super().__init__(in_channels, out_channels, num_layers, style, attention)
        self.upsamplers = nn.ModuleList([Upsample(out_channels)] if upsample else [])

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """h (B, C_in, H, W) → (B, C_out, 2H, 2W), or H, W in the last stage."""
        h = self.run_layers(h)
        for upsampler in self.upsamplers:
            h = upsampler(h)
        return h


def _attentions(names: tuple[str, ...], channels: tuple[int, ...], known: dict[str, bool]) -> list[bool]:
    """Whether each stage has attention; checks names and lengths."""
    if not channels or len(names) != len(channels):
        raise ConfigError(
            f"block types and block_out_channels must be equally long, got {len(names)} and {len(channels)} entries"
        )
    for name in names:
        if name not in known:
            raise unknown_choice("block type", name, known)
    return [known[name] for name in names]


class Encoder(nn.Module):
    """x (B, in_channels, H, W) → (B, out_channels, H/f, W/f), f = 2^(stages − 1)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_types: tuple[str, ...],
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        style: ResnetStyle,
        mid_attention: bool = True,
    ) -> None:
        super().__init__()
        attentions = _attentions(block_types, block_out_channels, DOWN_BLOCKS)
        width, last = block_out_channels[0], len(block_out_channels) - 1
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, (channels, attention) in enumerate(zip(block_out_channels, attentions)):
            self.down_blocks.append(EncoderBlock(width, channels, layers_per_block, style, attention, i < last))
            width = channels
        self.mid_block = MidBlock(width, style, None, style.groups, mid_attention)
        self.conv_norm_out = style.group_norm(width)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, in_channels, H, W) → (B, out_channels, H/f, W/f)."""
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h)
        h = self.mid_block(h)
        encoded: torch.Tensor = self.conv_out(silu_(self.conv_norm_out(h)))
        return encoded


class Decoder(nn.Module):
    """z (B, in_channels, h, w) → (B, out_channels, f·h, f·w); one residual block a stage more than the encoder."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        block_types: tuple[str, ...],
        block_out_channels: tuple[int, ...],
        layers_per_block: int,
        style: ResnetStyle,
        mid_attention: bool = True,
    ) -> None:
        super().__init__()
        attentions = _attentions(block_types, block_out_channels, UP_BLOCKS)
        width, last = block_out_channels[-1], len(block_out_channels) - 1
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.up_blocks = nn.ModuleList()
        self.mid_block = MidBlock(width, style, None, style.groups, mid_attention)
        for i, (channels, attention) in enumerate(zip(reversed(block_out_channels), attentions)):
            self.up_blocks.append(DecoderBlock(width, channels, layers_per_block + 1, style, attention, i < last))
            width = channels
        self.conv_norm_out = style.group_norm(width)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, in_channels, h, w) → (B, out_channels, f·h, f·w)."""
        h = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            h = block(h)
        decoded: torch.Tensor = self.conv_out(silu_(self.conv_norm_out(h)))
        return decoded
