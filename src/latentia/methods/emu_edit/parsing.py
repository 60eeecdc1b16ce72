"""SceneParser: what stands where, told from the network's maps; for training alone."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from latentia.denoisers.unet_2d_condition import UNet2DConditionModel
from latentia.methods.emu_edit.world.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES

FIELDS = (1 + len(SHAPES), 1 + len(COLOURS), 1 + len(TEXTURES), 1 + len(SIZES))
"""Numbers of shape, colour, texture and size, with 0 for no thing."""

OFFSETS = 2
STEPS = 254.0


class SceneParser(nn.Module):
    """A linear map on the outcome of each block on the way up, for training alone (deep supervision, Lee et al. 2015).

        loss = mean over blocks, before and after, of (CE(shape) + Σ_f CE(f | a thing) + E[|offset − said| | a thing])/6

    f: shape, colour, texture, size. Everywhere it is told whether there is a thing; on things, of which shape, colour,
    texture and size, and how far from its centre: in the picture as it is, and as it will be once the instruction is
    carried out. The maps are those of the network's last call.

    Args:
        unet: the network that is watched; its weights are not this module's.
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        widths = tuple(reversed(unet.config.block_out_channels))
        self.heads = nn.ModuleList(nn.Conv2d(width, 2 * (sum(FIELDS) + OFFSETS), 1) for width in widths)
        self._maps: dict[int, torch.Tensor] = {}
        for place, block in enumerate(unet.up_blocks):
            block.register_forward_hook(self._keeper(place))

    def _keeper(self, place: int) -> Any:
        def keep(module: nn.Module, given: Any, made: torch.Tensor) -> None:
            if torch.is_grad_enabled():
                self._maps[place] = made

        return keep

    def forward(self, things: torch.Tensor) -> torch.Tensor:
        """`World.things` before and after (B, 12, H, W) int8, −1 where there is nothing to tell → the mean loss."""
        said = [head(self._maps[place]).chunk(2, dim=1) for place, head in enumerate(self.heads)]
        self._maps.clear()
        told = things.chunk(2, dim=1)
        return torch.stack([self._loss(a, b) for both in said for a, b in zip(both, told)]).mean()

    def _loss(self, said: torch.Tensor, things: torch.Tensor) -> torch.Tensor:
        cells = things[:, :, :: things.shape[2] // said.shape[2], :: things.shape[3] // said.shape[3]]
        told = cells.movedim(1, -1).flatten(0, 2)  # (cells, 6)
        flat = said.float().movedim(1, -1).flatten(0, 2)
        known = told[:, 0] >= 0
        total = _mean_over(F.cross_entropy(flat[known, : FIELDS[0]], told[known, 0].long(), reduction="none"))
        there = told[:, 0] > 0
        flat, told = flat[there], told[there]
        for place, logits in enumerate(flat[:, : sum(FIELDS)].split(FIELDS, dim=1)):
            total = total + _mean_over(F.cross_entropy(logits, told[:, place].long(), reduction="none"))
        off = flat[:, -OFFSETS:] - told[:, -OFFSETS:] / STEPS
        return (total + _mean_over(off.abs())) / (2 + len(FIELDS))


def _mean_over(values: torch.Tensor) -> torch.Tensor:
    """The mean; 0 of nothing."""
    return values.sum() / max(1, values.numel())
