"""PatchDiscriminator: says of every patch of a picture whether it is real."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from latentia.core.arguments import check_counts
from latentia.core.artifacts import load_state_dict
from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.errors import ArtifactError, ConfigError, InputError, check_choice

NORMS = ("batch", "group", "none")
GROUP_CHANNELS = 16
"""Channels of one group of `norm="group"`."""

PREFIXES = ("loss.discriminator.", "first_stage_model.loss.discriminator.")
"""Where checkpoints of taming-transformers and latent diffusion keep their discriminator."""


class PatchDiscriminator(ModelMixin):
    """x (B, C, H, W) → logits (B, 1, h, w), one for each overlapping patch (Isola et al. 2017, "PatchGAN").

        conv ↓2, LeakyReLU · (layers − 1) × [conv ↓2, norm, LeakyReLU] · conv, norm, LeakyReLU · conv → 1   (all 4×4)

    with widths width·min(2ⁿ, 8), padding 1, slope 0.2, no bias where a norm follows; convolutions start at N(0, 0.02²),
    norms at N(1, 0.02²). A logit sees a patch of 16, 34, 70 pixels for 1, 2, 3 layers (`receptive_field`).
    With `norm="batch"` the state-dict keys are those of taming's and latent diffusion's `NLayerDiscriminator`.

    Args:
        in_channels: of x.
        width: channels of the first convolution.
        layers: convolutions that halve the resolution.
        norm: `batch` as published; `group` (of 16 channels) or `none` where batches are small.

    Raises `ConfigError` for sizes, `UnknownChoiceError` for a norm that there is not.
    """

    @register_to_config
    def __init__(self, in_channels: int = 3, width: int = 64, layers: int = 3, norm: str = "batch") -> None:
        super().__init__()
        check_counts(self.config, ("in_channels", "width", "layers"))
        check_choice("norm", norm, NORMS)
        if norm == "group" and width % GROUP_CHANNELS:
            raise ConfigError(f"norm 'group' needs a width divisible by {GROUP_CHANNELS}, got {width}")
        parts: list[nn.Module] = [nn.Conv2d(in_channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        before = width
        for n in range(1, layers + 1):
            after = width * min(2**n, 8)
            stride = 2 if n < layers else 1
            parts += [
                nn.Conv2d(before, after, 4, stride, 1, bias=norm == "none"),
                _norm(norm, after),
                nn.LeakyReLU(0.2),
            ]
            before = after
        self.main = nn.Sequential(*parts, nn.Conv2d(before, 1, 4, 1, 1))
        for module in self.main:
            _start(module)

    @property
    def receptive_field(self) -> int:
        """Side in pixels of the patch that one logit sees."""
        side = 1
        for module in reversed(self.main):
            if isinstance(module, nn.Conv2d):
                side = (side - 1) * module.stride[0] + module.kernel_size[0]
        return side

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest picture that has a logit."""
        side = 1
        for module in reversed(self.main):
            if isinstance(module, nn.Conv2d):
                stride = module.stride[0]
                side = (side - 1) * stride + 4 - 2
        return max(side, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, in_channels, H, W) → logits (B, 1, h, w). Raises `InputError` for a wrong shape or too few pixels."""
        if x.ndim != 4 or x.shape[1] != self.config.in_channels or min(x.shape[2:]) < self.smallest:
            raise InputError(
                f"the discriminator judges x of (B, {self.config.in_channels}, ≥ {self.smallest}, ≥ {self.smallest}), "
                f"got {tuple(x.shape)}: fewer layers, or larger pictures"
            )
        logits: torch.Tensor = self.main(x)
        return logits

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike[str]) -> Self:
        """The discriminator inside a checkpoint of taming-transformers or latent diffusion (or alone in a file).

        Sizes are read off the tensors. Raises `ArtifactError` when there is none, or when it is none of this kind.
        """
        state = discriminator_tensors(load_state_dict(Path(path)), str(path))
        model = cls(**_sizes(state, str(path)))
        wanted = model.state_dict()
        odd = sorted(set(wanted) ^ set(state)) or [k for k, v in state.items() if v.shape != wanted[k].shape]
        if odd:
            raise ArtifactError(f"the discriminator in {path} is no PatchDiscriminator: {', '.join(odd[:5])} differ")
        model.load_state_dict(state)
        return model.eval()


def discriminator_tensors(state: Mapping[str, torch.Tensor], source: str = "this file") -> dict[str, torch.Tensor]:
    """The discriminator's tensors of a whole checkpoint, under the names of `PatchDiscriminator`."""
    for prefix in (*PREFIXES, ""):
        found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(f"{prefix}main.")}
        if found:
            return found
    raise ArtifactError(
        f"{source} has no discriminator (no loss.discriminator.main.*): many published files leave it out; train one"
    )


def _sizes(state: Mapping[str, torch.Tensor], source: str) -> dict[str, Any]:
    if any(name.endswith((".loc", ".initialized")) for name in state):
        raise ArtifactError(f"the discriminator in {source} uses ActNorm, which is not built: only batch norm is")
    kernels = sorted((int(k.split(".")[1]), v.shape) for k, v in state.items() if k.endswith("weight") and v.ndim == 4)
    if len(kernels) < 3:
        raise ArtifactError(
            f"the discriminator in {source} has {len(kernels)} convolutions: a PatchDiscriminator has ≥ 3"
        )
    width, in_channels = kernels[0][1][:2]
    norm = "batch" if any(k.endswith("running_mean") for k in state) else "none"
    if norm == "none" and any(k.endswith("weight") and v.ndim == 1 for k, v in state.items()):
        norm = "group"
    return {"in_channels": in_channels, "width": width, "layers": len(kernels) - 2, "norm": norm}


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(channels // GROUP_CHANNELS, channels) if kind == "group" else nn.Identity()


def _start(module: nn.Module) -> None:
    """The published start. A convolution's bias keeps PyTorch's, which is what the authors' code leaves there."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
