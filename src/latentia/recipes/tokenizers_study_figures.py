"""Plots and pictures of `tokenizers-study`, from what its stages kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.images import grid, to_pil
from latentia.recipes.study import Figure
from latentia.recipes.svg import Axis, Plot
from latentia.recipes.tokenizers_study_claims import RULER
from latentia.recipes.tokenizers_study_kept import BITS, read_pictures, slug

if TYPE_CHECKING:
    from PIL import Image

INK = {"VQ-VAE": 0, "FSQ": 4, "LFQ": 5, "VQGAN": 1, "FlowMo-1A": 2, "FlowMo-1A+1B": 3, "FlowMo": 3}
INK |= {"jpeg": 7, "webp": 6, "avif": 1}
CROP, CORNER = 128, (150, 230)
"""Side of the detail of the whole photograph, and its (top, left): the spoon on the saucer."""
ORDER = ("original", *INK)
"""In which codecs and formats are shown: files hold them by name."""
AT_FULL = ("original", "VQGAN", "FlowMo-1A+1B", "avif")
WIDE = 560
Captioned = list[tuple["Image.Image", str]]


def rate_distortion(data: str, codecs: Mapping[str, Any], formats: Mapping[str, Any] | None) -> Figure:
    """PSNR against bits per pixel: codecs as points, formats (without headers) as lines."""
    points = {label: (row["bits_per_pixel"], row["psnr"]) for label, row in codecs.items()}
    # A format that cannot make files so small has no picture at that rate.
    lines = {
        name: [(x, y) for x, y, fits in curve if fits >= 0.5]
        for name, curve in (formats or {}).get("curves", {}).items()
    }
    flat = [*points.values(), *(mark for line in lines.values() for mark in line)]
    x, y = logarithmic([a for a, _ in flat]), Axis.of([b for _, b in flat])
    plot = Plot(x, y, "bits per pixel", "PSNR, dB", width=520, height=320)
    for name, line in lines.items():
        if line:
            plot.line(name, line, INK[name], dashed=True)
    for label, point in points.items():
        plot.scatter(label, [point], INK[label], size=5)
    planes = [(plot.svg(), f"{data}: rate and distortion")]
    name = RULER[data]
    marks = {label: (row["frechet"][name], row["psnr"]) for label, row in codecs.items()}
    for label, row in (formats or {}).get("without headers", {}).items():
        if row["fits"] >= 0.5:
            marks[label] = (row["frechet"][name], row["psnr"])
    across = logarithmic([a for a, _ in marks.values()])
    plane = Plot(across, Axis.of([b for _, b in marks.values()]), f"{name} (left is better)", "PSNR, dB", 520, 320)
    for label, mark in marks.items():
        plane.scatter(label, [mark], INK[label], None if label in codecs else "star", size=5)
    side, bits = BITS[data]
    planes.append((plane.svg(), f"{data}: both rulers, at {bits / side**2:.4g} bits per pixel"))
    return Figure(tuple(planes), "")


def compute_curves(data: str, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """PSNR and Fréchet distance of held-out pictures against CPU seconds of training."""
    panels = []
    for key, title, log in (("psnr", "PSNR, dB", False), (RULER[data], RULER[data], True)):
        lines = {name: [(each["cpu_seconds"], each[key]) for each in curve] for name, curve in curves.items()}
        flat = [mark for line in lines.values() for mark in line]
        x, heights = logarithmic([a for a, _ in flat]), [b for _, b in flat]
        y = logarithmic(heights) if log else Axis.of(heights)
        plot = Plot(x, y, "CPU seconds of training", title, width=520, height=320)
        for name, line in lines.items():
            plot.line(name, line, INK[name])
        panels.append((plot.svg(), f"{data}, n = {next(iter(curves.values()))[0]['n']} held-out pictures"))
    return Figure(tuple(panels), "")


def steps_plot(data: str, rows: Mapping[str, Mapping[str, Any]]) -> Figure:
    """PSNR and Fréchet distance against the sampler's steps, label → sampler → numbers."""
    panels = []
    for key, title in (("psnr", "PSNR, dB"), (RULER[data], RULER[data])):
        log = key != "psnr"
        lines = {
            label: sorted((int(name.split()[0]), read(row, key)) for name, row in found.items() if "steps" in name)
            for label, found in rows.items()
        }
        flat = [mark for line in lines.values() for mark in line]
        ticks = Axis.at(sorted({a for a, _ in flat}), log=True)
        heights = [b for _, b in flat]
        plot = Plot(ticks, logarithmic(heights) if log else Axis.of(heights), "steps of the sampler", title, 460, 280)
        for label, line in lines.items():
            plot.line(label, line, INK[label])
        panels.append((plot.svg(), data))
    return Figure(tuple(panels), "")


