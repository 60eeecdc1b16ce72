"""Words in pictures, set in real fonts: those that ship with matplotlib, or Pillow's own where it is missing."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from latentia.errors import check_choice
from latentia.methods.emu_edit.world.scene import Writing
from latentia.methods.emu_edit.world.sprites import Patch, rgb
from latentia.methods.emu_edit.world.vocabulary import COLOURS, TEXT_PLACES

FONT_FILES = {"sans": "DejaVuSans-Bold.ttf", "serif": "STIXGeneralBol.ttf", "typewriter": "DejaVuSansMono-Bold.ttf"}
"""Fonts by the name that instructions use, and their files in matplotlib's font folder."""

HEIGHT, WIDTH = 0.235, 0.9
"""Height of capitals and the greatest width of a word, as shares of the picture's side."""

_FINE = 6
_EDGE = 0.022


@lru_cache
def fonts() -> tuple[str, ...]:
    """Names of the fonts that can be told apart here: all of `FONT_FILES`, or `sans` alone without matplotlib."""
    return tuple(FONT_FILES) if _folder() else ("sans",)


@lru_cache
def _folder() -> Path | None:
    try:
        from matplotlib import get_data_path
    except ImportError:
        return None
    folder = Path(get_data_path()) / "fonts" / "ttf"
    return folder if all((folder / name).is_file() for name in FONT_FILES.values()) else None


def text_font(name: str, pixels: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font by name at a height in pixels."""
    check_choice("font", name, FONT_FILES)
    folder = _folder()
    if folder is None:
        return ImageFont.load_default(pixels)
    return ImageFont.truetype(str(folder / FONT_FILES[name]), pixels)


@lru_cache(maxsize=4096)
def writing_patch(writing: Writing, size: int) -> tuple[int, int, Patch]:
    """Top, left and patch of a word in a picture of `size` pixels: letters with an edge of the opposite lightness."""
    letters, edged = _letters(writing.word, writing.font, size)
    colour = rgb(COLOURS[writing.colour])
    edge = rgb((20, 20, 24)) if float(colour.mean()) > 105 else rgb((245, 245, 245))
    cover, outer = letters[..., None], edged[..., None]
    ink = colour * cover + edge * np.maximum(outer - cover, 0)
    keep = 1 - np.maximum(outer, cover)
    height, width = letters.shape
    top = round(TEXT_PLACES[writing.place] * size - height / 2)
    return min(max(top, 0), size - height), (size - width) // 2, Patch(ink.astype(np.float32), keep.astype(np.float32))


@lru_cache(maxsize=1024)
def _letters(word: str, font_name: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage of the letters and of the letters with their edge, (h, w) in [0, 1] each."""
    fine = size * _FINE
    edge = max(round(_EDGE * fine), _FINE // 2)
    height = HEIGHT * fine
    probe = text_font(font_name, height)
    left, top, right, bottom = probe.getbbox(word)
    scale = min(HEIGHT * fine / (bottom - top), (WIDTH * fine - 2 * edge) / (right - left))
    font = text_font(font_name, height * scale)
    left, top, right, bottom = font.getbbox(word, stroke_width=edge)
    width, tall = (-(-int(n + 1) // _FINE) * _FINE for n in (right - left, bottom - top))
    drawn = []
    for stroke in (0, edge):
        canvas = Image.new("L", (width, tall))
        ImageDraw.Draw(canvas).text((-left, -top), word, fill=255, font=font, stroke_width=stroke)
        pixels = np.asarray(canvas, dtype=np.float32) / 255
        drawn.append(pixels.reshape(tall // _FINE, _FINE, width // _FINE, _FINE).mean(axis=(1, 3)))
    return drawn[0], drawn[1]
