"""Picture files into tensors: oriented, flattened to grey or RGB, resized, cropped; many at once in threads."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps

PREPROCESSING = "shorter side bicubic antialiased, centre crop"
"""What `prepare` does, in the words that reference statistics are stored with."""

Source = TypeVar("Source")


def prepare(picture: Image.Image, size: int, channels: int, at: tuple[float, float] = (0.5, 0.5)) -> torch.Tensor:
    """A PIL picture → uint8 (channels, size, size).

    In order: the EXIF orientation is applied; 16-bit grey is scaled to 8 bits; transparency is laid on
    white; conversion to RGB or grey (ITU-R 601 luma); the shorter side is resized to `size` with an antialiased
    bicubic filter, keeping the proportions; the centre is cropped, or what lies `at` (across, down) in [0, 1].
    """
    picture = flatten(ImageOps.exif_transpose(picture), "L" if channels == 1 else "RGB")
    width, height = picture.size
    scale = size / min(width, height)
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    if target != picture.size:
        picture = picture.resize(target, Image.Resampling.BICUBIC)
    left, top = (int((side - size) * share) for side, share in zip(target, at))
    pixels = np.array(picture.crop((left, top, left + size, top + size)))
    return torch.from_numpy(pixels.reshape(size, size, channels)).permute(2, 0, 1)


def flatten(picture: Image.Image, mode: str) -> Image.Image:
    """The picture in `mode` (`L` or `RGB`), without transparency and in 8 bits."""
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64) >> 8
        picture = Image.fromarray(grey.clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        layered = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered)
    return picture.convert(mode)


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0–255 → float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def decode_all(
    decode: Callable[[Source], torch.Tensor], sources: Sequence[Source]
) -> tuple[list[torch.Tensor | None], dict[int, str]]:
    """Decode every source in threads, in order; failures are None, with their reason by position."""

    def attempt(source: Source) -> torch.Tensor | str:
        try:
            return decode(source)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            return f"{type(error).__name__}: {error}"

    found = list(_pool(os.getpid()).map(attempt, sources))
    failures = {i: each for i, each in enumerate(found) if isinstance(each, str)}
    return [None if isinstance(each, str) else each for each in found], failures


@cache
def _pool(process: int) -> ThreadPoolExecutor:  # per process: threads do not survive a fork
    return ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="decode")
