"""Plots as inline SVG, drawn by hand: lines with a spread, scatters, bars, heat maps. No script, no matplotlib.

plot = Plot(Axis.of([1, 500], log=True), Axis.of([0.7, 0.8]), "K", "accuracy")
plot.line("mean", [(1, 0.71), (500, 0.75)], ink=0)
svg = plot.svg()

The colours of text and axes are the page's (`recipes.report.STYLE`), so that a plot follows its light or dark paper.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from latentia.recipes.report import INKS

LEFT, RIGHT, TOP = 52, 14, 12
SMALL = "font-size: 10px; text-anchor: middle"
MARKERS = ("circle", "square", "triangle", "diamond")
HEAT = np.array([(250, 247, 240), (246, 204, 138), (222, 120, 92), (130, 58, 110), (36, 24, 72)], dtype=np.float64)
"""Light to dark, and so readable without colour."""

Mark = tuple[float, float] | tuple[float, float, float]
"""A point (x, y), or with its spread (x, y, ±)."""


@dataclass(frozen=True)
class Axis:
    """What an axis shows: its ends, its ticks with their labels, and whether it is logarithmic."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float], log: bool = False, least: float = -math.inf) -> Axis:
        """An axis around the finite `values`, its end not below `least`, with ticks at round numbers."""
        usable = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
        low, high = min(usable), max(usable)
        if log:
            decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            steps = (1,) if high > 100 * low else (1, 2, 5)
            ticks = [m * 10.0**e for e in decades for m in steps if low / 1.5 <= m * 10.0**e <= high * 1.5]
            return cls(low / 1.25, high * 1.25, tuple((t, f"{t:g}") for t in ticks), True)
        margin = 0.06 * (high - low) or abs(high) * 0.05 or 0.5
        low, high = max(low - margin, least), high + margin
        return cls(low, high, tuple((t, f"{t:g}") for t in nice(low, high)))

    @classmethod
    def at(cls, values: Sequence[float], log: bool = False) -> Axis:
        """An axis with a tick at each of `values`, such as the five K of a sweep."""
        around = cls.of(values, log)
        return cls(around.low, around.high, tuple((v, f"{v:g}") for v in values), log)

    @classmethod
    def names(cls, names: Sequence[str]) -> Axis:
        """An axis of categories: number i is named i, with half a place on both sides."""
        return cls(-0.5, len(names) - 0.5, tuple((float(i), name) for i, name in enumerate(names)))

    def share(self, value: float) -> float:
        """Where `value` lies between the ends: 0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def nice(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, `about` of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


class Plot:
    """One pair of axes and what is drawn between them, in the order of the calls.

    Args:
        x, y: the axes.
        x_name, y_name: their names; the y axis' stands above it.
        width, height: in pixels, without the legend, which stands above in as many rows as it needs.
    """

    def __init__(
        self, x: Axis, y: Axis, x_name: str = "", y_name: str = "", width: int = 460, height: int = 280
    ) -> None:
        self.x, self.y, self.x_name, self.y_name = x, y, x_name, y_name
        self.width, self.height, self.bottom = width, height, 42 if x_name else 26
        self._marks: list[str] = []
        self._legend: list[tuple[str, int, str]] = []

    def spot(self, x: float, y: float) -> tuple[float, float]:
        """Pixel coordinates of a point, below the legend."""
        across = LEFT + self.x.share(x) * (self.width - LEFT - RIGHT)
        return across, self.height - self.bottom - self.y.share(y) * (self.height - TOP - self.bottom - 14)

    def line(self, name: str, marks: Sequence[Mark], ink: int, dashed: bool = False, dots: bool = True) -> None:
        """A line through `marks`, over a band where they have a spread; what is not finite is left out."""
        marks = self._drawable(marks)
        banded = [(m[0], m[1], m[2]) for m in marks if len(m) == 3]
        if banded:
            edge = [(x, y + s) for x, y, s in banded] + [(x, y - s) for x, y, s in reversed(banded)]
            self._add(f'<polygon points="{self._path(edge)}" fill="{_ink(ink)}" fill-opacity=".16"/>')
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        path = self._path([(m[0], m[1]) for m in marks])
        self._add(f'<polyline fill="none" stroke="{_ink(ink)}" stroke-width="1.8"{dash} points="{path}"/>')
        if dots:
            for mark in marks:
                self._add(_marker("circle", *self.spot(mark[0], mark[1]), 3, ink))
        self._name(name, ink, "line")

    def level(self, name: str, y: float, ink: int, spread: float = 0.0) -> None:
        """A dashed line across at `y`, with its band."""
        ends = [(self.x.low, y, spread), (self.x.high, y, spread)] if spread else [(self.x.low, y), (self.x.high, y)]
        self.line(name, ends, ink, dashed=True, dots=False)

    def scatter(self, name: str, marks: Sequence[Mark], ink: int, marker: str | None = None, size: float = 3.4) -> None:
        """Half-transparent markers; the shape goes with the ink unless given, so colour is never all that tells."""
        shape = marker or MARKERS[ink % len(MARKERS)]
        for mark in self._drawable(marks):
            self._add(_marker(shape, *self.spot(mark[0], mark[1]), size, ink, 0.6))
        self._name(name, ink, shape)

    def box(self, name: str, x: tuple[float, float], y: tuple[float, float], ink: int) -> None:
        """The rectangle that a published figure's points fill."""
        (x0, y0), (x1, y1) = self.spot(x[0], y[1]), self.spot(x[1], y[0])
        self._add(
            f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" rx="3" '
            f'fill="{_ink(ink)}" fill-opacity=".22" stroke="{_ink(ink)}"/>'
        )
        self._name(name, ink, "square")

    def ellipse(self, name: str, centre: tuple[float, float], radii: tuple[float, float], ink: int) -> None:
        """Mean and spread in two directions: a star in an ellipse."""
        (cx, cy), (ex, ey) = self.spot(*centre), self.spot(centre[0] + radii[0], centre[1] + radii[1])
        self._add(
            f'<ellipse cx="{cx:.1f}" cy="{cy:.1f}" rx="{ex - cx:.1f}" ry="{cy - ey:.1f}" fill="{_ink(ink)}" '
            f'fill-opacity=".18" stroke="{_ink(ink)}"/>'
        )
        self._add(_marker("star", cx, cy, 6, ink))
        self._name(name, ink, "star")

    def bars(self, name: str, values: Sequence[float | None], place: int, places: int, ink: int) -> None:
        """One bar a category, number `place` of `places` in each, with its value above; None draws none."""
        wide = 0.8 / places
        for i, value in enumerate(values):
            if value is None or not math.isfinite(value):
                continue
            left, top = self.spot(i - 0.4 + wide * place, max(value, self.y.low))
            right, floor = self.spot(i - 0.4 + wide * (place + 0.94), self.y.low)
            self._add(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{floor - top:.1f}" '
                f'fill="{_ink(ink)}"/>'
            )
            label = f"{value:.3f}".lstrip("0") if abs(value) < 1 else f"{value:.1f}"
            self._add(f'<text x="{(left + right) / 2:.1f}" y="{top - 3:.1f}" style="{SMALL}">{label}</text>')
        self._name(name, ink, "square")

    def span(self, x: float, low: float, high: float, ink: int) -> None:
        """An upright stroke from `low` to `high`, with ends."""
        (at, bottom), (_, top) = self.spot(x, low), self.spot(x, high)
        path = f"M{at - 5:.1f} {top:.1f}h10M{at:.1f} {top:.1f}V{bottom:.1f}M{at - 5:.1f} {bottom:.1f}h10"
        self._add(f'<path d="{path}" stroke="{_ink(ink)}" stroke-width="1.5" fill="none"/>')

    def note(self, x: float, y: float, text: str) -> None:
        """A few words at a point."""
        across, down = self.spot(x, y)
        self._add(f'<text x="{across:.1f}" y="{down:.1f}" style="{SMALL}">{html.escape(text)}</text>')

    def svg(self) -> str:
        """The drawing."""
        legend, lift = self._legend_row()
        body = "".join([*self._frame(), *self._marks])
        height = self.height + lift
        return (
            f'<svg role="img" width="{self.width}" height="{height}" viewBox="0 0 {self.width} {height}">'
            f'{legend}<g transform="translate(0 {lift})">{body}</g></svg>'
        )

    def _frame(self) -> list[str]:
        end, floor = self.width - RIGHT, self.height - self.bottom
        marks = [f'<text x="4" y="{TOP + 2}">{html.escape(self.y_name)}</text>']
        for value, label in self.y.ticks:
            down = self.spot(self.x.low, value)[1]
            marks.append(f'<line class="axis" x1="{LEFT}" x2="{end}" y1="{down:.1f}" y2="{down:.1f}"/>')
            marks.append(f'<text x="{LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">{html.escape(label)}</text>')
        for value, label in self.x.ticks:
            across = self.spot(value, self.y.low)[0]
            marks.append(f'<text x="{across:.1f}" y="{floor + 16}" text-anchor="middle">{html.escape(label)}</text>')
        name = html.escape(self.x_name)
        marks.append(f'<line class="axis" x1="{LEFT}" x2="{end}" y1="{floor}" y2="{floor}"/>')
        marks.append(f'<text x="{(LEFT + end) / 2}" y="{self.height - 6}" text-anchor="middle">{name}</text>')
        return marks

    def _legend_row(self) -> tuple[str, int]:
        marks, across, row = [], float(LEFT), 0
        for name, ink, shape in self._legend:
            wide = 36 + 6.8 * len(name)
            if across > LEFT and across + wide > self.width:
                across, row = float(LEFT), row + 1
            down = 12 + 17 * row
            if shape == "line":
                marks.append(f'<rect x="{across}" y="{down - 2}" width="14" height="4" fill="{_ink(ink)}"/>')
            else:
                marks.append(_marker(shape, across + 7, down, 4, ink))
            marks.append(f'<text x="{across + 19}" y="{down + 4}">{html.escape(name)}</text>')
            across += wide
        return "".join(marks), 17 * (row + 1) + 4 if self._legend else 0

    def _add(self, mark: str) -> None:
        self._marks.append(mark)

    def _name(self, name: str, ink: int, shape: str) -> None:
        if name and all(name != known for known, _, _ in self._legend):
            self._legend.append((name, ink, shape))

    def _drawable(self, marks: Sequence[Mark]) -> list[Mark]:
        return [
            m
            for m in marks
            if all(map(math.isfinite, m)) and (m[0] > 0 or not self.x.log) and (m[1] > 0 or not self.y.log)
        ]

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        low = self.y.low
        return " ".join("{:.1f},{:.1f}".format(*self.spot(x, max(y, low) if self.y.log else y)) for x, y in points)


