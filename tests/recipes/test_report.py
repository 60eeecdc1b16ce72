"""The report page: everything in one file, everything escaped, charts drawn to scale."""

import re

import pytest
from PIL import Image

from latentia.recipes.report import Report, line_chart


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'polyline[^>]* points="([^"]*)"', svg)
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]


def test_a_page_holds_everything_and_escapes_it(tmp_path):
    page = Report("a < b", "lead & more")
    page.section("<script>", "one", "two")
    page.pictures([(Image.new("L", (4, 4)), "a 'picture'")])
    page.table(["name", "value"], [["x", "1"], ["<y>", "2"]], best=[1], rules=[1])
    page.charts([{"a": [(0, 1.0), (1, 2.0)]}, {"b": [(0, 3.0)]}], "step", "loss")
    text = page.write(tmp_path / "report.html").read_text()
    assert "<script>" not in text
    assert "<h1>a &lt; b</h1>" in text
    assert text.count("<p>") == 2
    assert text.count("data:image/png;base64,") == 1
    assert text.count("<svg") == 2
    assert '<tr class="best rule"><td>&lt;y&gt;</td><td>2</td></tr>' in text
    assert not re.search(r"https?://", text)


def test_a_chart_is_drawn_to_scale():
    ((a, b, c),) = points(line_chart({"l": [(0, 0.0), (5, 1.0), (10, 4.0)]}, "x", "y"))
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)
    assert (a[1] - c[1]) == pytest.approx(4 * (a[1] - b[1]), abs=0.5)


def test_a_logarithmic_chart_has_equal_decades_and_leaves_out_what_has_no_logarithm():
    ((a, b, c),) = points(
        line_chart({"l": [(0, 1.0), (1, 10.0), (2, 100.0), (3, 0.0), (4, float("nan"))]}, "", "", True)
    )
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2)


def test_a_constant_and_an_empty_line_can_be_drawn():
    assert len(points(line_chart({"flat": [(0, 2.0), (1, 2.0)], "none": []}, "", ""))) == 2
