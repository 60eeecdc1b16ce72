"""Vector quantisation with a codebook learned by gradient (van den Oord et al. 2017)."""

import torch
from torch import nn
from torch.nn import functional as F

from latentia.codecs.quantizers.nearest import nearest_codes
from latentia.codecs.quantizers.quantizer import Quantized, Quantizer, straight_through
from latentia.core.arguments import check_count, check_number
from latentia.errors import ConfigError


class VectorQuantizer(Quantizer):
    """z → e_k, k = argmin_j ‖z − e_j‖², straight-through: ∂values/∂z = I, ∂values/∂e = 0.

        loss = mean ‖sg[z] − e‖² (codebook) + β · mean ‖z − sg[e]‖² (commitment)

    means over all elements. `legacy_beta` weighs the codebook term with β instead and the commitment with 1, as taming,
    latent diffusion and Diffusers do by mistake (taming-transformers issue 57), and as all released weights were made.

    Args:
        num_codes: K ≥ 1.
        dim: d ≥ 1.
        beta: β ≥ 0; van den Oord et al. found 0.1 to 2 to work alike.
        legacy_beta: see above.

    Codes start in U(−1/K, 1/K). Distances and losses are computed in float32 at least; of equally near codes the first
    is taken. Raises `ConfigError` and `InputError` for sizes and weights that make no sense.
    """

    options = ("num_codes", "beta", "legacy_beta")

    def __init__(self, num_codes: int, dim: int, beta: float = 0.25, legacy_beta: bool = False) -> None:
        super().__init__()
        self.num_codes = check_count("num_codes", num_codes, error=ConfigError)
        self.dim = check_count("dim", dim, error=ConfigError)
        self.beta = check_number("beta", beta, low=0)
        self.legacy_beta = legacy_beta
        self.embedding = nn.Embedding(num_codes, dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)

    def forward(self, z: torch.Tensor) -> Quantized:
        """z (B, d, ...) → values of the same shape, tokens (B, ...), loss; parts `codebook` and `commitment`."""
        self.check_vectors(z)
        rows = z.movedim(1, -1).contiguous()  # (B, ..., d): the layout in which codes come, and all below is fast
        indices = self._nearest(rows)
        codes = self.embedding(indices)
        dtype = torch.promote_types(z.dtype, torch.float32)
        wide, wide_codes = rows.to(dtype), codes.to(dtype)
        codebook = F.mse_loss(wide_codes, wide.detach())
        commitment = F.mse_loss(wide, wide_codes.detach()) if torch.is_grad_enabled() else codebook
        loss = self.beta * codebook + commitment if self.legacy_beta else codebook + self.beta * commitment
        values = straight_through(z, codes.movedim(-1, 1))
        return Quantized(values, indices, loss, {"codebook": codebook.detach(), "commitment": commitment.detach()})

    def assign(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, d, ...) → (B, ...), the first of the nearest codes at each position."""
        self.check_vectors(z)
        return self._nearest(z.movedim(1, -1))

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        """(B, ...) → their codes (B, d, ...); differentiable in the codebook."""
        self.check_indices(indices)
        return self.embedding(indices).movedim(-1, 1).contiguous()

    def _nearest(self, rows: torch.Tensor) -> torch.Tensor:
        return nearest_codes(rows.reshape(-1, self.dim), self.embedding.weight).view(rows.shape[:-1])
