"""The contract of all quantizers: vectors in, the nearest of a finite set out, with its tokens and its losses."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from latentia.core.outputs import Output
from latentia.errors import InputError


@dataclass(slots=True)
class Quantized(Output):
    """What a quantizer makes of z (B, d, ...).

    Attributes:
        values: of z's shape and dtype; ∂values/∂z is the quantizer's estimate (straight-through: the identity).
        indices: (B, ...) int64, one token for each position; (B, ..., q) for quantizers that write q of them.
        loss: scalar in float32 at least, to be added to the objective; its terms carry their weights.
        parts: the terms by name, unweighted and detached, for the log.
    """

    values: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor
    parts: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Usage:
    """How evenly a set of tokens spreads over the codes.

    Attributes:
        perplexity: exp(entropy of the histogram), 1 (one code) to `ceiling`.
        ceiling: min(K, number of tokens), which no spread exceeds: a small batch must not be read as collapse.
        used: how many codes occur.
        codes: K.
    """

    perplexity: float
    ceiling: int
    used: int
    codes: int

    @classmethod
    def of_counts(cls, counts: torch.Tensor, codes: int) -> "Usage":
        """From how often each code occurred (codes that never did may be left out); 0 tokens have perplexity 0."""
        counts = counts[counts > 0].double()
        total = float(counts.sum())
        if not total:
            return cls(0.0, 0, 0, codes)
        p = counts / total
        perplexity = math.exp(float(-(p * p.log()).sum()))
        return cls(perplexity, int(min(codes, total)), len(counts), codes)


class Quantizer(nn.Module):
    """Abstract base of the quantizers: channels on dim 1, any number of positions behind them.

    Statistics that a quantizer keeps are updated by `forward` in training mode, after `values` are taken.

    Attributes:
        options: names of the constructor's arguments beside `dim`.
        num_codes: K, the size of the alphabet that a token is from.
        dim: d, channels of z.
        tokens: q, tokens a position; 1 unless `indices` have a last axis for them.
    """

    options: ClassVar[tuple[str, ...]] = ()
    num_codes: int
    dim: int
    tokens: int = 1

    @abstractmethod
    def forward(self, z: torch.Tensor) -> Quantized:
        """z (B, d, ...) → its quantised values, tokens and losses. Raises `InputError` for a wrong shape."""

    @abstractmethod
    def assign(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, d, ...) → the tokens that `forward` gives; nothing is learned or counted."""

    @abstractmethod
    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        """Tokens as `assign` gives them → values (B, d, ...). Raises `InputError` for tokens outside 0 … K − 1."""

    def bits_per_position(self) -> float:
        """q·log2 K: what the tokens of one position cost without entropy coding."""
        return self.tokens * math.log2(self.num_codes)

    def usage(self, indices: torch.Tensor) -> Usage:
        """Perplexity of these tokens beside its ceiling; those of several batches may be concatenated first."""
        self.check_indices(indices)
        return Usage.of_counts(indices.unique(return_counts=True)[1], self.num_codes)

    def check_vectors(self, z: torch.Tensor) -> None:
        """Raise `InputError` unless z is (B, d, ...) of floats."""
        if z.ndim < 2 or z.shape[1] != self.dim or not z.is_floating_point():
            raise InputError(f"z is {_described(z)}: expected floats of shape (batch, {self.dim}, ...)")

    def check_indices(self, indices: torch.Tensor) -> None:
        """Raise `InputError` unless all indices are integers in 0 … K − 1."""
        if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
            raise InputError(f"tokens are {_described(indices)}: expected integers, best int64")
        if indices.numel() and indices.device.type != "meta":
            low, high = (int(bound) for bound in indices.aminmax())
            if low < 0 or high >= self.num_codes:
                raise InputError(
                    f"tokens run from {low} to {high}, but the {self.num_codes} codes from 0 to {self.num_codes - 1}: "
                    "they were made with another codec"
                )


def straight_through(z: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """`values` in z's dtype, with ∂/∂z = I and no other gradient (Bengio et al. 2013).

    z − z is 0 exactly, so the values are kept to the last bit; of a NaN it is NaN, which must not pass as a code.
    """
    return (z - z.detach()) + values.detach().to(z.dtype)


@torch.no_grad()
def spread(indices: torch.Tensor, num_codes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Perplexity of these tokens, exp(entropy of their histogram), and how many codes occur; both stay on the device.

    For `num_codes` that a histogram can hold, this does not wait for a GPU. `Usage` says the same in numbers.
    """
    flat = indices.flatten()
    if num_codes <= HISTOGRAM:
        counts = torch.bincount(flat, minlength=num_codes)
    else:
        counts = flat.unique(return_counts=True)[1]
    shares = counts.double() / flat.numel()
    return torch.special.entr(shares).sum().exp().float(), (counts > 0).sum()


HISTOGRAM = 2**20
"""Largest alphabet that is counted in a table."""


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
