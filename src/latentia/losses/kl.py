"""Kullback–Leibler divergences of diagonal Gaussians, one number a sample."""

import torch


def kl_standard_normal(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) = ½ Σ(μ² + σ² − 1 − ln σ²), summed over all but the batch.

    `mean` and `logvar` (B, ...) → (B,), nats, ≥ 0 (Kingma & Welling 2014, appendix B).
    """
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def kl_gaussians(
    mean: torch.Tensor, logvar: torch.Tensor, other_mean: torch.Tensor, other_logvar: torch.Tensor
) -> torch.Tensor:
    """KL(N(μ₁, σ₁²) ‖ N(μ₂, σ₂²)) = ½ Σ((μ₁−μ₂)²/σ₂² + σ₁²/σ₂² − 1 − ln σ₁² + ln σ₂²), summed over all but the batch.

    All arguments (B, ...) → (B,), nats; zero exactly when the two are equal, and not symmetric.
    """
    log_ratio = logvar - other_logvar
    distance = (mean - other_mean).square() * torch.exp(-other_logvar)
    return 0.5 * (distance + log_ratio.exp() - 1 - log_ratio).flatten(1).sum(1)
