"""Random masks for inpainting: rectangles and brush strokes; a quarter of them cover everything."""

import torch

from latentia.core.arguments import check_count
from latentia.errors import InputError

SEGMENTS = 6
"""A stroke is a chain of so many straight pieces."""

_NUMBERS = 2 + 2 * 4 + 3 + 2 * SEGMENTS


def random_masks(
    batch: int,
    height: int,
    width: int,
    cover: float = 0.25,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Masks (B, 1, H, W) of 0 (keep) and 1 (repaint), float32.

    With probability `cover` everything is 1 (Stable Diffusion inpainting: 0.25). Otherwise, each a third of the time:
    two rectangles with sides of 0.1 to 0.6 of the image's, a brush stroke 0.08 to 0.24 wide, or both. All randomness
    is one draw on the CPU, from `generator` or torch's own, so that masks are the same on every device.

    Raises `InputError` for sizes below 1 and a `cover` outside [0, 1].
    """
    for name, value in (("batch", batch), ("height", height), ("width", width)):
        check_count(name, value)
    if not 0 <= cover <= 1:
        raise InputError(f"cover is a probability in [0, 1], got {cover}")
    u = torch.rand(batch, _NUMBERS, generator=generator).to(device)
    # Pixel centres, both axes in [0, 1].
    y = (torch.arange(height, device=device) + 0.5).view(1, -1, 1) / height
    x = (torch.arange(width, device=device) + 0.5).view(1, 1, -1) / width
    everything, kind = u[:, 0] < cover, u[:, 1]
    boxes = _rectangle(u[:, 2:6], y, x) | _rectangle(u[:, 6:10], y, x)
    # The shorter side is the unit of strokes, so that they are round.
    short = min(height, width)
    strokes = _stroke(u[:, 10:], y * (height / short), x * (width / short), height / short, width / short)
    boxes &= (kind < 2 / 3).view(-1, 1, 1)
    strokes &= (kind >= 1 / 3).view(-1, 1, 1)
    return (boxes | strokes | everything.view(-1, 1, 1)).unsqueeze(1).float()


def _rectangle(u: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """u (B, 4) in [0, 1) → bool (B, H, W), somewhere inside."""
    tall, wide, top, left = (each.view(-1, 1, 1) for each in u.unbind(1))
    tall, wide = 0.1 + 0.5 * tall, 0.1 + 0.5 * wide
    top, left = top * (1 - tall), left * (1 - wide)
    return (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)


def _stroke(u: torch.Tensor, y: torch.Tensor, x: torch.Tensor, height: float, width: float) -> torch.Tensor:
    """u (B, 3 + 2·SEGMENTS) in [0, 1) → bool (B, H, W): all that is near a chain of segments."""
    radius = (0.04 + 0.08 * u[:, 0]).view(-1, 1, 1)
    at = torch.stack([u[:, 1] * height, u[:, 2] * width], dim=1)
    limit = at.new_tensor([height, width])
    near = torch.zeros(len(u), y.shape[1], x.shape[2], dtype=torch.bool, device=u.device)
    for turn, length in u[:, 3:].view(len(u), SEGMENTS, 2).permute(1, 2, 0):
        angle = 2 * torch.pi * turn
        step = torch.stack([angle.sin(), angle.cos()], dim=1) * (0.35 * length).unsqueeze(1)
        then = (at + step).clamp(min=0).minimum(limit)
        near |= _distance(at, then, y, x) <= radius
        at = then
    return near


def _distance(start: torch.Tensor, end: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Distance of every pixel to the segments from `start` to `end`, (B, 2) each as (y, x) → (B, H, W)."""
    (ay, ax), (by, bx) = (point.view(-1, 2, 1, 1).unbind(1) for point in (start, end))
    dy, dx = by - ay, bx - ax
    along = ((y - ay) * dy + (x - ax) * dx) / (dy * dy + dx * dx).clamp(min=1e-12)
    along = along.clamp(0, 1)
    return torch.hypot(y - (ay + along * dy), x - (ax + along * dx))
