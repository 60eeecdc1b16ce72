"""What lies behind the things: crops of real photographs, plain colours, painted places."""

from functools import lru_cache
from itertools import permutations

import numpy as np
from PIL import Image

from latentia.data.photos import PHOTOS, photograph
from latentia.errors import MissingDependency, check_choice
from latentia.methods.emu_edit.world.scene import Background
from latentia.methods.emu_edit.world.vocabulary import PLAIN, SPLITS

ZOOMS = (1.0, 0.62, 0.4)
"""Sides of a crop as shares of the photograph's shorter side."""

KINDS = ("photo", "plain", "scenery")
SOFT = 0.82
"""Contrast that a photograph keeps as a background, so that things stand out."""

CHANNELS = tuple(permutations(range(3)))
CONTRASTS = (1.0, 0.7, 1.2)
TONES = len(CHANNELS) * 2 * 2 * len(CONTRASTS)
"""Variations of a crop: channels exchanged, upside down, rows for columns, another contrast; 0 is the crop itself."""

_OWN = {"train": "train", "select": "test", "test": "report"}


@lru_cache
def photos_of(split: str) -> tuple[str, ...]:
    """Photographs whose crops `split` shows; those of `select` and `test` are nowhere else.

    A photograph that is not installed (`grace_hopper` ships with matplotlib) is left out.
    """
    check_choice("split", split, SPLITS)
    present = []
    for name in PHOTOS[_OWN[split]]:
        try:
            photograph(name)
        except MissingDependency:
            continue
        present.append(name)
    return tuple(present)


def backdrop(background: Background, size: int) -> np.ndarray:
    """The background (size, size, 3), float32 in [0, 255]; a view, not to be written to."""
    if background.kind == "photo":
        photo = _softened(background.name, size, background.zoom, background.mirrored)
        height, width = photo.shape[:2]
        top = round(background.v * (height - size))
        left = round(background.u * (width - size))
        crop = photo[top : top + size, left : left + size]
        return crop if background.tone == 0 else _toned(crop, background.tone)
    check_choice("kind of background", background.kind, KINDS)
    return _plain(background.name, size) if background.kind == "plain" else _scenery(background.name, size)


@lru_cache(maxsize=256)
def _softened(name: str, size: int, zoom: int, mirrored: bool) -> np.ndarray:
    photo = Image.fromarray(photograph(name))
    factor = size / (min(photo.size) * ZOOMS[zoom])
    width, height = (max(size, round(side * factor)) for side in photo.size)
    pixels = np.asarray(photo.resize((width, height), Image.Resampling.LANCZOS), dtype=np.float32)
    pixels = 128 + SOFT * (pixels - 128)
    return np.ascontiguousarray(pixels[:, ::-1] if mirrored else pixels)


def _toned(crop: np.ndarray, tone: int) -> np.ndarray:
    """Variation `tone` of a square crop."""
    rest, channels = divmod(tone, len(CHANNELS))
    rest, upside_down = divmod(rest, 2)
    contrast, turned = divmod(rest, 2)
    crop = crop[::-1] if upside_down else crop
    crop = crop.swapaxes(0, 1) if turned else crop
    spread: np.ndarray = 128 + CONTRASTS[contrast] * (crop[..., CHANNELS[channels]] - 128)
    return spread.clip(0, 255)


@lru_cache(maxsize=256)
def _plain(name: str, size: int) -> np.ndarray:
    check_choice("background colour", name, PLAIN)
    return np.full((size, size, 3), PLAIN[name], dtype=np.float32)


@lru_cache(maxsize=256)
def _scenery(name: str, size: int) -> np.ndarray:
    check_choice("scenery", name, SCENERIES)
    fine = size * 2
    y, x = (np.mgrid[0:fine, 0:fine] + 0.5) / fine
    drawn = SCENERIES[name](x, y).reshape(size, 2, size, 2, 3).mean(axis=(1, 3))
    return np.clip(drawn, 0, 255).astype(np.float32)


