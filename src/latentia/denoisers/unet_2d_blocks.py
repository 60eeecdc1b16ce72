"""Down and up stages of `UNet2DModel`: what the block type names of a config mean."""

from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import nn

from latentia.errors import unknown_choice
from latentia.nn.attention import SelfAttention
from latentia.nn.checkpointing import CheckpointedBlock
from latentia.nn.resnet import ResnetBlock, ResnetStyle
from latentia.nn.sampling import Downsample, Upsample


@dataclass(frozen=True, slots=True)
class BlockKind:
    """`attention` after each residual block; `resample` "conv" or "resnet", None: as the model says."""

    attention: bool
    resample: str | None


DOWN_BLOCKS = {
    "AttnDownBlock2D": BlockKind(attention=True, resample=None),
    "DownBlock2D": BlockKind(attention=False, resample="conv"),
    "ResnetDownsampleBlock2D": BlockKind(attention=False, resample="resnet"),
}
UP_BLOCKS = {
    "AttnUpBlock2D": BlockKind(attention=True, resample=None),
    "ResnetUpsampleBlock2D": BlockKind(attention=False, resample="resnet"),
    "UpBlock2D": BlockKind(attention=False, resample="conv"),
}


def block_kind(name: str, known: dict[str, BlockKind]) -> BlockKind:
    """The kind called `name` (2022 configs prefix it with `UNetRes`); raises `UnknownChoiceError`."""
    kind = known.get(name.removeprefix("UNetRes"))
    if kind is None:
        raise unknown_choice("block type", name, known)
    return kind


class DownBlock(CheckpointedBlock):
    """Residual blocks (each with attention), then half the resolution; remembers every result for the way up.

    `resample` is "conv", "resnet" or None (the last stage keeps its resolution).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        style: ResnetStyle,
        attention: bool,
        head_dim: int | None,
        resample: str | None,
        padding: int,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (num_layers - 1)
        self.attentions = nn.ModuleList(
            SelfAttention(out_channels, head_dim, style.groups, style.eps) for _ in range(num_layers * attention)
        )
        self.resnets = nn.ModuleList(ResnetBlock(width, out_channels, style) for width in widths)
        self.resamples_with_emb = resample == "resnet"
        self.downsamplers = nn.ModuleList()
        if resample == "conv":
            self.downsamplers.append(Downsample(out_channels, padding))
        elif resample == "resnet":
            self.downsamplers.append(ResnetBlock(out_channels, out_channels, style, resample="down"))

    def forward(self, h: torch.Tensor, emb: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """h (B, C_in, H, W), activated emb (B or 1, E) → (B, C_out, H', W') and all layers' results."""
        results = []
        for resnet, attention in zip_longest(self.resnets, self.attentions):
            h = self.run(resnet, h, emb)
            if attention is not None:
                h = self.run(attention, h)
            results.append(h)
        for downsampler in self.downsamplers:
            h = self.run(downsampler, h, emb) if self.resamples_with_emb else downsampler(h)
            results.append(h)
        return h, results


class UpBlock(CheckpointedBlock):
    """Residual blocks on (h ‖ what the way down remembered), each with attention, then double the resolution.

    `skip_channels` are the widths of the remembered maps in the order in which they are read.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        skip_channels: list[int],
        style: ResnetStyle,
        attention: bool,
        head_dim: int | None,
        resample: str | None,
    ) -> None:
        super().__init__()
        num_layers = len(skip_channels)
        widths = [in_channels] + [out_channels] * (num_layers - 1)
        self.attentions = nn.ModuleList(
            SelfAttention(out_channels, head_dim, style.groups, style.eps) for _ in range(num_layers * attention)
        )
        self.resnets = nn.ModuleList(
            ResnetBlock(width + skip, out_channels, style) for width, skip in zip(widths, skip_channels)
        )
        self.resamples_with_emb = resample == "resnet"
        self.upsamplers = nn.ModuleList()
        if resample == "conv":
            self.upsamplers.append(Upsample(out_channels))
        elif resample == "resnet":
            self.upsamplers.append(ResnetBlock(out_channels, out_channels, style, resample="up"))

    def forward(self, h: torch.Tensor, skips: list[torch.Tensor], emb: torch.Tensor) -> torch.Tensor:
        """h (B, C_in, H, W), skips (last one read first), activated emb (B or 1, E) → (B, C_out, H', W')."""
        for resnet, attention, skip in zip_longest(self.resnets, self.attentions, reversed(skips)):
            h = self.run(resnet, torch.cat((h, skip), dim=1), emb)
            if attention is not None:
                h = self.run(attention, h)
        for upsampler in self.upsamplers:
            h = self.run(upsampler, h, emb) if self.resamples_with_emb else upsampler(h)
        return h
