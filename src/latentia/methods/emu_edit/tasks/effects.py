"""Effects on whole pictures, each a pure function uint8 (H, W, 3) → uint8 (H, W, 3), the same every time."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from latentia.methods.emu_edit.world.render import to_uint8

Effect = Callable[[np.ndarray], np.ndarray]

LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def luma(picture: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma, float32 (H, W, 1) in [0, 255]."""
    return (picture.astype(np.float32) @ LUMA)[..., None]


@lru_cache(maxsize=64)
def _kernel(length: int, sigma: float) -> np.ndarray:
    """Gaussian blur along one axis as a matrix (length, length), edges continued."""
    at = np.arange(length)
    weights = np.exp(-0.5 * ((at[:, None] - at[None, :]) / sigma) ** 2)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def blurred(picture: np.ndarray, share: float) -> np.ndarray:
    """Gaussian blur, float32; sigma as a share of the height."""
    height, width = picture.shape[:2]
    rows, columns = _kernel(height, share * height), _kernel(width, share * height)
    flat = (rows @ picture.astype(np.float32).reshape(height, -1)).reshape(height, width, -1)
    return np.matmul(columns, flat)


@lru_cache(maxsize=64)
def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = (np.mgrid[0:height, 0:width] + 0.5).astype(np.float32)
    return x / width, y / height


@lru_cache(maxsize=16)
def _mist(height: int, width: int) -> np.ndarray:
    _, y = _grid(height, width)
    return (0.42 + 0.25 * (1 - y))[..., None]


@lru_cache(maxsize=16)
def _streaks(height: int, width: int) -> np.ndarray:
    """Coverage of rain, (H, W, 1) in [0, 1]: slanting lines at fixed places."""
    x, y = _grid(height, width)
    cover = np.zeros((height, width), dtype=np.float32)
    for u, v, length in np.random.default_rng(11).random((34, 3)).astype(np.float32):
        along = y - (1.2 * v - 0.1)
        off = np.abs(x - (1.3 * u - 0.1) + 0.28 * along)
        inside = (along > 0) & (along < 0.12 + 0.12 * length)
        cover = np.maximum(cover, inside * np.clip(1.6 - off * width / 0.7, 0, 1))
    return 0.75 * cover[..., None]


@lru_cache(maxsize=16)
def _flakes(height: int, width: int) -> np.ndarray:
    """Coverage of snow, (H, W, 1) in [0, 1]: soft discs at fixed places."""
    x, y = _grid(height, width)
    cover = np.zeros((height, width), dtype=np.float32)
    for u, v, big in np.random.default_rng(5).random((58, 3)).astype(np.float32):
        distance = np.hypot(x - u, y - v)
        cover = np.maximum(cover, np.clip(1.5 - distance / (0.011 + 0.011 * big), 0, 1))
    return 0.95 * cover[..., None]


@lru_cache(maxsize=16)
def _beam(height: int, width: int) -> np.ndarray:
    x, y = _grid(height, width)
    return (0.14 + 0.9 * np.exp(-(((x - 0.5) ** 2 + (y - 0.5) ** 2) / 0.075)))[..., None]


