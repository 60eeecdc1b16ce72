"""Scene → picture, and everything that is known of it: masks, boxes, depth, normals, sketch, pose, key points.

All maps are laid down like the picture itself, from far to near, so that they agree with it pixel by pixel. A map is a
picture too, uint8 (size, size, 3), as translation tasks need it; `nearness` and `normals` are its numbers.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from latentia.data.dataset import check_size
from latentia.errors import InputError
from latentia.methods.emu_edit.world.backgrounds import backdrop
from latentia.methods.emu_edit.world.scene import Scene, Thing
from latentia.methods.emu_edit.world.shapes import corners
from latentia.methods.emu_edit.world.sprites import (
    Patch,
    class_patch,
    normal_patch,
    picture_patch,
    pose_patch,
    relief_patch,
    sketch_patch,
    solid,
)
from latentia.methods.emu_edit.world.vocabulary import COLOURS, SHAPES, SIZES, TEXTURES
from latentia.methods.emu_edit.world.writing import writing_patch

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are the first beyond."""

SMALLEST = 16
FAR, RAMP = 0.05, 0.35
"""Nearness of the background: `FAR` at the top, `FAR + RAMP` at the bottom."""

STAND, STEP = 0.32, 0.5
"""Nearness of a thing: `STAND + STEP · base`, and its relief above."""


class World:
    """Draws scenes at one size. `World.of(size)` gives the same object again.

    Raises `InputError` for a size below 16 pixels, where shapes cannot be told apart.
    """

    def __init__(self, size: int = 64) -> None:
        self.size = check_size(size)
        if size < SMALLEST:
            raise InputError(f"size must be at least {SMALLEST} pixels for shapes to be told apart, got {size}")
        self.sides = tuple(round(share * size) for share in SIZES)
        """Sides of things in pixels."""

    @staticmethod
    def of(size: int) -> "World":
        """The world of a size, made once."""
        return _world(size)

    def picture(self, scene: Scene) -> np.ndarray:
        """The scene as it looks, uint8 (size, size, 3)."""
        return to_uint8(self.canvas(scene))

    def canvas(self, scene: Scene) -> np.ndarray:
        """The picture before rounding, float32 (size, size, 3) in [0, 255]."""
        canvas = backdrop(scene.background, self.size).copy()
        for thing in scene.things:
            side = self.sides[thing.size]
            patch = picture_patch(thing.shape, thing.colour, thing.texture, side, thing.pose, self.size)
            top, left = self.corner(thing)
            _lay(canvas, top, left, patch)
        if scene.writing is not None:
            _lay(canvas, *writing_patch(scene.writing, self.size))
        return canvas

    def corner(self, thing: Thing) -> tuple[int, int]:
        """Top and left pixel of a thing's square, inside the picture."""
        side = self.sides[thing.size]
        room = self.size - side
        top = min(max(round(thing.y * self.size - side / 2), 0), room)
        return top, min(max(round(thing.x * self.size - side / 2), 0), room)

    def full_mask(self, thing: Thing) -> np.ndarray:
        """Pixels of a thing as if nothing stood before it, bool (size, size)."""
        mask = np.zeros((self.size, self.size), dtype=bool)
        top, left = self.corner(thing)
        side = self.sides[thing.size]
        mask[top : top + side, left : left + side] = solid(thing.shape, side, thing.pose)
        return mask

    def masks(self, scene: Scene) -> list[np.ndarray]:
        """Visible pixels of every thing, bool (size, size), in the scene's order; they never overlap."""
        seen: list[np.ndarray] = []
        covered = np.zeros((self.size, self.size), dtype=bool)
        if scene.writing is not None:
            covered |= self.writing_mask(scene)
        for thing in reversed(scene.things):
            full = self.full_mask(thing)
            seen.append(full & ~covered)
            covered |= full
        return seen[::-1]

    def mask(self, scene: Scene, index: int) -> np.ndarray:
        """Visible pixels of thing `index`, bool (size, size)."""
        visible = self.full_mask(scene.things[index])
        for nearer in scene.things[index + 1 :]:
            top, left = self.corner(nearer)
            side = self.sides[nearer.size]
            visible[top : top + side, left : left + side] &= ~solid(nearer.shape, side, nearer.pose)
        return visible if scene.writing is None else visible & ~self.writing_mask(scene)

    def writing_mask(self, scene: Scene) -> np.ndarray:
        """Pixels of the word with its edge, bool (size, size)."""
        mask = np.zeros((self.size, self.size), dtype=bool)
        if scene.writing is not None:
            top, left, patch = writing_patch(scene.writing, self.size)
            height, width = patch.keep.shape[:2]
            mask[top : top + height, left : left + width] = patch.keep[..., 0] <= 0.5
        return mask

    def things(self, scene: Scene) -> np.ndarray:
        """What stands where, int8 (6, size, size): number of shape, colour, texture and size, from 1, 0 for none;
        and how far below and right of the thing's centre a pixel lies, in 254ths of the thing's side."""
        told = np.zeros((6, self.size, self.size), dtype=np.int8)
        for thing in scene.things:
            (top, left), side = self.corner(thing), self.sides[thing.size]
            stamp = thing_stamp(thing.shape, thing.colour, thing.texture, thing.size, side)
            box = told[:, top : top + side, left : left + side]
            np.copyto(box, stamp, where=solid(thing.shape, side, thing.pose))
        if scene.writing is not None:
            told[:, self.writing_mask(scene)] = 0
        return told

    def box(self, scene: Scene, index: int) -> Box:
        """The smallest box around the visible pixels of thing `index`."""
        return box_of(self.mask(scene, index))

    def visible_shares(self, scene: Scene) -> list[float]:
        """What share of each thing's pixels is seen."""
        return [
            float(mask.sum()) / float(solid(thing.shape, self.sides[thing.size], thing.pose).sum())
            for thing, mask in zip(scene.things, self.masks(scene))
        ]

    def nearness(self, scene: Scene) -> np.ndarray:
        """Depth as nearness, float32 (size, size) in [0, 1]: a ground that rises to the eye, things stand on it."""
        near = np.empty((self.size, self.size), dtype=np.float32)
        near[:] = (FAR + RAMP * (np.arange(self.size, dtype=np.float32) + 0.5) / self.size)[:, None]
        for thing in scene.things:
            mask, relief = relief_patch(thing.shape, self.sides[thing.size], thing.pose)
            top, left = self.corner(thing)
            side = len(mask)
            part = near[top : top + side, left : left + side]
            np.copyto(part, STAND + STEP * min(thing.base, 1.0) + relief, where=mask)
        return near

    def depth_map(self, scene: Scene) -> np.ndarray:
        """`nearness` as grey: white is near."""
        grey = to_uint8(self.nearness(scene) * 255)
        return np.repeat(grey[..., None], 3, axis=-1)

    def normal_map(self, scene: Scene) -> np.ndarray:
        """Normals as colours, (n + 1) · 127.5: x to the right, y up, z towards the eye; the background faces us."""
        return self._map(scene, (127.5, 127.5, 255.0), normal_patch)

    def normals(self, scene: Scene) -> np.ndarray:
        """Unit normals, float32 (size, size, 3)."""
        return decode_normals(self.normal_map(scene))

    def class_map(self, scene: Scene) -> np.ndarray:
        """The segmentation map: every shape in its class colour, the background black."""
        return self._map(scene, (0.0, 0.0, 0.0), class_patch)

    def sketch(self, scene: Scene) -> np.ndarray:
        """Dark outlines on white."""
        return self._map(scene, (255.0, 255.0, 255.0), sketch_patch)

    def pose_map(self, scene: Scene) -> np.ndarray:
        """Stick figures of the persons on black; other things are left out."""
        canvas = np.zeros((self.size, self.size, 3), dtype=np.float32)
        for thing in scene.things:
            if thing.shape == "person":
                _lay(canvas, *self.corner(thing), pose_patch(self.sides[thing.size], thing.pose))
        return to_uint8(canvas)

    def key_points(self, scene: Scene) -> list[np.ndarray]:
        """Key points of every thing, (K, 2) as (x, y) in pixels: centre and corners, or a person's joints."""
        found = []
        for thing in scene.things:
            top, left = self.corner(thing)
            side = self.sides[thing.size]
            found.append((corners(thing.shape, thing.pose) + 1) * side / 2 + (left, top))
        return found

    def _map(
        self, scene: Scene, ground: tuple[float, float, float], patch: Callable[[str, int, int], Patch]
    ) -> np.ndarray:
        canvas = np.empty((self.size, self.size, 3), dtype=np.float32)
        canvas[:] = ground
        for thing in scene.things:
            _lay(canvas, *self.corner(thing), patch(thing.shape, self.sides[thing.size], thing.pose))
        return to_uint8(canvas)


