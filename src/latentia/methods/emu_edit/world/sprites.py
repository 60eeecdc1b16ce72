"""Things as ready-made patches, one for each way of drawing: premultiplied colour and what remains of the canvas.

A patch is laid on a canvas by `canvas = canvas · keep + ink`, two operations on a small box; patches are made once.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from latentia.methods.emu_edit.world.shapes import FINE, LIMB_COLOURS, LIMBS, Form, form, joints
from latentia.methods.emu_edit.world.vocabulary import CLASS_COLOURS, COLOURS, Colour

LIGHT = np.array([-0.45, 0.55, 0.7], dtype=np.float32)
"""Where the light comes from: above, to the left."""

TALL = 0.16
"""How far a thing's relief rises towards the eye, as a share of the depth range."""

PERIOD = 0.105
"""Period of stripes, dots and checks as a share of the picture's side."""


class Patch(NamedTuple):
    """`ink` (S, S, 3) and `keep` (S, S, 1), float32: canvas ← canvas · keep + ink."""

    ink: np.ndarray
    keep: np.ndarray


@lru_cache(maxsize=8192)
def picture_patch(shape: str, colour: str, texture: str, side: int, pose: int, size: int) -> Patch:
    """A thing as it looks: shaded, textured, with a dark rim; `side` its box and `size` the picture's side, pixels."""
    shaped = form(shape, side, pose)
    base = np.array(COLOURS[colour], dtype=np.float32)
    pattern = _pattern(texture, side, size)[..., None]
    surface = base * (1 - pattern) + _second(base) * pattern
    light = shaped.normals @ (LIGHT / np.linalg.norm(LIGHT))
    surface = surface * np.clip(0.62 + 0.54 * light, 0, 1.1)[..., None]
    rim = shaped.rim[..., None]
    ink = np.clip(surface * (1 - rim) + _rim(base) * rim, 0, 255)
    return Patch((ink * shaped.cover[..., None]).astype(np.float32), 1 - shaped.cover[..., None])


@lru_cache(maxsize=4096)
def solid(shape: str, side: int, pose: int) -> np.ndarray:
    """The pixels of a shape, (S, S) bool: those it covers by half."""
    return form(shape, side, pose).cover >= 0.5


@lru_cache(maxsize=2048)
def class_patch(shape: str, side: int, pose: int) -> Patch:
    """A thing in a segmentation map: its shape's class colour on its pixels."""
    mask = solid(shape, side, pose)[..., None].astype(np.float32)
    return Patch(mask * np.array(CLASS_COLOURS[shape], dtype=np.float32), 1 - mask)


@lru_cache(maxsize=2048)
def normal_patch(shape: str, side: int, pose: int) -> Patch:
    """A thing in a normal map: (n + 1) · 127.5 on its pixels."""
    mask = solid(shape, side, pose)[..., None].astype(np.float32)
    return Patch(mask * (form(shape, side, pose).normals + 1) * 127.5, 1 - mask)


@lru_cache(maxsize=2048)
def relief_patch(shape: str, side: int, pose: int) -> tuple[np.ndarray, np.ndarray]:
    """A thing in a depth map: pixels (S, S) bool and relief (S, S) in [0, `TALL`]."""
    return solid(shape, side, pose), form(shape, side, pose).relief * TALL


@lru_cache(maxsize=2048)
def sketch_patch(shape: str, side: int, pose: int) -> Patch:
    """A thing in a sketch: white within, a dark line around."""
    shaped: Form = form(shape, side, pose)
    line = (shaped.cover * shaped.rim)[..., None]
    paper = shaped.cover[..., None] - line
    return Patch((paper * 255 + line * 20).repeat(3, axis=-1), 1 - shaped.cover[..., None])


@lru_cache(maxsize=1024)
def pose_patch(side: int, pose: int) -> Patch:
    """A person in a pose map: a stick figure, each limb in its own colour."""
    fine = side * FINE
    canvas = Image.new("RGBA", (fine, fine))
    draw = ImageDraw.Draw(canvas)
    points = (joints(pose) + 1) * fine / 2
    width = max(0.09 * fine, 1.5 * FINE)
    for (a, b), colour in zip(LIMBS, LIMB_COLOURS):
        line = [(float(x), float(y)) for x, y in points[[a, b]]]
        draw.line(line, fill=(*colour, 255), width=round(width))
    for x, y in points:
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=(255, 255, 255, 255))
    drawn = np.asarray(canvas, dtype=np.float32).reshape(side, FINE, side, FINE, 4)
    cover = drawn[..., 3:] / 255
    ink = (drawn[..., :3] * cover).mean(axis=(1, 3))
    return Patch(ink, 1 - cover.mean(axis=(1, 3)))


def _pattern(texture: str, side: int, size: int) -> np.ndarray:
    """(S, S) in [0, 1]: where the second colour lies. Drawn large, so that thin stripes stay true."""
    if texture == "plain":
        return np.zeros((side, side), dtype=np.float32)
    period = max(PERIOD * size, 4.0)
    at = ((np.arange(side * FINE) + 0.5) / FINE - side / 2) / period
    x, y = at[None, :], at[:, None]
    if texture == "striped":
        wave = np.sin(2 * np.pi * (x + y) * 0.75) > 0.1
    elif texture == "dotted":
        wave = (((x + 0.5) % 1 - 0.5) ** 2 + ((y + 0.5) % 1 - 0.5) ** 2) < 0.09
    else:
        wave = (np.floor(x * 1.1) + np.floor(y * 1.1)) % 2 > 0.5
    return wave.reshape(side, FINE, side, FINE).mean(axis=(1, 3)).astype(np.float32)


def _second(base: np.ndarray) -> np.ndarray:
    """The second colour of a texture: near white on dark colours, dark on light ones."""
    luma = float(base @ np.array([0.299, 0.587, 0.114], dtype=np.float32))
    return base * 0.18 + 255 * 0.82 if luma < 150 else base * 0.36


def _rim(base: np.ndarray) -> np.ndarray:
    """The rim's colour: a darker self; of the darkest things, light."""
    return base * 0.3 if float(base.max()) > 80 else base * 0 + 205


def rgb(colour: Colour) -> np.ndarray:
    """A colour as float32 (3,)."""
    return np.array(colour, dtype=np.float32)
