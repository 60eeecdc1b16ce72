"""The study's figures: ours beside the paper's, drawn from plain numbers."""

import re

import numpy as np
import pytest
import torch

from latentia.errors import InputError
from latentia.methods.pdiff.populations import Population
from latentia.methods.pdiff.protocol import Iou, Noise, Run, verdict
from latentia.methods.pdiff.verdict import Gap, conclude
from latentia.recipes import pdiff_figures as figures
from latentia.recipes.pdiff_paper import PAPER
from latentia.recipes.study import StudyPage


def numbers(mean: float) -> dict[str, float]:
    return {"best": mean + 0.02, "mean": mean, "median": mean + 0.01}


def labels(svg: str) -> list[str]:
    return re.findall(r"text-anchor: middle\">([^<]*)<", svg)


def test_the_k_sweep_shows_our_k_beside_the_papers():
    figure = figures.k_sweep({10: numbers(0.8), 2: numbers(0.7) | {"spread": 0.01}}, originals=0.85)
    (ours, _), (paper, caption) = figure.panels
    assert ours.count("<polyline") == 4
    assert ours.count("<polygon") == 1  # only one setting knows its spread: a band of no width, but there
    assert ">2</text>" in ours
    assert ">500</text>" in paper
    assert "originals&#x27; mean" in ours
    assert "ResNet-18" in caption
    assert "table 2a" in figure.note


@pytest.mark.parametrize(
    ("draw", "rows", "published"),
    [
        (figures.noise_augmentation, {"none": numbers(0.6), "both": numbers(0.9)}, ["65.8", "67.3", "75.6"]),
    ],
)
def test_bars_print_our_numbers_and_the_papers(draw, rows, published):
    (ours, _), (paper, _) = draw(rows).panels
    expected = [f"{100 * row[name]:.1f}" for name in ("best", "mean", "median") for row in rows.values()]
    assert labels(ours) == expected
    assert set(published) <= set(labels(paper))


def test_every_depth_stands_beside_its_own_originals():
    rows = {"layer1": {"originals": numbers(0.9), "p-diff": numbers(0.8)}, "layer2": {"originals": numbers(0.7)}}
    (ours, _), (paper, _) = figures.layer_depths(rows).panels
    assert labels(ours) == ["92.0", "82.0", "72.0", "90.0", "80.0", "70.0", "91.0", "81.0", "71.0"]
    assert "p-diff 1" in ours
    assert {"71.9", "72.2", "76.8"} <= set(labels(paper))


def test_the_noise_is_a_line_and_sets_are_points_of_every_run():
    noise = [{"scale": s, "novelty": 0.1 * s, "accuracy": 0.9 - 0.02 * s * s} for s in (0.5, 1, 2, 4)]
    places = {"Gaussian": {"novelty": 0.3, "accuracy": 0.88}, "p-diff": {"novelty": 0.25, "accuracy": 0.9}}
    (whole, _), (near, _) = figures.novelty_curve([{"noise": noise, "places": places}] * 3).panels
    for svg, dots in ((whole, 4), (near, 3)):
        assert svg.count("<polyline") == 1
        assert svg.count("fill-opacity") == 6
        assert svg.count("<circle") >= dots
    assert whole.index(">p-diff<") < whole.index(">Gaussian<")


def test_a_collapse_is_drawn_from_zero():
    (ours, _), (paper, _) = figures.whole_networks({"ConvNet-3": (0.91, 0.93, 0.1)}).panels
    assert labels(ours) == ["91.0", "93.0", "10.0"]
    assert ">0</text>" in ours
    assert labels(paper) == ["77.2", "48.1", "77.3", "48.1", "77.5", "48.2"]


def test_patterns_say_whether_seeds_share_them():
    shared = np.random.default_rng(0).normal(size=(4, 3, 2))
    figure = figures.parameter_patterns({"conv": [shared, 2 * shared + 1, 3 * shared], "one": [shared]})
    assert [caption for _, caption in figure.panels] == [
        "conv, 3 seeds; correlation between seeds +1.00",
        "one, 1 seeds",
    ]
    assert figure.panels[0][0].count("data:image/png") == 3
    assert figures.mean_correlation([shared, -shared]) == pytest.approx(-1)


def test_the_four_similarities_stand_beside_both_editions():
    ours = dict(zip(PAPER["similarity"].values, (0.95, None, 0.9, 0.99)))
    ((svg, _),) = figures.four_similarities(ours).panels
    assert labels(svg)[:3] == [".950", ".900", ".990"]
    assert {".968", ".912", ".784", ".880"} <= set(labels(svg))
    with pytest.raises(InputError, match="four comparisons are originals"):
        figures.four_similarities({"originals": 1.0})


def test_every_network_is_a_point_of_the_scatter():
    groups = {"originals": [(0.9, 0.8)] * 3, "p-diff": [(0.8, 0.82)] * 2, "fine-tuned": [(0.99, 0.8)]}
    ours, paper, critics = (svg for svg, _ in figures.accuracy_and_similarity(groups).panels)
    assert ours.count("fill-opacity") == 6
    assert paper.count('rx="3"') == 3
    assert critics.count('rx="3"') == 6
    assert len(figures.accuracy_and_similarity({}, critics=False).panels) == 2


