"""Residual vector quantisation: each level quantises what the ones before left over (Zeghidour et al. 2021)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from latentia.codecs.quantizers.quantizer import Quantized, Quantizer, straight_through
from latentia.codecs.quantizers.vq import VectorQuantizer
from latentia.codecs.quantizers.vq_ema import EMAVectorQuantizer
from latentia.core.arguments import check_count
from latentia.errors import ConfigError, InputError, check_choice

LEVELS: Mapping[str, type[VectorQuantizer] | type[EMAVectorQuantizer]] = {
    "vq": VectorQuantizer,
    "vq_ema": EMAVectorQuantizer,
}
"""Codebooks of which the levels are made."""


class ResidualVectorQuantizer(Quantizer):
    """z ≈ Σ_l e_{k_l}: r_1 = z, r_{l+1} = r_l − sg[e_{k_l}], each r_l quantised by a codebook of its own.

    q tokens a position, on the last axis of the indices, coarse to fine: q·log2 K bits for K·q codes, where one
    codebook of the same bits would need K^q. The loss is the sum of the levels'; gradients pass straight through.

    Args:
        num_codes: K of every level.
        dim: d.
        levels: q ≥ 1.
        codebook: `vq` or `vq_ema`.
        beta: of every level.
        codebook_options: further arguments of every level's codebook.

    Parts: those of the codebooks, summed over the levels.
    """

    options = ("num_codes", "levels", "codebook", "beta", "codebook_options")

    def __init__(
        self,
        num_codes: int,
        dim: int,
        levels: int = 4,
        codebook: str = "vq_ema",
        beta: float = 0.25,
        codebook_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_choice("codebook", codebook, LEVELS)
        kind, options = LEVELS[codebook], dict(codebook_options or {})
        for name in options:
            check_choice(f"option of codebook {codebook!r}", name, kind.options)
        self.tokens = check_count("levels", levels, error=ConfigError)
        self.levels = nn.ModuleList(
            kind(**{"num_codes": num_codes, "dim": dim, "beta": beta, **options}) for _ in range(levels)
        )
        first = self._quantizers()[0]
        self.num_codes, self.dim = first.num_codes, first.dim

    def _quantizers(self) -> list[Quantizer]:
        return [level for level in self.levels if isinstance(level, Quantizer)]

    def forward(self, z: torch.Tensor) -> Quantized:
        """z (B, d, ...) → values of the same shape, tokens (B, ..., q), loss; parts of all levels."""
        self.check_vectors(z)
        rest, total = z, torch.zeros_like(z, dtype=torch.promote_types(z.dtype, torch.float32))
        found: list[Quantized] = []
        for level in self._quantizers():
            found.append(level(rest))
            values = found[-1].values.detach()
            rest, total = rest - values, total + values
        indices = torch.stack([each.indices for each in found], dim=-1)
        loss = torch.stack([each.loss for each in found]).sum()
        parts = {name: torch.stack([each.parts[name] for each in found]).sum() for name in found[0].parts}
        return Quantized(straight_through(z, total), indices, loss, parts)

    @torch.no_grad()
    def assign(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, d, ...) → (B, ..., q)."""
        self.check_vectors(z)
        rest, found = z, []
        for level in self._quantizers():
            found.append(level.assign(rest))
            rest = rest - level.embed(found[-1]).to(z.dtype)
        return torch.stack(found, dim=-1)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        """(B, ..., q) → the sums of their codes (B, d, ...); fewer than q tokens give the coarser picture."""
        self.check_indices(indices)
        if indices.ndim < 2 or not 1 <= indices.shape[-1] <= self.tokens:
            raise InputError(
                f"tokens have shape {tuple(indices.shape)}: expected (batch, ..., q), q of 1 to {self.tokens} levels"
            )
        first, *others = self._quantizers()[: indices.shape[-1]]
        total = first.embed(indices[..., 0])
        for i, level in enumerate(others, start=1):
            total = total + level.embed(indices[..., i])
        return total