def _ramp(share: np.ndarray, *stops: tuple[int, int, int]) -> np.ndarray:
    """A smooth passage through colours, `share` from 0 to 1."""
    at = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(share, at, [stop[c] for stop in stops]) for c in range(3)], axis=-1)


def _over(base: np.ndarray, mask: np.ndarray, colour: np.ndarray | tuple[int, int, int]) -> np.ndarray:
    return np.where(mask[..., None], np.asarray(colour, dtype=np.float64), base)


def _meadow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    hill = y > 0.58 + 0.07 * np.sin(5.2 * x + 0.8)
    return _over(
        _ramp(y, (96, 170, 240), (206, 232, 250)), hill, _ramp(y, (120, 196, 70), (120, 196, 70), (52, 130, 44))
    )


def _sea(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    water = (
        _ramp(y, (30, 130, 170), (40, 150, 190), (16, 74, 130)) + 14 * np.sin(34 * y + 2.2 * np.sin(9 * x))[..., None]
    )
    return _over(_ramp(y, (150, 205, 240), (236, 244, 248)), y > 0.46, water)


def _desert(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    far, near = y > 0.52 + 0.09 * np.sin(4.1 * x + 2.0), y > 0.7 + 0.08 * np.sin(3.3 * x)
    sky = _ramp(y, (90, 176, 226), (250, 232, 190))
    return _over(_over(sky, far, (232, 186, 112)), near, (206, 148, 82))


def _night(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    places = np.random.default_rng(7).random((46, 3))
    sky = _ramp(y, (8, 10, 38), (44, 40, 96))
    for u, v, bright in places:
        glow = np.exp(-((x - u) ** 2 + (y - v) ** 2) / (0.008 + 0.006 * bright) ** 2)
        sky = sky + (150 + 105 * bright) * glow[..., None]
    return sky


def _sunset(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    sky = _ramp(y, (66, 40, 110), (196, 70, 110), (250, 140, 80), (255, 206, 120))
    sun = (x - 0.5) ** 2 + (y - 0.74) ** 2 < 0.02
    return _over(_over(sky, sun, (255, 240, 170)), y > 0.8, (70, 36, 70))


def _bricks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    row = np.floor(y * 8)
    along = x * 4 + 0.5 * (row % 2)
    joint = ((y * 8) % 1 < 0.14) | (along % 1 < 0.08)
    tone = (np.floor(along) * 37 + row * 53) % 5 * 7
    wall = np.stack([176 + tone, 92 + tone, 74 + tone], axis=-1)
    return _over(wall, joint, (206, 196, 184))


def _tiles(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    dark = (np.floor(x * 8) + np.floor(y * 8)) % 2 > 0.5
    return _over(np.broadcast_to(np.array([226.0, 226, 220]), (*x.shape, 3)), dark, (150, 160, 172))


def _snowy(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    ground = y > 0.6 + 0.06 * np.sin(4.6 * x + 1.1)
    land = _over(_ramp(y, (150, 172, 200), (214, 224, 236)), ground, _ramp(y, (252, 252, 255), (226, 234, 246)))
    for left, tall in ((0.12, 0.3), (0.3, 0.22), (0.82, 0.34), (0.64, 0.2)):
        tree = (y < 0.66) & (y > 0.66 - tall) & (np.abs(x - left) < (y - 0.66 + tall) * 0.32)
        land = _over(land, tree, (52, 92, 84))
    return land


SCENERIES = {
    "meadow": _meadow,
    "sea": _sea,
    "desert": _desert,
    "night sky": _night,
    "sunset": _sunset,
    "brick wall": _bricks,
    "tiled wall": _tiles,
    "snowy field": _snowy,
}
"""Painted places, each always the same picture: functions of x and y in [0, 1], arrays, to (…, 3) in [0, 255]."""
