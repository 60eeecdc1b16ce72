"""JPEG, WebP and AVIF at a given number of bits: what a codec has to be better than."""

import io
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, features

from latentia.errors import InputError, MissingDependency, check_choice

FORMATS = ("jpeg", "webp", "avif")
_SAVING: dict[str, dict[str, Any]] = {
    "jpeg": {"optimize": True, "progressive": True},
    "webp": {"method": 6},
    "avif": {"speed": 4},
}


@dataclass(frozen=True, slots=True)
class Compressed:
    """A picture as an image format stores it within a budget.

    Attributes:
        picture: what comes back.
        bytes: size of the file.
        payload: bytes of it that are not header: what entropy coding wrote.
        quality: the format's own setting, 0 to 100.
        fits: whether the budget was kept; if not, this is the smallest file that the format makes.
    """

    picture: Image.Image
    bytes: int
    payload: int
    quality: int
    fits: bool


def compress(picture: Image.Image, name: str, budget: float, headers: bool = True) -> Compressed:
    """The picture at the highest quality whose file stays within `budget` bytes.

    Args:
        picture: RGB or L.
        name: `jpeg` (progressive, optimised tables), `webp` (lossy, method 6) or `avif` (speed 4).
        budget: bytes.
        headers: count the whole file; False counts the payload alone (a JPEG's scans, a WebP's frame, an AVIF's media
            data), as tokens are counted without theirs.

    Raises `MissingDependency` for a format that this Pillow cannot write.
    """
    check_choice("format", name, FORMATS)
    if name != "jpeg" and not features.check(name):
        raise MissingDependency(f"this Pillow cannot write {name}: pip install --upgrade pillow")
    if picture.mode not in ("RGB", "L"):
        raise InputError(f"picture has mode {picture.mode!r}: convert it to RGB or L first")
    low, high, best = 0, 100, None
    while low <= high:  # size grows with quality
        quality = (low + high) // 2
        data = _save(picture, name, quality)
        size = len(data) if headers else payload_size(data, name)
        if size <= budget:
            best, low = (data, quality), quality + 1
        else:
            high = quality - 1
    fits = best is not None
    data, quality = best or (_save(picture, name, 0), 0)
    back = Image.open(io.BytesIO(data)).convert(picture.mode)
    return Compressed(back, len(data), payload_size(data, name), quality, fits)


def payload_size(data: bytes, name: str) -> int:
    """Bytes of a file that carry the picture and not its description."""
    return {"jpeg": _jpeg_scans, "webp": _webp_frame, "avif": _avif_media}[name](data)


def _save(picture: Image.Image, name: str, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, format=name.upper(), quality=quality, **_SAVING[name])
    return file.getvalue()


def _jpeg_scans(data: bytes) -> int:
    """Entropy-coded bytes of all scans: everything outside marker segments."""
    at, total = 2, 0
    while at < len(data) - 1:
        if data[at] == 0xFF and data[at + 1] not in (0x00, 0xFF):
            marker = data[at + 1]
            if marker == 0xD9:
                break
            if 0xD0 <= marker <= 0xD7:
                at += 2
                continue
            at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
        else:
            end = _next_marker(data, at)
            total += end - at
            at = end
    return total


def _next_marker(data: bytes, start: int) -> int:
    at = np.flatnonzero(np.frombuffer(data, np.uint8)[start:-1] == 0xFF) + start
    return next((int(i) for i in at if data[i + 1] not in (0x00, 0xFF)), len(data))


def _webp_frame(data: bytes) -> int:
    """The VP8 chunk without its frame header of 10 bytes."""
    at = 12
    while at + 8 <= len(data):
        kind, size = data[at : at + 4], int(struct.unpack_from("<I", data, at + 4)[0])
        if kind == b"VP8 ":
            return size - 10
        at += 8 + size + size % 2
    return len(data)


def _avif_media(data: bytes) -> int:
    """The body of the `mdat` boxes."""
    at, total = 0, 0
    while at + 8 <= len(data):
        size = int(struct.unpack_from(">I", data, at)[0]) or len(data) - at
        if data[at + 4 : at + 8] == b"mdat":
            total += size - 8
        at += size
    return total
