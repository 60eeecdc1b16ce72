"""Plots drawn by hand: to scale, with round ticks, and complete."""

import io
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from latentia.recipes.svg import Axis, Plot, heat_map, nice


def plot(x=(0, 10), y=(0, 1), **axes) -> Plot:
    return Plot(Axis.of(x), Axis.of(y, **axes), "x", "y")


def polyline(svg: str) -> list[tuple[float, float]]:
    (points,) = re.findall(r'<polyline[^>]* points="([^"]*)"', svg)
    return [tuple(map(float, pair.split(","))) for pair in points.split()]


def test_ticks_are_round_and_inside():
    assert nice(0.83, 0.97) == pytest.approx([0.85, 0.9, 0.95])
    assert nice(-3.2, 41) == pytest.approx([0, 10, 20, 30, 40])
    axis = Axis.of([71.3, 76.9])
    assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)
    assert Axis.of([5.0, 5.0]).low < 5 < Axis.of([5.0, 5.0]).high
    assert [label for _, label in Axis.at([1, 10, 50, 200, 500], log=True).ticks] == ["1", "10", "50", "200", "500"]
    assert [value for value, _ in Axis.of([1, 5000], log=True).ticks] == [1, 10, 100, 1000]
    assert Axis.of([float("nan")]).ticks


def test_a_logarithmic_axis_has_equal_decades():
    axis = Axis.of([1, 100], log=True)
    assert axis.share(10) - axis.share(1) == pytest.approx(axis.share(100) - axis.share(10))
    assert Axis.of([0.3, 5], least=0.3).share(0.3) == 0


def test_a_line_is_drawn_to_scale_over_its_band():
    drawing = plot()
    drawing.line("a < b", [(0, 0.0, 0.1), (5, 0.25, 0.1), (10, 1.0, 0.1), (7, float("nan"), 0.1)], 0)
    svg = drawing.svg()
    a, b, c = polyline(svg)
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert a[1] - c[1] == pytest.approx(4 * (a[1] - b[1]), abs=0.5)
    (band,) = re.findall(r'<polygon points="([^"]*)"', svg)
    edge = [tuple(map(float, pair.split(","))) for pair in band.split()]
    assert len(edge) == 6
    assert edge[-1][1] - edge[0][1] == pytest.approx(0.2 * (a[1] - c[1]), abs=0.2)
    assert "a &lt; b" in svg


def test_bars_stand_on_the_axis_and_say_their_value():
    drawing = Plot(Axis.names(["one", "two"]), Axis.of([0, 100], least=0.0))
    drawing.bars("mean", [50.0, 100.0], 0, 2, 0)
    drawing.bars("best", [None, 0.25], 1, 2, 1)
    svg = drawing.svg()
    heights = [float(h) for h in re.findall(r'<rect[^>]*width="[\d.]+" height="([\d.]+)" fill="#3b6fd4"', svg)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert re.findall(r"text-anchor: middle\">([^<]*)<", svg) == ["50.0", "100.0", ".250"]


def test_every_mark_is_valid_svg():
    drawing = plot()
    drawing.scatter("points", [(1, 0.5), (float("inf"), 0.2)], 1)
    drawing.scatter("", [(1, 0.5)], 0)
    drawing.box("paper", (1, 2), (0.2, 0.4), 2)
    drawing.ellipse("mean", (5, 0.5), (1, 0.1), 3)
    drawing.span(3, 0.1, 0.9, 4)
    drawing.level("level", 0.4, 5, 0.1)
    drawing.note(2, 0.5, "<here>")
    root = ET.parse(io.StringIO(drawing.svg())).getroot()
    tags = [each.tag for each in root.iter()]
    assert {tag: tags.count(tag) for tag in ("ellipse", "path", "circle")} == {"ellipse": 1, "path": 1, "circle": 1}
    legend = [each.text for each in root.findall("text")]
    assert legend == ["points", "paper", "mean", "level"]


def test_a_long_legend_takes_rows_and_the_drawing_grows():
    few, many = plot(), plot()
    few.scatter("a", [(1, 0.5)], 0)
    for i in range(12):
        many.scatter(f"a rather long name {i}", [(1, 0.5)], i)
    few_height, many_height = (int(re.search(r'height="(\d+)"', each.svg())[1]) for each in (few, many))
    assert many_height > few_height + 60


def test_a_heat_map_is_normalised_from_light_to_dark():
    picture = np.asarray(heat_map(np.array([[-2.0, 0.0], [2.0, float("nan")]]), pixel=3))
    assert picture.shape == (6, 6, 3)
    light, middle, dark, unknown = picture[0, 0], picture[0, 3], picture[3, 0], picture[3, 3]
    assert light.tolist() == [250, 247, 240]
    assert middle.tolist() == [222, 120, 92]
    assert dark.tolist() == [36, 24, 72]
    assert unknown.tolist() == [128, 128, 128]
    assert np.asarray(heat_map(np.full((2, 2), 7.0), 1)).reshape(-1, 3).tolist() == [[250, 247, 240]] * 4
