"""Layers with low-rank adapters: what one forward pass computes, and which layers can be host to adapters.

`latentia.nn.lora` is what callers use; this is the mechanism under it. A layer that gets its first adapter changes
class (`nn.Linear` → `AdaptedLinear`) and back when it loses the last; its parameters stay the same objects. Adapters
are guests, not submodules: `state_dict()`, `parameters()`, `load_state_dict` and `save_pretrained` of the network know
only the network, and freezing it leaves its guests trainable. They follow `.to()`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self, TypeGuard

import torch
from torch import nn
from torch.nn import functional as F

from latentia.errors import InputError


class Factor(nn.Module):
    """One matrix or kernel, under the key `weight`."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


class LowRank(nn.Module):
    """One adapter on one layer: `lora_A`, `lora_B`, α, and the dropout on what A reads while in training mode."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.lora_A, self.lora_B = Factor(down), Factor(up)
        self.alpha, self.rank, self.dropout = float(alpha), down.shape[0], dropout

    @property
    def scale(self) -> float:
        """α / r."""
        return self.alpha / self.rank

    def read(self, x: torch.Tensor) -> torch.Tensor:
        """What A reads of a layer's input: dropped out in training, in the adapter's dtype (autocast casts itself)."""
        if self.training and self.dropout > 0:
            x = F.dropout(x, self.dropout)
        dtype = self.lora_A.weight.dtype
        return x if x.dtype == dtype or torch.is_autocast_enabled(x.device.type) else x.to(dtype)

    def delta(self) -> torch.Tensor:
        """(α / r)·B·A flattened to (out, in·k·k), at least in float32."""
        down, up = self.lora_A.weight.detach().flatten(1), self.lora_B.weight.detach().flatten(1)
        exact = torch.promote_types(down.dtype, torch.float32)
        return (up.to(exact) @ down.to(exact)).mul_(self.scale)


@dataclass(slots=True)
class Guests:
    """What one layer knows of its adapters.

    Attributes:
        all: the adapters by name.
        weights: of the chosen ones.
        enabled: whether the chosen ones act.
        fused: names of those added into W.
        original: W as it was before, on the CPU, while any is fused.
    """

    all: dict[str, LowRank] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    enabled: bool = True
    fused: tuple[str, ...] = ()
    original: torch.Tensor | None = None


class _Host(nn.Module):
    """What an adapted layer adds to its plain class. `active` is all that a forward pass reads, once."""

    plain: type[nn.Module]
    guests: Guests
    active: tuple[tuple[LowRank, float], ...]

    def choose(self) -> None:
        """Let those act that are chosen, weigh something, are not fused, and are enabled."""
        guests = self.guests
        chosen = {n: w for n, w in guests.weights.items() if w != 0 and n not in guests.fused and guests.enabled}
        self.active = tuple((guests.all[name], weight * guests.all[name].scale) for name, weight in chosen.items())

    def leave(self) -> None:
        """Send all guests away and be a plain layer again."""
        self.__class__ = self.plain  # type: ignore[assignment]
        del self.guests, self.active

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for low in self.guests.all.values():
            low._apply(fn, recurse)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        if self.guests.fused and prefix + "weight" in state_dict:
            raise InputError(f"{prefix}weight holds fused adapters ({', '.join(self.guests.fused)}): unfuse, then load")
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """The layer's own, and the names and ranks of its adapters."""
        ranks = ", ".join(f"{name} (rank {low.rank})" for name, low in self.guests.all.items())
        return f"{super().extra_repr()}, adapters: {ranks}"


class AdaptedLinear(_Host, nn.Linear):
    """A linear layer with adapters."""

    plain = nn.Linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (…, in) → (…, out), a tensor that nobody else holds."""
        out = F.linear(x, self.weight, self.bias)
        for low, scale in self.active:
            h, up = F.linear(low.read(x), low.lora_A.weight), low.lora_B.weight
            if torch.is_grad_enabled() or not out.dtype == h.dtype == up.dtype:
                out = out.add_(F.linear(h, up), alpha=scale)
            else:  # added by the product itself: one pass over memory fewer
                out.view(-1, out.shape[-1]).addmm_(h.view(-1, low.rank), up.t(), alpha=scale)
        return out


class AdaptedConv2d(_Host, nn.Conv2d):
    """A convolution with adapters."""

    plain = nn.Conv2d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, in, H, W) → (B, out, H', W'), a tensor that nobody else holds."""
        out = self._conv_forward(x, self.weight, self.bias)
        for low, scale in self.active:
            h = self._conv_forward(low.read(x), low.lora_A.weight, None)
            out = out.add_(F.conv2d(h, low.lora_B.weight), alpha=scale)
        return out


Adaptable = nn.Linear | nn.Conv2d
Adapted = AdaptedLinear | AdaptedConv2d


def adaptable(root: nn.Module) -> dict[str, Adaptable]:
    """Path → layer for everything in `root` that can have adapters: linear layers, and convolutions without groups.

    Subclasses with another forward pass (quantised, read by a fused attention kernel) cannot.
    """
    # `torch.compile(network)` is a network around it, which no file knows of.
    return {p.replace("_orig_mod.", ""): module for p, module in root.named_modules() if _is_adaptable(module)}


def _is_adaptable(module: nn.Module) -> TypeGuard[Adaptable]:
    if type(module) in (nn.Conv2d, AdaptedConv2d):
        return bool(module.groups == 1)
    return type(module) in (nn.Linear, AdaptedLinear)


def adapted(root: nn.Module) -> Iterator[tuple[str, Adapted]]:
    """Path and layer of everything in `root` that has adapters."""
    return ((path, module) for path, module in adaptable(root).items() if isinstance(module, Adapted))


def take_in(layer: Adaptable, name: str, low: LowRank, weight: float) -> None:
    """Make `low` a guest of `layer`, active with this weight."""
    if not isinstance(layer, Adapted):
        kind = AdaptedLinear if isinstance(layer, nn.Linear) else AdaptedConv2d
        object.__setattr__(layer, "guests", Guests())
        layer.__class__ = kind
    assert isinstance(layer, Adapted)
    layer.guests.all[name] = low
    layer.guests.weights[name] = weight
    layer.choose()
