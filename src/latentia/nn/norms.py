"""Normalisations."""

from torch import nn

from latentia.errors import ConfigError


def group_norm(groups: int, channels: int, eps: float) -> nn.GroupNorm:
    """Group normalisation with a learned gain and offset per channel; `ConfigError` when groups do not divide."""
    if groups < 1 or channels % groups:
        raise ConfigError(
            f"{channels} channels do not divide into norm_num_groups={groups}: "
            "choose widths that are multiples of it, or fewer groups"
        )
    return nn.GroupNorm(groups, channels, eps=eps)
