"""Any picture → the square that an editor sees, and the edited square → the picture, changed only where it was.

reading     upright as its EXIF says; the first frame; 8 bits a channel (16-bit greys and floats are scaled, not cut
            off); greys, palettes, CMYK, … become RGB. What is transparent is seen on white.
fitting     scaled by one factor to fit into the editor's size, whole; what is left of the square goes on as the
            picture's edge does. Nothing is cropped and nothing squeezed.
returning   a pixel that the editor did not change keeps its value, bit by bit, at full size; the others are the
            edited square's, enlarged, and opaque where the picture was transparent.
"""

import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops, ImageOps

from latentia.core.images import to_pil
from latentia.errors import InputError
from latentia.pipelines import image_input

PAPER = (255, 255, 255)
"""What stands behind transparent pixels when the editor looks."""
COLOUR_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA")
"""Modes whose colour profile is the result's, too."""
SIXTEEN_BITS = 257
"""Levels of 16 bits to one of 8."""


def read_picture(picture: Image.Image, name: str = "image") -> Image.Image:
    """A PIL picture of any mode → RGB, or RGBA where something can be seen through; upright, 8 bits a channel.

    Raises `InputError` for floats outside [0, 255], broken files and modes that have no RGB.
    """
    try:
        upright = ImageOps.exif_transpose(picture)
        if upright.width < 1 or upright.height < 1:
            raise InputError(f"{name} has no pixels: {upright.width} × {upright.height}")
        mode = upright.mode
        if mode not in COLOUR_MODES:
            upright.info.pop("icc_profile", None)  # it tells of other colours than the result has
        if mode.startswith("I") or mode == "F":
            return Image.fromarray(_eight_bits(np.asarray(upright), name)).convert("RGB")
        if "A" in mode or "a" in mode or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            return rgba if np.asarray(rgba.getchannel("A")).min() < 255 else rgba.convert("RGB")
        return upright.convert("RGB")
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{name} cannot be read as a picture ({error}): save it anew as PNG") from error


def open_picture(path: str | os.PathLike[str]) -> Image.Image:
    """The picture in a file, loaded. Raises `InputError` for what is none, or more pixels than Pillow allows."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                return read_picture(picture, str(path))
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large: {error}. Make it smaller first") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise InputError(f"{path} cannot be read as a picture: {error}") from error


def _eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Greys of 16 or 32 bits or floats → uint8: whole numbers by 65535, floats by 1, unless they are 0 … 255."""
    if not np.isfinite(values).all():
        raise InputError(f"{name} holds NaN or infinity: give greys in [0, 1]")
    low, high = float(values.min()), float(values.max())
    whole = values.dtype.kind in "iu"
    if low < 0 or high > (65535 if whole else 255):
        raise InputError(
            f"{name} holds values from {low:g} to {high:g}: whole numbers of 16 bits, floats in [0, 1] or [0, 255]"
        )
    scale = SIXTEEN_BITS if whole else 1 if high > 1 else 1 / 255
    return np.rint(values.astype(np.float64) / scale).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Canvas:
    """One picture on the square that an editor sees.

    Attributes:
        original: the picture as read: RGB or RGBA, full size.
        seen: uint8 (height, width, 3), what the editor is given.
        box: (left, top, right, bottom) of the picture in `seen`; around it the edge goes on.
    """

    original: Image.Image
    seen: np.ndarray
    box: tuple[int, int, int, int]

    @classmethod
    def fit(cls, picture: Image.Image, height: int, width: int) -> "Canvas":
        """A picture that was read, in the middle of (height, width)."""
        factor = min(height / picture.height, width / picture.width)
        size = tuple(min(max(1, round(side * factor)), most) for side, most in zip(picture.size, (width, height)))
        left, top = (width - size[0]) // 2, (height - size[1]) // 2
        small = np.asarray(_resized(on_paper(picture), size))
        around = ((top, height - size[1] - top), (left, width - size[0] - left), (0, 0))
        return cls(picture, np.pad(small, around, mode="edge"), (left, top, left + size[0], top + size[1]))

    @property
    def reduced(self) -> bool:
        """Whether the editor sees fewer pixels than the picture has."""
        return self.original.width > self.box[2] - self.box[0] or self.original.height > self.box[3] - self.box[1]

    def returned(self, edited: np.ndarray, kept: np.ndarray | None = None) -> Image.Image:
        """What the editor made of `seen`, uint8 (height, width, 3) → the whole picture, RGB or RGBA.

        Pixels that equal those of `seen`, or are True in `kept` (height, width), count as unchanged. Where the picture
        is larger than the square, a change fades in within the pixels that changed; where it is smaller, a pixel
        changes as far as those it was enlarged to did.
        """
        left, top, right, bottom = self.box
        changed = (edited != self.seen).any(-1)
        if kept is not None:
            changed &= ~kept
        part = changed[top:bottom, left:right]
        if not part.any():
            return self.original.copy()
        size = self.original.size
        new = _resized(Image.fromarray(np.ascontiguousarray(edited[top:bottom, left:right])), size)
        if self.original.mode == "RGBA":
            new.putalpha(255)
        return Image.composite(new, self.original, _opacity(part, size))


def on_paper(picture: Image.Image) -> Image.Image:
    """RGB of a picture, transparent parts on white."""
    if picture.mode == "RGB":
        return picture
    paper = Image.new("RGB", picture.size, PAPER)
    paper.paste(picture, mask=picture.getchannel("A"))
    return paper


def _resized(picture: Image.Image, size: tuple[int, ...]) -> Image.Image:
    width, height = size
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _opacity(changed: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Of the new picture over the old one, 0 … 255 at full size: 0 on all that belongs to an unchanged pixel."""
    mask = Image.fromarray(changed.astype(np.uint8) * 255)
    if mask.size == size:
        return mask
    if mask.width > size[0] or mask.height > size[1]:
        return mask.resize(size, Image.Resampling.BOX)
    fading = mask.resize(size, Image.Resampling.BILINEAR).point([max(0, 2 * level - 255) for level in range(256)])
    return ImageChops.darker(fading, mask.resize(size, Image.Resampling.NEAREST))


def read_pictures(given: Any, name: str = "image") -> list[Image.Image]:
    """One picture or a list, in any of the field's forms, each read as `read_picture` does.

    PIL pictures; numpy (H, W, 3) or (B, H, W, 3), torch (3, H, W) or (B, 3, H, W): uint8, or floats in [0, 1] or
    [-1, 1], rounded to 8 bits. Raises `InputError` for anything else.
    """
    listed = list(given) if isinstance(given, list | tuple) else [given]
    if listed and all(isinstance(one, Image.Image) for one in listed):
        return [read_picture(one, name) for one in listed]
    parts = [part for part in image_input.read_pictures(name, given) if isinstance(part, torch.Tensor)]
    return [picture for part in parts for picture in to_pil(image_input.Pictures(part).centred())]
