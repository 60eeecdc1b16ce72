"""Outlines of the world's shapes, drawn large and brought down: coverage, rim, relief and key points."""

from functools import lru_cache
from math import cos, pi, sin
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

FINE = 8
"""Drawn pixels to one pixel, along each side."""

JOINTS = (
    "head",
    "neck",
    "hip",
    "left elbow",
    "left hand",
    "right elbow",
    "right hand",
    "left knee",
    "left foot",
    "right knee",
    "right foot",
)
"""A person's key points; left and right are the picture's."""

LIMBS = ((0, 1), (1, 2), (1, 3), (3, 4), (1, 5), (5, 6), (2, 7), (7, 8), (2, 9), (9, 10))
"""Joined joints."""

LIMB_COLOURS = (
    (255, 255, 255),
    (255, 40, 40),
    (255, 150, 0),
    (255, 230, 0),
    (120, 255, 0),
    (0, 220, 120),
    (0, 220, 255),
    (30, 110, 255),
    (150, 60, 255),
    (255, 60, 210),
)
"""Colours of the limbs in pose maps."""

_TRUNK = ((0.0, -0.72), (0.0, -0.42), (0.0, 0.2))
_ARMS = {
    "down": ((-0.3, -0.08), (-0.36, 0.3)),
    "out": ((-0.4, -0.36), (-0.84, -0.36)),
    "up": ((-0.36, -0.54), (-0.58, -0.9)),
    "hip": ((-0.54, -0.16), (-0.16, 0.12)),
}
_LEGS = {
    "together": ((-0.16, 0.56), (-0.2, 0.9)),
    "apart": ((-0.32, 0.52), (-0.58, 0.88)),
    "lifted": ((-0.52, 0.26), (-0.56, 0.66)),
}
_POSES = (
    ("down", "down", "together", "together"),
    ("up", "up", "apart", "apart"),
    ("out", "out", "together", "together"),
    ("up", "down", "together", "apart"),
    ("hip", "out", "apart", "together"),
    ("out", "up", "lifted", "together"),
    ("down", "up", "together", "lifted"),
    ("hip", "hip", "apart", "apart"),
)
NUM_POSES = len(_POSES)

_LINE = 0.13
_HEAD = 0.25
RIM = 0.085
"""Width of a thing's dark rim as a share of half its side."""


class Form(NamedTuple):
    """One shape at one size, in pixels: `cover` (S, S) in [0, 1], `rim` (S, S) share of `cover` that is rim, `relief`
    (S, S) height in [0, 1], `normals` (S, S, 3) unit vectors (x right, y up, z towards the eye)."""

    cover: np.ndarray
    rim: np.ndarray
    relief: np.ndarray
    normals: np.ndarray


def joints(pose: int) -> np.ndarray:
    """A person's key points (11, 2), (x, y) in [−1, 1] of its box."""
    left_arm, right_arm, left_leg, right_leg = _POSES[pose % NUM_POSES]
    mirrored = [[(-x, y) for x, y in points] for points in (_ARMS[right_arm], _LEGS[right_leg])]
    return np.array([*_TRUNK, *_ARMS[left_arm], *mirrored[0], *_LEGS[left_leg], *mirrored[1]])


def corners(shape: str, pose: int = 0) -> np.ndarray:
    """Key points of a shape (K, 2), (x, y) in [−1, 1] of its box: the centre, then corners; a person's joints."""
    if shape == "person":
        return joints(pose)
    return np.array([(0.0, 0.0), *_CORNERS[shape]])


@lru_cache(maxsize=1024)
def form(shape: str, side: int, pose: int = 0) -> Form:
    """A shape in a box of `side` pixels."""
    from scipy.ndimage import distance_transform_edt  # imported late: only drawing needs it

    inside = _drawn(shape, side * FINE, pose)
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] / (side * FINE / 2)
    rim_width = max(RIM, 1.6 / side) if shape != "person" else max(RIM * 0.5, 1.0 / side)
    rim = inside & (depth < rim_width)
    height = depth / depth.max()
    relief = np.sqrt(1 - (1 - height) ** 2)
    cover = _shrunk(inside)
    lowered = _shrunk(relief)
    slope_y, slope_x = np.gradient(lowered * side * 0.22)
    normals = np.stack([-slope_x, slope_y, np.ones_like(slope_x)], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    share = _shrunk(rim) / np.maximum(cover, 1e-6)
    return Form(cover.astype(np.float32), share.astype(np.float32), lowered.astype(np.float32), normals.astype("f4"))


def _shrunk(fine: np.ndarray) -> np.ndarray:
    side = fine.shape[0] // FINE
    return fine.reshape(side, FINE, side, FINE).mean(axis=(1, 3), dtype=np.float64)


def _drawn(shape: str, side: int, pose: int) -> np.ndarray:
    """(side, side) bool: which drawn pixels are inside."""
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)

    def place(points: np.ndarray) -> list[tuple[float, float]]:
        return [(float(x), float(y)) for x, y in (points + 1) * side / 2]

    def disc(x: float, y: float, radius: float, fill: int = 255) -> None:
        (left, top), (right, bottom) = place(np.array([(x - radius, y - radius), (x + radius, y + radius)]))
        draw.ellipse((left, top, right - 1, bottom - 1), fill=fill)

    if shape == "circle":
        disc(0, 0, 0.97)
    elif shape == "moon":
        disc(-0.06, 0, 0.95)
        disc(0.5, -0.22, 0.72, fill=0)
    elif shape == "person":
        points = joints(pose)
        for a, b in LIMBS[1:]:
            draw.line(place(points[[a, b]]), fill=255, width=round(_LINE * side))
        for x, y in points[1:]:
            disc(x, y, _LINE)
        disc(points[0, 0], points[0, 1], _HEAD)
    else:
        draw.polygon(place(np.array(_OUTLINES[shape])), fill=255)
    return np.asarray(canvas) > 127


def _star() -> list[tuple[float, float]]:
    radii = (1.0, 0.46)
    return [(radii[k % 2] * sin(k * pi / 5), 0.06 - radii[k % 2] * cos(k * pi / 5)) for k in range(10)]


def _heart() -> list[tuple[float, float]]:
    steps = [2 * pi * k / 90 for k in range(90)]
    raw = [(sin(t) ** 3, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 16) for t in steps]
    return [(0.97 * x, 0.97 * y - 0.1) for x, y in raw]


def _cross() -> list[tuple[float, float]]:
    a, b = 0.94, 0.33
    return [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]


_SQUARE = [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)]
_TRIANGLE = [(0.0, -0.92), (0.97, 0.84), (-0.97, 0.84)]
_DIAMOND = [(0.0, -1.0), (0.7, 0.0), (0.0, 1.0), (-0.7, 0.0)]
_OUTLINES = {
    "square": _SQUARE,
    "triangle": _TRIANGLE,
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
    "diamond": _DIAMOND,
}
_AXES = [(0.0, -0.95), (0.95, 0.0), (0.0, 0.95), (-0.95, 0.0)]
_CORNERS = {
    **_OUTLINES,
    "circle": _AXES,
    "heart": [(0.0, -0.4), (0.93, -0.5), (0.0, 0.93), (-0.93, -0.5)],
    "moon": [(0.16, -0.9), (-0.98, 0.0), (0.72, 0.48)],
}
