"""Rotary positions on several axes (Su et al. 2021; the layout of Flux and FlowMo).

    angle_{a,k}(p) = p_a · θ^(−2k/d_a),   (x_{2j}, x_{2j+1}) ← rotation by angle_j

Channels 2j and 2j+1 of a head turn together; the pairs are dealt to the axes in order, d_a channels each. The product
of a rotated query and a rotated key depends on the difference of their positions alone.
"""

from collections.abc import Sequence

import torch

from latentia.errors import ConfigError, InputError

THETA = 10000.0


def rope_axes(head_dim: int) -> tuple[int, int, int]:
    """Channels for (time or index, row, column): about 1/8, 7/16 and 7/16 of a head, all even.

    (8, 28, 28) at 64 and (12, 42, 42) at 96, as released; every even width from 4 on has a split.
    Raises `ConfigError` for an odd head or one below 4.
    """
    if head_dim < 4 or head_dim % 2:
        raise ConfigError(f"a head of {head_dim} channels cannot be rotated in pairs: use an even width of at least 4")
    side = max(2, head_dim * 7 // 32 * 2) if head_dim > 4 else 2
    return head_dim - 2 * side, side, side


def rope_table(positions: torch.Tensor, axes: Sequence[int], theta: float = THETA) -> torch.Tensor:
    """Cosines and sines of every position: (N, axes) → (2, N, Σ d_a / 2) float32, computed in float64.

    Raises `InputError` when positions have another number of axes.
    """
    if positions.ndim != 2 or positions.shape[1] != len(axes):
        raise InputError(f"positions are {tuple(positions.shape)}: expected (N, {len(axes)}), one column for each axis")
    angles = []
    for axis, dim in enumerate(axes):
        omega = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / max(dim, 1))
        angles.append(positions[:, axis, None].double() * omega)  # (N, d_a/2)
    angle = torch.cat(angles, dim=1)
    return torch.stack((angle.cos(), angle.sin())).float()


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """x (B, heads, N, d), turned by `rope_table`'s (2, N, d/2) in float32 at least; x's dtype comes back."""
    pairs = x.float().unflatten(-1, (-1, 2))
    cos, sin = table
    if x.device.type in ("cpu", "meta"):  # one complex product: 4 times as fast, but compilers cannot fuse it
        turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * torch.complex(cos, sin))
    else:
        even, odd = pairs.unbind(-1)  # (B, heads, N, d/2)
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)
