"""Run a map over overlapping tiles and blend the results: constant memory at any picture size.

Every tile is equally large (the last one of a row lies flush with the edge), so its normalisation statistics and
attention see as much of the picture as possible; Σ w·tile / Σ w with windows w that fall linearly over the overlap.
"""

from collections.abc import Callable
from fractions import Fraction

import torch

from latentia.errors import InputError


def tile_starts(size: int, tile: int, stride: int) -> list[int]:
    """First positions of the fewest tiles that cover `size` at most `stride` apart, the last one flush with the end."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, stride), size - tile]


def ramp(length: int, overlap: int, device: torch.device, at_start: bool, at_end: bool) -> torch.Tensor:
    """A window (length,) of ones that rises over `overlap` at the start and falls at the end, never reaching 0."""
    window = torch.ones(length, device=device)
    overlap = min(overlap, length)
    slope = (torch.arange(overlap, device=device) + 0.5) / max(overlap, 1)
    if at_start and overlap:
        window[:overlap] *= slope
    if at_end and overlap:
        window[-overlap:] *= slope.flip(0)
    return window


def map_tiles(
    function: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    tile: int,
    overlap: int,
    scale: Fraction,
    grain: int = 1,
) -> torch.Tensor:
    """function(x) computed tile by tile.

    Args:
        function: (B, C, h, w) → (B, C', h·scale, w·scale).
        x: (B, C, H, W).
        tile: side of a tile in x; smaller sides of x are not cut.
        overlap: shared by neighbouring tiles, 0 ≤ overlap < tile.
        scale: output size over input size.
        grain: tile, overlap, H and W are multiples of it (the down-sampling factor of an encoder).

    Raises `InputError` when the sizes do not fit.
    """
    height, width = x.shape[-2:]
    if not 0 <= overlap < tile or tile % grain or overlap % grain or height % grain or width % grain:
        raise InputError(
            f"tiles of {tile} with overlap {overlap} do not fit a {height}×{width} map: give 0 ≤ overlap < tile, "
            f"all divisible by {grain}"
        )
    rows, columns = tile_starts(height, tile, tile - overlap), tile_starts(width, tile, tile - overlap)
    total: torch.Tensor | None = None
    weights = torch.zeros(int(height * scale), int(width * scale), device=x.device)
    for top in rows:
        for left in columns:
            out = function(x[..., top : top + tile, left : left + tile])
            if total is None:
                total = out.new_zeros(*out.shape[:2], *weights.shape)
            y, x0 = int(top * scale), int(left * scale)
            h, w = out.shape[-2:]
            blend = int(overlap * scale)
            window = torch.outer(
                ramp(h, blend, x.device, top > 0, top < rows[-1]),
                ramp(w, blend, x.device, left > 0, left < columns[-1]),
            )
            total[..., y : y + h, x0 : x0 + w].add_(out * window.to(out.dtype))
            weights[y : y + h, x0 : x0 + w] += window
    assert total is not None
    return total.div_(weights.to(total.dtype))
