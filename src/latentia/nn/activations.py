"""Activation functions by the names that recorded configs use."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from latentia.errors import unknown_choice

Activation = Callable[[torch.Tensor], torch.Tensor]


def silu(x: torch.Tensor) -> torch.Tensor:
    """x·σ(x) (swish)."""
    return F.silu(x)


def silu_(x: torch.Tensor) -> torch.Tensor:
    """x·σ(x) of a tensor that nobody else holds: in place when no gradient is recorded.

    With gradients the backward pass needs x itself, so the in-place form would only add a copy.
    """
    return F.silu(x, inplace=not torch.is_grad_enabled())


ACTIVATIONS: dict[str, Activation] = {
    "gelu": F.gelu,
    "mish": F.mish,
    "relu": F.relu,
    "silu": silu,
    "swish": silu,
}


def get_activation(name: str, owned: bool = False) -> Activation:
    """The function called `name`; `owned` allows it to overwrite its input.

    Raises `UnknownChoiceError` for an unknown name.
    """
    function = ACTIVATIONS.get(str(name).lower())
    if function is None:
        raise unknown_choice("activation", name, ACTIVATIONS)
    return silu_ if owned and function is silu else function
