"""The posterior of a KL autoencoder: a diagonal Gaussian over latents."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch

from latentia.core.rng import Generators, randn
from latentia.errors import InputError

LOGVAR_RANGE = (-30.0, 20.0)


class DiagonalGaussianDistribution:
    """q(z|x) = N(mean, diag exp(logvar)) from an encoder's output.

    Args:
        parameters: (B, 2c, ...), mean and logvar stacked on dim 1; logvar is clamped to [-30, 20]
            (Rombach et al. 2022).
        deterministic: all mass on the mean: standard deviation, `kl` and `nll` are 0.
    """

    def __init__(self, parameters: torch.Tensor, deterministic: bool = False) -> None:
        if parameters.ndim < 2 or parameters.shape[1] % 2:
            raise InputError(f"parameters have shape {tuple(parameters.shape)}: expected mean and logvar on dim 1")
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(*LOGVAR_RANGE)

    @cached_property
    def std(self) -> torch.Tensor:
        """Standard deviation, shape of the mean."""
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(0.5 * self.logvar)

    @cached_property
    def var(self) -> torch.Tensor:
        """Variance, shape of the mean."""
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(self.logvar)

    def sample(self, generator: Generators = None) -> torch.Tensor:
        """z = mean + std·ε, ε ~ N(0, I); with one generator per sample z does not depend on the batch."""
        noise = randn(self.mean.shape, generator, self.mean.device, self.mean.dtype)
        return torch.addcmul(self.mean, self.std, noise)

    def mode(self) -> torch.Tensor:
        """The mean."""
        return self.mean

    def kl(self, other: "DiagonalGaussianDistribution | None" = None) -> torch.Tensor:
        """KL(self ‖ other) in nats, summed over each sample's elements, float32 at least; (B,).

        Against N(0, I), the default: ½ Σ (μ² + σ² − 1 − ln σ²).
        Against `other`: ½ Σ ((μ₁−μ₂)²/σ₂² + σ₁²/σ₂² − 1 − ln σ₁² + ln σ₂²). 0 when deterministic.
        """
        if self.deterministic:
            return self.mean.new_zeros(self.mean.shape[0])
        mean, logvar = _wide(self.mean), _wide(self.logvar)
        if other is None:
            terms = mean.square() + logvar.exp() - 1.0 - logvar
        else:
            mean_2, logvar_2 = _wide(other.mean), _wide(other.logvar)
            terms = (mean - mean_2).square() * (-logvar_2).exp() + (logvar - logvar_2).exp() - 1.0 - logvar + logvar_2
        return 0.5 * terms.flatten(1).sum(1)

    def nll(self, sample: torch.Tensor, dims: Sequence[int] = (1, 2, 3)) -> torch.Tensor:
        """−ln q(sample) in nats, ½ Σ (ln 2π + ln σ² + (x−μ)²/σ²) over `dims`; 0 when deterministic."""
        if self.deterministic:
            return self.mean.new_zeros(self.mean.shape[0])
        mean, logvar = _wide(self.mean), _wide(self.logvar)
        terms = math.log(2 * math.pi) + logvar + (sample - mean).square() * (-logvar).exp()
        return 0.5 * terms.sum(dim=tuple(dims))


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Float32 at least: exp(20) overflows float16."""
    return x if x.dtype == torch.float64 else x.float()