def heat_map(values: np.ndarray, pixel: int = 6) -> Image.Image:
    """A matrix (rows, columns), min–max normalised, as a picture from light (least) to dark (most).

    A constant matrix is light everywhere; NaN is grey.
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    place = (values - low) / ((high - low) or 1.0) * (len(HEAT) - 1)
    known = np.nan_to_num(place)
    below = np.minimum(known.astype(int), len(HEAT) - 2)
    colour = HEAT[below] + (known - below)[..., None] * (HEAT[below + 1] - HEAT[below])
    colour[np.isnan(values)] = 128
    return Image.fromarray(colour.round().astype(np.uint8)).resize(
        (values.shape[1] * pixel, values.shape[0] * pixel), Image.Resampling.NEAREST
    )


def embedded(picture: Image.Image) -> str:
    """A picture as an <img> of its PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'


def _ink(number: int) -> str:
    return INKS[number % len(INKS)]


def _marker(shape: str, x: float, y: float, size: float, ink: int, opacity: float = 1.0) -> str:
    style = f'fill="{_ink(ink)}"' + (f' fill-opacity="{opacity}"' if opacity < 1 else "")
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" {style}/>'
    around = " ".join(f"{x + size * a:.1f},{y + size * b:.1f}" for a, b in _SHAPES[shape])
    return f'<polygon points="{around}" {style}/>'


def _star() -> list[tuple[float, float]]:
    turn: Callable[[int], float] = lambda i: math.pi * (i / 5 - 0.5)  # noqa: E731
    return [
        ((0.45 if i % 2 else 1.0) * math.cos(turn(i)), (0.45 if i % 2 else 1.0) * math.sin(turn(i))) for i in range(10)
    ]


_SHAPES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -1.15), (1.05, 0.8), (-1.05, 0.8)],
    "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
    "star": _star(),
}
