"""Lookup-free quantisation: the code is the sign of each channel (Yu et al. 2024, as FlowMo uses it)."""

import torch
import torch.nn.functional as F

from latentia.codecs.quantizers.lfq_entropy import batch_entropy, token_entropy
from latentia.codecs.quantizers.quantizer import Quantized, Quantizer, straight_through
from latentia.core.arguments import check_count, check_number
from latentia.errors import ConfigError, InputError


class LookupFreeQuantizer(Quantizer):
    """z → c = +1 where z > 0, else −1; one bit a channel, no codebook; straight-through: ∂values/∂z = I.

    A position's d bits make h = d/g tokens of g bits: token j holds the channels j, h + j, 2h + j, …, of which channel
    k·h + j is worth 2^k (FlowMo's order, strided). With h > 1 the tokens stand on the last axis of the indices.

        loss = entropy_weight · (mean H(p) − diversity · H(mean p)) + commitment_weight · mean (z − sg[c])²

    where p(e) ∝ exp(2⟨z_j, e⟩/τ) over the 2^g sign vectors e of a token: each token is to be sure of its code, all
    together are to use all codes; the means are over tokens of all positions and groups. Both are exact, see
    `lfq_entropy`.

    Args:
        dim: d, bits a position.
        group_bits: g, bits a token, a divisor of d; None: d. The batch's entropy costs tokens · 2^g.
        tau: τ > 0; FlowMo's 0.1, MAGVIT's descendants use 0.01.
        entropy_weight, commitment_weight: ≥ 0; FlowMo's.
        diversity: ≥ 0, weight of the batch's entropy beside the tokens'.
        sync: average p over all processes before the batch's entropy (lucidrains); FlowMo does not.

    Losses are computed in float32 outside autocast. Raises `ConfigError` and `InputError` for values out of range.
    """

    options = ("group_bits", "tau", "entropy_weight", "commitment_weight", "diversity", "sync")

    def __init__(
        self,
        dim: int,
        group_bits: int | None = None,
        tau: float = 0.1,
        entropy_weight: float = 0.0025,
        commitment_weight: float = 0.000625,
        diversity: float = 1.0,
        sync: bool = False,
    ) -> None:
        super().__init__()
        self.dim = check_count("dim", dim, error=ConfigError)
        bits = self.dim if group_bits is None else group_bits
        self.group_bits = check_count("group_bits", bits, error=ConfigError)
        if self.dim % self.group_bits or self.group_bits > 62:
            raise ConfigError(f"group_bits {bits} must divide the {dim} bits of a position, and be at most 62")
        self.tokens = self.dim // self.group_bits
        self.num_codes = 2**self.group_bits
        self.tau = check_number("tau", tau, low=0, open_low=True)
        self.entropy_weight = check_number("entropy_weight", entropy_weight, low=0)
        self.commitment_weight = check_number("commitment_weight", commitment_weight, low=0)
        self.diversity = check_number("diversity", diversity, low=0)
        self.sync = sync
        if self.group_bits > 20 and entropy_weight and diversity:
            raise ConfigError(
                f"the entropy over 2^{self.group_bits} codes cannot be held: give group_bits of at most 20 "
                "that divides dim, or diversity=0"
            )

    def forward(self, z: torch.Tensor) -> Quantized:
        """z (B, d, ...) → ±1 of the same shape, tokens, loss; parts `entropy`, `batch_entropy`, `commitment`.

        Losses and parts are 0 where gradients are off: they cost more than everything else.
        """
        self.check_vectors(z)
        signs = torch.where(z > 0, 1.0, -1.0).to(z.dtype)
        values = straight_through(z, signs)
        indices = self._tokens(z)
        if not torch.is_grad_enabled() or z.is_meta:
            none = torch.zeros((), device=z.device, dtype=torch.promote_types(z.dtype, torch.float32))
            return Quantized(values, indices, none, dict.fromkeys(("entropy", "batch_entropy", "commitment"), none))
        with torch.autocast(z.device.type, enabled=False):
            wide = z.to(torch.promote_types(z.dtype, torch.float32))
            commitment = F.mse_loss(wide, signs.to(wide.dtype))
            entropy = batch = torch.zeros_like(commitment)
            if self.entropy_weight:
                groups = self._groups(wide)
                entropy = token_entropy(groups, self.tau)
                if self.diversity:
                    batch = batch_entropy(groups, self.tau, self.sync)
            loss = self.entropy_weight * (entropy - self.diversity * batch) + self.commitment_weight * commitment
        parts = {"entropy": entropy, "batch_entropy": batch, "commitment": commitment}
        return Quantized(values, indices, loss, {name: part.detach() for name, part in parts.items()})

    def assign(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, d, ...) → (B, ...), or (B, ..., h) with h > 1 tokens a position."""
        self.check_vectors(z)
        return self._tokens(z)

    def embed(self, indices: torch.Tensor) -> torch.Tensor:
        """Tokens → ±1 (B, d, ...) in float32."""
        self.check_indices(indices)
        if self.tokens == 1:
            indices = indices.unsqueeze(-1)
        elif indices.ndim < 2 or indices.shape[-1] != self.tokens:
            raise InputError(f"tokens have shape {tuple(indices.shape)}: expected (batch, ..., {self.tokens})")
        bits = (indices.long().unsqueeze(-2) >> self._places(indices.device)) & 1  # (B, ..., g, h)
        return bits.flatten(-2).movedim(-1, 1).contiguous().float() * 2 - 1

    def _places(self, device: torch.device) -> torch.Tensor:
        return torch.arange(self.group_bits, device=device)[:, None]

    def _tokens(self, z: torch.Tensor) -> torch.Tensor:
        bits = (z > 0).movedim(1, -1).unflatten(-1, (self.group_bits, self.tokens)).long()  # (B, ..., g, h)
        indices = (bits << self._places(z.device)).sum(-2)
        return indices.squeeze(-1) if self.tokens == 1 else indices

    def _groups(self, z: torch.Tensor) -> torch.Tensor:
        """(N, g): the logits of every token."""
        return (
            z.movedim(1, -1).unflatten(-1, (self.group_bits, self.tokens)).movedim(-1, -2).reshape(-1, self.group_bits)
        )