def logarithmic(values: Sequence[float]) -> Axis:
    """A logarithmic axis without ticks beyond its ends."""
    axis = Axis.of(values, log=True)
    inside = tuple(tick for tick in axis.ticks if axis.low <= tick[0] <= axis.high)
    middle = (axis.low * axis.high) ** 0.5
    return replace(axis, ticks=inside if len(inside) > 1 else (*inside, (middle, f"{middle:.2g}")))


def read(row: Mapping[str, Any], key: str) -> float:
    """PSNR, or a Fréchet distance."""
    return float(row[key] if key == "psnr" else row["frechet"][key])


def side_by_side(out: Path, stages: Sequence[str], data: str) -> Captioned:
    """The same pictures as each codec gives them back, a row a codec."""
    rows: dict[str, torch.Tensor] = {}
    for stage in stages:
        for label, x in read_pictures(out, stage).items():
            rows.setdefault(label, x)
    if not rows:
        return []
    names = sorted(rows, key=ORDER.index)
    x = torch.cat([rows[name] for name in names])
    columns = len(rows[names[0]])
    picture = grid(ink(x), columns=columns, scale=3 if data == "digits" else 2)
    return [(picture, f"From top to bottom: {', '.join(names)}.")]


def whole_photo(out: Path, rows: Mapping[str, Any]) -> tuple[Captioned, Captioned]:
    """The photograph as some give it back, and a detail of all of them."""
    kept = read_pictures(out, "whole")
    if not kept:
        return [], []
    full = [(half(to_pil(kept[name])[0]), caption(name, rows)) for name in AT_FULL if name in kept]
    top, left = (max(0, min(at, side - CROP)) for at, side in zip(CORNER, kept["original"].shape[-2:]))
    details = [
        (grid(x[..., top : top + CROP, left : left + CROP], columns=1, pad=0, scale=2), caption(name, rows))
        for name, x in sorted(kept.items(), key=lambda item: ORDER.index(item[0]))
    ]
    return full, details


def half(picture: Image.Image) -> Image.Image:
    """At most `WIDE` pixels wide, so that two stand side by side."""
    picture.thumbnail((WIDE, picture.height))
    return picture


def caption(name: str, rows: Mapping[str, Any]) -> str:
    """Name, PSNR and bytes."""
    if name not in rows:
        return name
    return f"{name}: {rows[name]['psnr']:.2f} dB, {rows[name]['bytes']:,} bytes"


def modes(out: Path, data: str, labels: Sequence[str], drawn: int) -> Captioned:
    """A code a row: the original, samples, their mean, and where they differ."""
    found: Captioned = []
    for label in labels:
        kept = read_pictures(out, f"modes-{data}-{slug(label)}")
        if kept:
            x = ink(kept["rows"])
            words = f"{label}: the original, {drawn} samples of its code, their mean, and their deviation (dark: more)"
            if data == "photos":
                words = words.replace("dark", "light")
            found.append((grid(x, columns=drawn + 3, scale=3 if data == "digits" else 2), words))
    return found


def ink(x: torch.Tensor) -> torch.Tensor:
    """Grey pictures as dark ink on white paper, others as they are."""
    return -x if x.shape[1] == 1 else x
