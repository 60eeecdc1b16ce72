"""Entropies of sign codes, exactly, without the table of N tokens × 2^g codes.

p(e) ∝ exp(2⟨z, e⟩/τ) over e ∈ {−1, 1}^g is a product over the bits: bit k is +1 with probability σ(4z_k/τ).
So a token's entropy is a sum of g binary ones; and the mean of p over tokens, of which p = a ⊗ b with a from the lower
and b from the upper half of the bits, is one matrix product aᵀb/N of tables of 2^(g/2) columns.
"""

import torch
import torch.nn.functional as F

from latentia.codecs.quantizers.processes import mean_over_processes


def token_entropy(z: torch.Tensor, tau: float) -> torch.Tensor:
    """Mean over tokens of H(p) in nats; z (N, g) in float32 at least → a scalar in [0, g·log 2].

    H(σ(a)) = log(1 + e^−|a|) + |a|·σ(−|a|) is exact and finite for every a, with finite gradients.
    """
    a = (4 / tau * z).abs().clamp_max(80.0)  # beyond, the entropy is below 1e-33
    return (F.softplus(-a) + a * torch.sigmoid(-a)).sum(1).mean()


def batch_entropy(z: torch.Tensor, tau: float, sync: bool = False) -> torch.Tensor:
    """H(mean p over tokens) in nats; z (N, g) → a scalar in [0, g·log 2]. `sync`: the mean over all processes too."""
    mean = mean_distribution(z, tau)
    if sync:
        mean = mean_over_processes(mean)
    return -(mean * mean.clamp_min(1e-12).log()).sum()


def mean_distribution(z: torch.Tensor, tau: float) -> torch.Tensor:
    """mean_n p_n(e) over z (N, g) → (2^g,), where e with bits b_k has index Σ 2^k b_k."""
    half = z.shape[1] // 2
    p = torch.sigmoid(4 / tau * z)
    lower, upper = table(p[:, :half]), table(p[:, half:])
    return (upper.t() @ lower).flatten() / len(z)


def table(p: torch.Tensor) -> torch.Tensor:
    """Probabilities of all patterns of independent bits: p (N, k) → (N, 2^k), bit j worth 2^j."""
    patterns = p.new_ones(len(p), 1)
    for bit in p.unbind(1):
        set_ = patterns * bit[:, None]
        patterns = torch.cat([patterns - set_, set_], dim=1)
    return patterns
