"""A report in one self-contained HTML file: prose, pictures, line charts and tables, no script, no network.

page = Report("Handwritten digits", "What this page shows.")
page.section("Samples", "One paragraph.")
page.pictures([(grid(x), "latent diffusion")])
page.curves({"train": [(0, 1.0), (10, 0.3)]}, "step", "loss")
page.table(["model", "score"], [["AE", "0.1"]])
page.write(folder / "report.html")
"""

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from latentia.core.files import write_text_atomic

Point = tuple[float, float]
INKS = ("#3b6fd4", "#d4622f", "#2f9e6e", "#9a4fc4", "#b8912a", "#c43b66", "#4a8a9e", "#777777")

STYLE = """
:root { color-scheme: light dark; --ink: #1c1d22; --soft: #686b76; --line: #dfe1e8; --paper: #fdfdfc; --best: #e7f3ea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --soft: #9c9faa; --line: #35373f; --paper: #17181c; --best: #1f3527; } }
body { margin: 0 auto; max-width: 76rem; padding: 3rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, sans-serif; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .4rem; } h2 { margin: 3rem 0 .4rem; font-size: 1.35rem; }
p { max-width: 46rem; margin: .4rem 0 1rem; } .lead { font-size: 1.12rem; color: var(--soft); }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; margin: 1rem 0; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .88rem; max-width: 30rem; margin-top: .3rem; }
img { image-rendering: pixelated; max-width: 100%; border-radius: 6px; display: block; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .35rem .55rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; }
tr.best td { background: var(--best); font-weight: 600; } tr.rule td { border-top: 2px solid var(--soft); }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; } svg .axis { stroke: var(--line); }
"""


class Report:
    """One page, told from top to bottom; every text is escaped.

    Args:
        title: the page's heading.
        lead: the sentence below it: what was done, in which time, and what came out.
    """

    def __init__(self, title: str, lead: str) -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>", f'<p class="lead">{html.escape(lead)}</p>']

    def section(self, heading: str, *paragraphs: str) -> None:
        """A heading and what there is to say under it."""
        self._parts.append(f"<h2>{html.escape(heading)}</h2>")
        self._parts += [f"<p>{html.escape(text)}</p>" for text in paragraphs]

    def pictures(self, captioned: Sequence[tuple[Image.Image, str]]) -> None:
        """Pictures side by side, each with its caption, embedded as PNG."""
        figures = "".join(_figure(picture, caption) for picture, caption in captioned)
        self._parts.append(f'<div class="row">{figures}</div>')

    def charts(self, charts: Sequence[Mapping[str, Sequence[Point]]], x: str, y: str, log: bool = False) -> None:
        """Line charts side by side, each of named lines; `log` for a logarithmic y axis (positive values only)."""
        figures = "".join(f"<figure>{line_chart(series, x, y, log)}</figure>" for series in charts)
        self._parts.append(f'<div class="row">{figures}</div>')

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        best: Sequence[int] = (),
        rules: Sequence[int] = (),
    ) -> None:
        """A table; rows numbered in `best` are highlighted, those in `rules` start below a line."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        body = []
        for i, row in enumerate(rows):
            names = " ".join([*(["best"] if i in best else []), *(["rule"] if i in rules else [])])
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            body.append(f'<tr class="{names}">{cells}</tr>')
        self._parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
        )

    def html(self) -> str:
        """The whole page."""
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
            f"<body>{''.join(self._parts)}</body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page, whole or not at all, and return its path."""
        write_text_atomic(path, self.html())
        return path


def _figure(picture: Image.Image, caption: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def line_chart(
    series: Mapping[str, Sequence[Point]], x: str, y: str, log: bool = False, width: int = 540, height: int = 260
) -> str:
    """An inline SVG of named lines, each [(x, y), …]; what cannot be drawn (NaN; y ≤ 0 in `log`) is left out."""
    drawn = {
        name: [(px, math.log10(py) if log else py) for px, py in points if math.isfinite(py) and (py > 0 or not log)]
        for name, points in series.items()
    }
    flat = [point for points in drawn.values() for point in points] or [(0.0, 0.0)]
    left, right, top, bottom = 56, 12, 12 + 16 * len(drawn), 36
    x0, x1 = _span([px for px, _ in flat])
    y0, y1 = _span([py for _, py in flat])

    def at(px: float, py: float) -> str:
        across = left + (px - x0) / (x1 - x0) * (width - left - right)
        down = height - bottom - (py - y0) / (y1 - y0) * (height - top - bottom)
        return f"{across:.1f},{down:.1f}"

    marks = []
    for i in range(5):
        value = y0 + (y1 - y0) * i / 4
        level = float(at(x0, value).split(",")[1])
        label = f"{10**value if log else value:.3g}"
        marks.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{level}" y2="{level}"/>')
        marks.append(f'<text x="{left - 6}" y="{level + 4}" text-anchor="end">{label}</text>')
        along = x0 + (x1 - x0) * i / 4
        spot = at(along, y0).split(",")[0]
        marks.append(f'<text x="{spot}" y="{height - bottom + 16}" text-anchor="middle">{along:.4g}</text>')
    for i, (name, points) in enumerate(drawn.items()):
        ink = INKS[i % len(INKS)]
        path = " ".join(at(px, py) for px, py in points)
        marks.append(f'<polyline fill="none" stroke="{ink}" stroke-width="1.8" points="{path}"/>')
        marks.append(f'<rect x="{left}" y="{6 + 16 * i}" width="14" height="4" fill="{ink}"/>')
        marks.append(f'<text x="{left + 20}" y="{12 + 16 * i}">{html.escape(name)}</text>')
    marks.append(f'<text x="{width - right}" y="{height - 4}" text-anchor="end">{html.escape(x)}</text>')
    marks.append(f'<text x="{left}" y="{height - 4}">{html.escape(y)}</text>')
    return f'<svg role="img" width="{width}" height="{height}" viewBox="0 0 {width} {height}">{"".join(marks)}</svg>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, low + 0.5)