@lru_cache(maxsize=16)
def _water(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = _grid(height, width)
    light = 1 + 0.16 * np.sin(22 * x + 5 * np.sin(7 * y)) * (1 - y)
    return light[..., None], (y * 0.35 + 0.35)[..., None]


def _tint(picture: np.ndarray, gains: tuple[float, float, float], lift: tuple[float, float, float]) -> np.ndarray:
    return to_uint8(picture * np.array(gains, dtype=np.float32) + np.array(lift, dtype=np.float32))


def _over(picture: np.ndarray, cover: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return to_uint8(picture * (1 - cover) + np.array(colour, dtype=np.float32) * cover)


def _underwater(picture: np.ndarray) -> np.ndarray:
    light, deep = _water(*picture.shape[:2])
    return to_uint8(picture * light * (1 - deep) + np.array((10, 96, 140), dtype=np.float32) * deep)


GLOBAL: dict[str, Effect] = {
    "night": lambda p: _tint(p, (0.26, 0.32, 0.5), (2, 4, 22)),
    "fog": lambda p: _over(p, _mist(*p.shape[:2]), (222, 226, 230)),
    "rain": lambda p: _over(_tint(p, (0.62, 0.66, 0.74), (8, 10, 16)), _streaks(*p.shape[:2]), (206, 216, 232)),
    "snow": lambda p: _over(_tint(p, (0.86, 0.88, 0.92), (18, 20, 24)), _flakes(*p.shape[:2]), (255, 255, 255)),
    "dusk": lambda p: _tint(p, (1.02, 0.7, 0.48), (38, 12, 6)),
    "spotlight": lambda p: to_uint8(p * _beam(*p.shape[:2])),
    "underwater": _underwater,
    "mirror": lambda p: np.ascontiguousarray(p[:, ::-1]),
}
"""The effects of the global task."""


def _blocks(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    step = max(2, height // 16)
    small = Image.fromarray(picture).resize((max(1, width // step), max(1, height // step)), Image.Resampling.BOX)
    coarse = (np.asarray(small).astype(np.float32) / 36).round() * 36
    whole = Image.fromarray(to_uint8(coarse)).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(whole).copy()


def _poster(picture: np.ndarray) -> np.ndarray:
    return ((picture // 86).astype(np.float32) * 127.5).astype(np.uint8)


def _oil(picture: np.ndarray) -> np.ndarray:
    """Dabs of few, strong colours: a median, then seven tones a channel."""
    width = max(3, (picture.shape[0] // 24) | 1)
    dabs = np.asarray(Image.fromarray(picture).filter(ImageFilter.MedianFilter(width)), dtype=np.float32)
    grey = luma(dabs)
    return to_uint8(np.round((grey + 1.5 * (dabs - grey)) / 42) * 42)


def _sepia(picture: np.ndarray) -> np.ndarray:
    return to_uint8(luma(picture) * np.array((0.84, 0.7, 0.5), dtype=np.float32) + np.array((38, 28, 14), dtype="f4"))


def edges(picture: np.ndarray) -> np.ndarray:
    """Length of the luma's gradient by central differences, float32 (H, W, 1)."""
    grey = np.pad(luma(picture)[..., 0], 1, mode="edge")
    across, down = grey[1:-1, 2:] - grey[1:-1, :-2], grey[2:, 1:-1] - grey[:-2, 1:-1]
    return np.sqrt(across * across + down * down)[..., None]


def _comic(picture: np.ndarray) -> np.ndarray:
    flat = np.round(blurred(picture, 0.012) / 51) * 51
    flat = luma(flat) + 1.5 * (flat - luma(flat))
    return to_uint8(flat * (1 - np.clip((edges(picture) - 60) / 80, 0, 1)))


def _halftone(picture: np.ndarray) -> np.ndarray:
    return np.where(luma(picture) > _screen(*picture.shape[:2]), np.uint8(250), np.uint8(24)).repeat(3, axis=-1)


@lru_cache(maxsize=16)
def _screen(height: int, width: int) -> np.ndarray:
    """Thresholds of a 4×4 ordered screen (Bayer), (H, W, 1) in [0, 255]."""
    two = np.array([[0, 2], [3, 1]])
    four = np.block([[4 * two, 4 * two + 2], [4 * two + 3, 4 * two + 1]])
    tiled = np.tile(four, (-(-height // 4), -(-width // 4)))[:height, :width]
    return ((tiled + 0.5) * 16).astype(np.float32)[..., None]


def _neon(picture: np.ndarray) -> np.ndarray:
    strength = np.clip(edges(picture) / 90, 0, 1)
    vivid = picture - luma(picture) * 0.55
    return to_uint8(strength * (70 + vivid * 1.7) + 8)


def _relief(picture: np.ndarray) -> np.ndarray:
    grey = luma(picture)
    shifted = np.pad(grey, ((1, 0), (1, 0), (0, 0)), mode="edge")[:-1, :-1]
    return to_uint8(132 + 0.9 * (grey - shifted)).repeat(3, axis=-1)


STYLE: dict[str, Effect] = {
    "pixel art": _blocks,
    "poster": _poster,
    "oil": _oil,
    "sepia": _sepia,
    "negative": lambda p: 255 - p,
    "comic": _comic,
    "halftone": _halftone,
    "neon": _neon,
    "relief": _relief,
}
"""The effects of the style task."""


def _contrast(picture: np.ndarray, factor: float) -> np.ndarray:
    return to_uint8((picture.astype(np.float32) - 128) * factor + 128)


def _saturation(picture: np.ndarray, factor: float) -> np.ndarray:
    grey = luma(picture)
    return to_uint8(grey + (picture - grey) * factor)


COLOR: dict[str, Effect] = {
    "brighter": lambda p: _tint(p, (1.12, 1.12, 1.12), (38, 38, 38)),
    "darker": lambda p: _tint(p, (0.55, 0.55, 0.55), (0, 0, 0)),
    "contrast": lambda p: _contrast(p, 1.75),
    "flat": lambda p: _contrast(p, 0.45),
    "vivid": lambda p: _saturation(p, 2.2),
    "greyscale": lambda p: _saturation(p, 0.0),
    "warmer": lambda p: _tint(p, (1.15, 1.02, 0.68), (16, 6, 0)),
    "cooler": lambda p: _tint(p, (0.68, 0.98, 1.15), (0, 4, 22)),
    "hue": lambda p: np.ascontiguousarray(p[..., [2, 0, 1]]),
    "blur": lambda p: to_uint8(blurred(p, 0.02)),
    "strong blur": lambda p: to_uint8(blurred(p, 0.055)),
    "sharpen": lambda p: to_uint8(p + 1.6 * (p.astype(np.float32) - blurred(p, 0.022))),
}
"""The effects of the colour task."""