def test_the_latent_map_keeps_groups_apart(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    groups = {"a": torch.randn(20, 2, 3, generator=rng), "b": torch.randn(15, 2, 3, generator=rng) + 20}
    points = figures.tsne(groups, seed=1, perplexity=8)
    assert [len(points[name]) for name in groups] == [20, 15]
    a, b = (np.array(points[name]) for name in groups)
    apart = np.linalg.norm(a[:, None] - b[None], axis=-1)
    within = np.linalg.norm(a[:, None] - a[None], axis=-1)
    assert within[within > 0].min() < apart.min()
    monkeypatch.setattr(figures, "tsne", lambda *given: points if given[1:] == (1, 8) else None)
    ((svg, _),) = figures.latent_map(groups, seed=1, perplexity=8).panels
    assert svg.count("fill-opacity") == 35


def test_too_few_latents_have_no_map():
    with pytest.raises(InputError, match="at least 4"):
        figures.tsne({"a": torch.zeros(3, 2)})


def test_trajectories_keep_their_distances_in_the_plane():
    # Everything lies in the plane of coordinates 2 and 5, so that the projection loses nothing.
    rng = np.random.default_rng(0)
    originals = np.zeros((40, 9))
    originals[:, [2, 5]] = rng.normal(size=(40, 2)) * (3, 1)
    start = np.zeros((5, 1, 9))
    start[..., [2, 5]] = rng.normal(size=(5, 1, 2)) * 20
    paths = start * np.linspace(1, 0.05, 11)[None, :, None]
    data = figures.trajectory_planes(paths, originals, steps=range(0, 110, 10))
    centre = originals.mean(0)
    for plane in (data["far"], data["near"]):
        got = np.linalg.norm(np.array(plane["paths"]), axis=-1)
        np.testing.assert_allclose(got, np.linalg.norm(paths - centre, axis=-1), rtol=1e-6)
        np.testing.assert_allclose(sorted(plane["std"])[1], originals[:, 2].std(), rtol=0.25)
    np.testing.assert_allclose(data["distances"], np.linalg.norm(paths - centre, axis=-1))
    own = np.linalg.norm(originals - centre, axis=1)
    assert data["original_distance"] == pytest.approx((own.mean(), own.std()))
    far, near, across = (svg for svg, _ in figures.trajectories(data).panels)
    assert far.count("<polyline") == near.count("<polyline") == 5
    assert across.count("<polyline") == 6
    assert far.count("<ellipse") == 1


def test_maximum_similarity_shows_every_point_and_the_papers_range():
    (ours, _), (paper, _) = figures.maximum_similarity({1: [0.9, 0.95], 10: [0.8, 0.9, 0.99]}).panels
    assert ours.count("<circle") == 5
    assert ours.count("<path") == 2
    assert paper.count("<path") == 5
    assert "<circle" not in paper


def population(name: str, mean: float, **other: float | None) -> Population:
    fields = dict.fromkeys(Population.model_fields, 0.0) | {"n": 100, "tied": 1, "above": 3, "mean": mean, "name": name}
    return Population(**fields | other)


def test_the_protocols_table_has_a_row_a_population():
    gap = Gap(value=0.01, se_images=0.001, se_networks=0.0)
    compared = conclude("originals", gap, gap, gap, (0.9, 0.9))
    runs = [
        Run(
            seed=seed,
            images=540,
            select_images=200,
            populations=[population("originals", 0.8), population("p-diff", 0.8 + 0.01 * seed, l2_nearest=None)],
            comparisons=[compared],
            iou=Iou(originals=0.9, generated=0.9, across=0.9, nearest=0.9),
            noise=Noise(scale=1.0, unit="coordinate", similarity=0.9, target=0.9, reached=True),
        )
        for seed in range(3)
    ]
    columns, rows = figures.protocol_table(verdict(runs))
    assert [len(row) for row in rows] == [len(columns)] * 2
    assert rows[0][:5] == ["originals", "100", "0.00", "80.00", "0.00"]
    assert rows[1][columns.index("mean")] == "81.00 ± 1.00"
    assert rows[1][columns.index("L2 nearest")] == ""


def test_the_page_holds_figures(tmp_path):
    page = StudyPage("<study>", "lead")
    page.section("K")
    page.figure(figures.Figure((("<svg></svg>", "a & b"),), "note <1>"))
    text = page.write(tmp_path / "report.html").read_text()
    assert "<figure><svg></svg><figcaption>a &amp; b</figcaption></figure>" in text
    assert "note &lt;1&gt;" in text
    assert not re.search(r"https?://|<script", text)


def test_the_papers_numbers_name_their_source():
    assert all(published.source and published.what for published in PAPER.values())
    assert PAPER["originals"].values[200] == (76.9, 72.4, 75.6) == PAPER["layers"].values["BN 16–18"]
    assert PAPER["noise"].values["both"] == PAPER["originals"].values[200]
