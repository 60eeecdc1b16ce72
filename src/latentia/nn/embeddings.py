"""Time as a vector: sinusoids, random Fourier features, and the small MLP behind them.

Two conventions of the sinusoids are in use and mixing them up is silent
(Ho et al. 2020 and the later ADM/LDM line; D = dim, h = D/2):

    DDPM      flip_sin_to_cos=False, freq_shift=1    sin ‖ cos,  ω_i = 10⁴^(−i/(h−1))
    ADM, LDM  flip_sin_to_cos=True,  freq_shift=0    cos ‖ sin,  ω_i = 10⁴^(−i/h)
"""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import nn
from torch.nn import functional as F

from latentia.errors import ConfigError
from latentia.nn.activations import silu_

MAX_PERIOD = 10000.0


def frequencies(dim: int, freq_shift: float = 0.0, max_period: float = MAX_PERIOD) -> torch.Tensor:
    """ω_i = max_period^(−i/(h − freq_shift)) for i = 0 … h−1, h = dim // 2; float32 (h,).

    Computed in float32 because every published checkpoint was trained on these rounded values.
    Raises `ConfigError` when no frequency is left (dim < 2, or freq_shift = h).
    """
    half = dim // 2
    if half < 1 or half == freq_shift:
        raise ConfigError(f"a time embedding of dim {dim} with freq_shift {freq_shift} has no frequencies: widen it")
    index = torch.arange(half, dtype=torch.float32, device="cpu")
    return torch.exp(-math.log(max_period) * index / (half - freq_shift))


def sinusoidal_embedding(
    t: torch.Tensor, dim: int, flip_sin_to_cos: bool = False, freq_shift: float = 1.0, max_period: float = MAX_PERIOD
) -> torch.Tensor:
    """t (B,), any real values → (B, dim) float32: sin(tω) ‖ cos(tω), or cos ‖ sin when flipped.

    ‖embedding‖² = dim // 2 for every t; an odd `dim` ends in a zero.
    """
    return _waves(t, frequencies(dim, freq_shift, max_period).to(t.device), dim, flip_sin_to_cos)


def _waves(t: torch.Tensor, omega: torch.Tensor, dim: int, flip: bool) -> torch.Tensor:
    angles = torch.outer(t.float(), omega)  # (B, h)
    sin, cos = angles.sin(), angles.cos()
    waves = torch.cat((cos, sin) if flip else (sin, cos), dim=-1)
    return F.pad(waves, (0, 1)) if dim % 2 else waves


class Timesteps(nn.Module):
    """`sinusoidal_embedding` with its frequencies computed once.

    The frequencies are a plain attribute, neither parameter nor buffer: they stay float32 when the model is
    cast to half precision, add no key to the state dict, and survive construction on the meta device.
    """

    def __init__(self, dim: int, flip_sin_to_cos: bool, freq_shift: float) -> None:
        super().__init__()
        self.dim, self.flip = dim, flip_sin_to_cos
        self.omega = frequencies(dim, freq_shift)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        device = fn(torch.empty(0, device="cpu")).device
        if device.type != "meta":
            self.omega = self.omega.to(device)
        return super()._apply(fn, recurse)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """t (B,) → (B, dim) float32."""
        omega = self.omega if self.omega.device == t.device else self.omega.to(t.device)
        return _waves(t, omega, self.dim, self.flip)


class FourierFeatures(nn.Module):
    """Random Fourier features of log t (Song et al. 2021): sin(2π·w·ln t) ‖ cos(2π·w·ln t), w ~ N(0, scale²) fixed."""

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(dim) * scale, requires_grad=False)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        """t (B,), positive → (B, 2·dim)."""
        angles = torch.log(t)[:, None] * self.weight[None, :] * 2 * math.pi
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class TimestepEmbedding(nn.Module):
    """Linear → SiLU → Linear: features (B, in) → embedding (B, out)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_features, out_features)
        self.linear_2 = nn.Linear(out_features, out_features)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, in) → (B, out)."""
        embedded: torch.Tensor = self.linear_2(silu_(self.linear_1(features)))
        return embedded
