"""Starting weights that differ from PyTorch's own."""

from torch import nn

from latentia.nn.attention import SelfAttention
from latentia.nn.resnet import ResnetBlock


def zero_(layer: nn.Module) -> None:
    """Set every parameter of `layer` to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def zero_residual_branches_(network: nn.Module) -> None:
    """Zero what each residual branch ends in, so that every block starts as its shortcut (Ho et al. 2020)."""
    for module in network.modules():
        if isinstance(module, ResnetBlock):
            zero_(module.conv2)
        elif isinstance(module, SelfAttention):
            zero_(module.to_out)