@lru_cache(maxsize=4096)
def thing_stamp(shape: str, colour: str, texture: str, size: int, side: int) -> np.ndarray:
    """What `World.things` tells of a thing's square, int8 (6, side, side)."""
    names = SHAPES.index(shape), tuple(COLOURS).index(colour), TEXTURES.index(texture)
    stamp = np.empty((6, side, side), dtype=np.int8)
    stamp[:4] = np.array([1 + number for number in (*names, size)], dtype=np.int8)[:, None, None]
    away = (254 * ((np.arange(side) + 0.5) / side - 0.5)).round()
    stamp[4], stamp[5] = away[:, None], away[None, :]
    return stamp


@lru_cache(maxsize=16)
def _world(size: int) -> World:
    return World(size)


def _lay(canvas: np.ndarray, top: int, left: int, patch: Patch) -> None:
    height, width = patch.keep.shape[:2]
    part = canvas[top : top + height, left : left + width]
    part *= patch.keep
    part += patch.ink


def to_uint8(canvas: np.ndarray) -> np.ndarray:
    """Float in [0, 255] → uint8, rounded and clipped."""
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def box_of(mask: np.ndarray) -> Box:
    """The smallest box around a mask; all zeros for an empty one."""
    rows, columns = np.asarray(mask.any(axis=1)), np.asarray(mask.any(axis=0))
    if not rows.any():
        return (0, 0, 0, 0)
    top, left = int(rows.argmax()), int(columns.argmax())
    return left, top, len(columns) - int(columns[::-1].argmax()), len(rows) - int(rows[::-1].argmax())


def decode_normals(picture: np.ndarray) -> np.ndarray:
    """A normal map (H, W, 3) in [0, 255] → unit vectors, float32."""
    vectors = picture.astype(np.float32) / 127.5 - 1
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-6)
