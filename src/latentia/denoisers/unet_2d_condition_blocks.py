"""Stages of the text-conditional UNet: residual blocks, each followed by a transformer that reads the text."""

from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import nn
from torch.nn import functional as F

from latentia.core.arguments import check_count
from latentia.errors import ConfigError, check_choice
from latentia.nn.checkpointing import CheckpointedBlock
from latentia.nn.resnet import ResnetBlock, ResnetStyle
from latentia.nn.sampling import Downsample, Upsample
from latentia.nn.transformer import Transformer2DModel, TransformerStyle

DOWN_BLOCKS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
"""Names of stages on the way down, and whether they have transformers."""
UP_BLOCKS = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
MID_BLOCKS = {"UNetMidBlock2DCrossAttn": True, "UNetMidBlock2D": False}


def has_transformers(name: str, known: dict[str, bool]) -> bool:
    """Whether the stage called `name` has transformers; raises `UnknownChoiceError`."""
    name = str(name).removeprefix("UNetRes")
    check_choice("block type", name, known)
    return known[name]


@dataclass(frozen=True, slots=True)
class Text:
    """The condition as all transformers see it.

    Attributes:
        states: (B, L, D).
        self_bias: added to the scores of the first attention, (B, 1, 1, keys).
        cross_bias: added to the scores over the text, (B, 1, 1, L).
    """

    states: torch.Tensor
    self_bias: torch.Tensor | None
    cross_bias: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Stage:
    """One resolution of the network.

    Attributes:
        channels: width.
        num_layers: residual blocks on the way down (one more on the way up).
        depth: transformer blocks behind each residual block, one number or one for each.
        transformer: how its transformers look.
    """

    channels: int
    num_layers: int
    depth: int | tuple[int, ...]
    transformer: TransformerStyle

    def __post_init__(self) -> None:
        for depth in self.depth if isinstance(self.depth, tuple) else (self.depth,):
            check_count("each of transformer_layers_per_block", depth, 0, ConfigError)

    def transformers(self, num_layers: int, wanted: bool) -> nn.ModuleList:
        """One transformer behind each of `num_layers` residual blocks, or none."""
        depths = self.depth if isinstance(self.depth, tuple) else (self.depth,) * num_layers
        if not wanted:
            return nn.ModuleList()
        if len(depths) != num_layers:
            raise ConfigError(
                f"transformer_layers_per_block gives {len(depths)} numbers for {num_layers} layers of a stage "
                "(the way up has one layer more: list its numbers in reverse_transformer_layers_per_block)"
            )
        return nn.ModuleList(Transformer2DModel(self.channels, depth, self.transformer) for depth in depths)


class TextDownBlock(CheckpointedBlock):
    """Residual blocks (each with a transformer), then half the resolution; remembers every result for the way up."""

    def __init__(
        self,
        in_channels: int,
        stage: Stage,
        style: ResnetStyle,
        transformers: bool,
        downsample: bool,
        padding: int,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [stage.channels] * (stage.num_layers - 1)
        self.attentions = stage.transformers(stage.num_layers, transformers)
        self.resnets = nn.ModuleList(ResnetBlock(width, stage.channels, style) for width in widths)
        self.downsamplers = nn.ModuleList([Downsample(stage.channels, padding)] if downsample else [])

    def forward(self, h: torch.Tensor, emb: torch.Tensor, text: Text) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """h (B, C_in, H, W), activated emb (B or 1, E) → (B, C_out, H', W') and all layers' results."""
        results = []
        for resnet, transformer in zip_longest(self.resnets, self.attentions):
            h = self.run(resnet, h, emb)
            if transformer is not None:
                h = self.run(transformer, h, text.states, text.self_bias, text.cross_bias)
            results.append(h)
        for downsampler in self.downsamplers:
            h = downsampler(h)
            results.append(h)
        return h, results


class TextUpBlock(CheckpointedBlock):
    """Residual blocks on (h ‖ what the way down remembered), each with a transformer, then double the resolution.

    `skip_channels` are the widths of the remembered maps in the order in which they are read.
    """

    def __init__(
        self,
        in_channels: int,
        stage: Stage,
        skip_channels: list[int],
        style: ResnetStyle,
        transformers: bool,
        upsample: bool,
    ) -> None:
        super().__init__()
        num_layers = len(skip_channels)
        widths = [in_channels] + [stage.channels] * (num_layers - 1)
        self.attentions = stage.transformers(num_layers, transformers)
        self.resnets = nn.ModuleList(
            ResnetBlock(width + skip, stage.channels, style) for width, skip in zip(widths, skip_channels)
        )
        self.upsamplers = nn.ModuleList([Upsample(stage.channels)] if upsample else [])

    def forward(
        self,
        h: torch.Tensor,
        skips: list[torch.Tensor],
        emb: torch.Tensor,
        text: Text,
        size: torch.Size | None,
    ) -> torch.Tensor:
        """h (B, C_in, H, W), skips (last one read first), activated emb (B or 1, E) → (B, C_out, H', W').

        H', W' are doubled, or `size` when the way down met an odd number.
        """
        for resnet, transformer, skip in zip_longest(self.resnets, self.attentions, reversed(skips)):
            h = self.run(resnet, torch.cat((h, skip), dim=1), emb)
            if transformer is not None:
                h = self.run(transformer, h, text.states, text.self_bias, text.cross_bias)
        for upsampler in self.upsamplers:
            if size is None:
                h = upsampler(h)
            else:
                assert isinstance(upsampler, Upsample)
                h = upsampler.conv(F.interpolate(h, size=size, mode="nearest"))
        return h


class TextMidBlock(CheckpointedBlock):
    """ResnetBlock → transformer → ResnetBlock at the lowest resolution; without transformer one ResnetBlock."""

    def __init__(self, stage: Stage, style: ResnetStyle, transformers: bool) -> None:
        super().__init__()
        depth = stage.depth[0] if isinstance(stage.depth, tuple) else stage.depth
        self.attentions = nn.ModuleList(
            [Transformer2DModel(stage.channels, depth, stage.transformer)] if transformers else []
        )
        self.resnets = nn.ModuleList(
            ResnetBlock(stage.channels, stage.channels, style) for _ in range(2 if transformers else 1)
        )

    def forward(self, h: torch.Tensor, emb: torch.Tensor, text: Text) -> torch.Tensor:
        """h (B, C, H, W), activated emb (B or 1, E) → (B, C, H, W)."""
        for resnet, transformer in zip_longest(self.resnets, self.attentions):
            h = self.run(resnet, h, emb)
            if transformer is not None:
                h = self.run(transformer, h, text.states, text.self_bias, text.cross_bias)
        return h
