"""Finite scalar quantisation: every channel rounds to a few levels of its own (Mentzer et al. 2024)."""

import math
from collections.abc import Sequence

import torch

from latentia.codecs.quantizers.quantizer import Quantized, Quantizer
from latentia.core.arguments import check_count
from latentia.errors import ConfigError


class FiniteScalarQuantizer(Quantizer):
    """z_i → one of L_i values, evenly spaced in [−1, 1]; the codebook is their product, K = Π L_i, and nothing learns.

        y = tanh(z)·(L − 1)/2,   values = round(y)/((L − 1)/2)        (for even L: rounded to half-integers)

    The gradient passes the rounding straight through and the tanh as it is: ∂values/∂z = 1 − tanh². The token is the
    mixed-radix number of the levels, first channel first: Σ_i l_i · Π_{j<i} L_j, l_i in 0 … L_i − 1. Even L are
    symmetric, unlike in the paper's code, which shifts them by half a level (there L = 2 would hardly ever be −1).

    There is no loss.

    Args:
        dim: d.
        levels: L ≥ 2 of each of the d channels, such as (8, 5, 5, 5) for 1000 codes.

    Raises `ConfigError` for other levels.
    """

    options = ("levels",)

    counts: torch.Tensor
    basis: torch.Tensor

    def __init__(self, dim: int, levels: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(levels, Sequence) or isinstance(levels, str):
            raise ConfigError(f"levels must be a list of numbers such as (8, 5, 5, 5), got {levels!r}")
        counts = [check_count("each of levels", level, least=2, error=ConfigError) for level in levels]
        self.dim = check_count("dim", dim, error=ConfigError)
        if len(counts) != self.dim:
            raise ConfigError(
                f"levels {tuple(counts)} are for {len(counts)} channels, but z has {dim}: give {dim} levels"
            )
        self.levels = tuple(counts)
        self.num_codes = math.prod(counts)
        if self.num_codes >= 2**63:
            raise ConfigError(f"{self.num_codes} codes do not fit into an int64 token: use fewer levels")
        basis = [math.prod(counts[:i]) for i in range(len(counts))]
        self.register_buffer("counts", torch.tensor(counts), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def forward(self, z: torch.Tensor) -> Quantized:
        """z (B, d, ...) → values in [−1, 1] of the same shape, tokens (B, ...), loss 0, no parts."""
        self.check_vectors(z)
        rows = z.movedim(1, -1)
        bounded, half = self._bounded(rows)
        level = self._level(bounded.detach(), half)
        wide = bounded / half
        nearest = (level - half) / half
        values = (nearest + (wide - wide.detach())).to(z.dtype).movedim(-1, 1)
        loss = torch.zeros((), device=z.device, dtype=wide.dtype)
        return Quantized(values, self._index(level), loss, {})

    def assign(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, d, ...) → (B, ...)."""
        self.check_vectors(z)
        bounded, half = self._bounded(z.movedim(1, -1))
        return self._index(self._level(bounded, half))

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        """(B, ...) → their values (B, d, ...) in float32."""
        self.check_indices(indices)
        level = indices.long().unsqueeze(-1) // self.basis % self.counts
        half = (self.counts - 1).float() / 2
        return ((level.float() - half) / half).movedim(-1, 1).contiguous()

    def _bounded(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """tanh(z)·(L − 1)/2 of rows (..., d), and (L − 1)/2, in float32 at least."""
        dtype = torch.promote_types(rows.dtype, torch.float32)
        half = (self.counts - 1).to(dtype) / 2
        return torch.tanh(rows.to(dtype)) * half, half

    @staticmethod
    def _level(bounded: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
        """Nearest of 0 … L − 1, as floats (a NaN stays one)."""
        return (bounded + half).round()

    def _index(self, level: torch.Tensor) -> torch.Tensor:
        return (level.nan_to_num(0.0).long() * self.basis).sum(-1)
