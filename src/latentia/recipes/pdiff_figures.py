"""The figures of the p-diff study: each experiment of the article as ours beside the paper's.

Every function takes plain numbers (so that a cached stage can be drawn again) and returns a `Figure`. Accuracies come
as shares of 1 and are drawn in per cent, as the paper prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from latentia.errors import InputError
from latentia.recipes.pdiff_paper import PAPER
from latentia.recipes.study import Figure
from latentia.recipes.svg import Axis, Mark, Plot, embedded, heat_map

if TYPE_CHECKING:
    from latentia.methods.pdiff.protocol import Summary

Numbers = Mapping[str, float]
"""best, mean and median of one setting, as shares of 1; optionally `spread`, that of the mean over runs."""
Pair = tuple[float, float]
NOISE_FROM, NOISE_TO = "1/16", "4"
SHOWN = ("best", "mean", "median")
HERE = "Here, on digits"


def k_sweep(by_k: Mapping[int, Numbers], originals: float | None = None) -> Figure:
    """Accuracy against the number of originals K: best, mean and median of the generated networks.

    `originals` is the originals' own mean, drawn across.
    """
    ours = {name: [_mark(k, numbers, name) for k, numbers in sorted(by_k.items())] for name in SHOWN}
    paper = {name: [(float(k), row[i]) for k, row in PAPER["originals"].values.items()] for i, name in enumerate(SHOWN)}
    return Figure(
        (
            (_sweep(ours, None if originals is None else 100 * originals), HERE),
            (_sweep(paper), f"Paper: {PAPER['originals'].what}"),
        ),
        PAPER["originals"].caption(),
    )


def layer_depths(by_depth: Mapping[str, Mapping[str, Numbers]]) -> Figure:
    """Accuracy by the depth of the generated layers: depth → `originals` and `p-diff`, beside each other."""
    rows = {
        f"{kind} {depth.removeprefix('layer')}": numbers
        for depth, kinds in by_depth.items()
        for kind, numbers in kinds.items()
    }
    return _grouped(rows, "layers")


def noise_augmentation(by_noise: Mapping[str, Numbers]) -> Figure:
    """Accuracy by where the autoencoder's noise is added: none, parameters, latents, both."""
    return _grouped(by_noise, "noise")


def whole_networks(rows: Mapping[str, Sequence[float]]) -> Figure:
    """Whole networks from independent seeds: name → (original, ensemble, p-diff), as shares of 1.

    A fourth number is that of `pdiff-seeds`, which the paper does not have.
    """
    names = ("original", "ensemble", "p-diff", "matched p-diff")
    theirs = names[:3]
    shown = names[: max(3, *map(len, rows.values()))]
    ours = {name: dict(zip(shown, row, strict=True)) for name, row in rows.items()}
    paper = {k: dict(zip(theirs, row)) for k, row in PAPER["whole networks"].values.items() if "CIFAR-10" in k.split()}
    return Figure(
        (
            (_bar_panel(_percent(ours, shown), shown), f"{HERE}. {_CUT}"),
            (_bar_panel(paper, theirs), f"Paper: CIFAR-10. {_CUT}"),
        ),
        PAPER["whole networks"].caption(),
    )


def parameter_patterns(layers: Mapping[str, Sequence[Any]], pixel: int = 5) -> Figure:
    """Heat maps of weight matrices, min–max normalised: layer → one (rows, columns) array a seed.

    Below each layer stands the mean correlation between its seeds: whether there is a pattern that they share.
    """
    panels = []
    for layer, seeds in layers.items():
        arrays = [np.asarray(seed, dtype=np.float64).reshape(len(seed), -1) for seed in seeds]
        pictures = " ".join(f"<span>{embedded(heat_map(array, pixel))}</span>" for array in arrays)
        words = f"{layer}, {len(arrays)} seeds"
        if len(arrays) > 1:
            words += f"; correlation between seeds {mean_correlation(arrays):+.2f}"
        panels.append((f'<div class="row">{pictures}</div>', words))
    return Figure(tuple(panels), PAPER["patterns"].caption())


def mean_correlation(arrays: Sequence[np.ndarray]) -> float:
    """Mean correlation of the elements over all pairs of equally shaped arrays."""
    table = np.corrcoef(np.stack([array.ravel() for array in arrays]))
    return float(table[np.triu_indices(len(arrays), 1)].mean())


def four_similarities(ours: Mapping[str, float | None]) -> Figure:
    """The four comparisons of mistakes, under the names that the paper's have."""
    names = tuple(PAPER["similarity"].values)
    if set(ours) != set(names):
        raise InputError(f"the four comparisons are {', '.join(names)}; got {', '.join(ours) or 'none'}")
    columns = {"here": ours, "first edition": PAPER["similarity"].values}
    columns["later code"] = PAPER["similarity, later code"].values
    known = [value for column in columns.values() for value in column.values() if value is not None]
    plot = Plot(Axis.names(names), Axis.of([min(known) - 0.02, 1.0]), "", "IoU of mistakes", width=640)
    for place, (name, column) in enumerate(columns.items()):
        plot.bars(name, [column[each] for each in names], place, len(columns), place)
    note = f"{PAPER['similarity'].caption()} Later code: {PAPER['similarity, later code'].source}."
    return Figure(((plot.svg(), f"High: they make the same mistakes. {_CUT}"),), note)


def accuracy_and_similarity(groups: Mapping[str, Sequence[Pair]], critics: bool = True) -> Figure:
    """Each network as (similarity to the nearest original, accuracy as a share of 1), by group.

    Up is better, left is newer. With `critics`, the third panel is what the paper's critics measured.
    """
    marks = {name: [(s, 100 * a) for s, a in pairs] for name, pairs in groups.items()}
    flat = [pair for pairs in marks.values() for pair in pairs] or [(0.5, 50.0)]
    plot = Plot(Axis.of([s for s, _ in flat]), Axis.of([a for _, a in flat]), _NEAREST, "accuracy, %", _THIRD)
    for ink, (name, pairs) in enumerate(marks.items()):
        plot.scatter(name, pairs, ink)
    panels = [(plot.svg(), HERE), (_boxes("accuracy and similarity"), "Paper: where its points lie")]
    note = PAPER["accuracy and similarity"].caption()
    if critics:
        panels.append((_boxes("critics"), "Critics: where their points lie"))
        note += f" Critics: {PAPER['critics'].says} ({PAPER['critics'].source})."
    return Figure(tuple(panels), note)


def novelty_curve(curves: Sequence[Mapping[str, Any]], generated: str = "p-diff") -> Figure:
    """Mean accuracy against novelty (1 − similarity to the nearest original): noise over scales, and sets of networks.

    `curves` are the runs' `novelty.Curve` as plain numbers. The line is the noise's mean over runs, a marker each set
    in one run; the second panel is where the sets lie. Beyond the line (up, right) is what noise does not give.
    """
    line = [
        tuple(float(np.mean([each[field] for each in column])) for field in ("novelty", "accuracy"))
        for column in zip(*(curve["noise"] for curve in curves))
    ]
    noise = [(novelty, 100 * accuracy) for novelty, accuracy in line]
    names = sorted(curves[0]["places"], key=lambda name: name != generated)
    sets = {
        name: [(curve["places"][name]["novelty"], 100 * curve["places"][name]["accuracy"]) for curve in curves]
        for name in names
    }
    points = [point for group in sets.values() for point in group]
    edge = 1.2 * max(x for x, _ in points)
    panels = []
    for shown, caption in (
        (noise, f"{HERE}: noise of {NOISE_FROM} to {NOISE_TO} spreads"),
        ([mark for mark in noise if mark[0] <= edge], "The same, near the networks in question"),
    ):
        x, y = (Axis.of([mark[i] for mark in [*shown, *points]]) for i in (0, 1))
        plot = Plot(x, y, "novelty: 1 − similarity to the nearest original", "mean accuracy, %", 400)
        plot.line("noise on a checkpoint", shown, 5)
        for ink, (name, group) in enumerate(sets.items()):
            plot.scatter(name, group, ink, size=4.5)
        panels.append((plot.svg(), caption))
    return Figure(tuple(panels), "The paper has no such comparison; its critics compared with noise of two strengths.")


def latent_map(groups: Mapping[str, Any], seed: int = 0, perplexity: float = 30.0) -> Figure:
    """t-SNE of latents (originals, noise-added, generated), each group an array (n, d) or (n, …)."""
    points = tsne(groups, seed, perplexity)
    flat = [pair for pairs in points.values() for pair in pairs]
    plot = Plot(_bare([x for x, _ in flat]), _bare([y for _, y in flat]), "", "", width=460, height=360)
    for ink, (name, pairs) in enumerate(points.items()):
        plot.scatter(name, pairs, ink)
    words = f"t-SNE of the latents, perplexity {perplexity:g}, seed {seed}; distances between clusters mean little"
    return Figure(((plot.svg(), words),), PAPER["t-SNE"].caption())


def tsne(groups: Mapping[str, Any], seed: int = 0, perplexity: float = 30.0) -> dict[str, list[Pair]]:
    """scikit-learn's t-SNE of all groups together: the same names, points in the plane.

    Perplexity is lowered to a third of the points when there are few. Raises `InputError` below 4 points.
    """
    from sklearn.manifold import TSNE

    arrays = {name: np.asarray(group, dtype=np.float64).reshape(len(group), -1) for name, group in groups.items()}
    together = np.concatenate(list(arrays.values()))
    if len(together) < 4:
        raise InputError(f"t-SNE needs at least 4 latents, got {len(together)}")
    near = min(perplexity, (len(together) - 1) / 3)
    found = TSNE(perplexity=near, init="pca", learning_rate="auto", random_state=seed).fit_transform(together)
    ends = np.cumsum([len(array) for array in arrays.values()])[:-1]
    return {name: [(float(x), float(y)) for x, y in part] for name, part in zip(arrays, np.split(found, ends))}


def trajectories(data: Mapping[str, Any]) -> Figure:
    """Five generations, step by step, and where the originals are; `data` comes from `trajectory_planes`."""
    distances = [d for path in data["distances"] for d in path]
    mean, spread = data["original_distance"]
    across = Plot(Axis.of(data["steps"]), Axis.of([*distances, mean], log=True), "steps taken", "distance", _THIRD, 340)
    if mean > 0:
        across.level("originals, mean ± std", mean, 1, spread)
    for path in data["distances"]:
        across.line("generated", list(zip(data["steps"], path)), 0, dots=False)
    return Figure(
        (
            (_plane(data["far"], zoom=False), "Parameters in the plane of the whole paths"),
            (_plane(data["near"], zoom=True), "Their ends, in the plane of ends and originals"),
            (across.svg(), "Their distance to the originals' mean"),
        ),
        PAPER["trajectories"].caption(),
    )


def trajectory_planes(paths: Any, originals: Any, steps: Sequence[int] | None = None) -> dict[str, Any]:
    """Parameters along generations (R, T, D) and of the originals (K, D) as plain numbers for `trajectories`.

    Two planes through the originals' mean: of the first principal components of all points, and of the ends and
    originals alone. They are found in the matrix of inner products of the R·T + K points, so D may be large.
    """
    paths, originals = (np.asarray(each, dtype=np.float64) for each in (paths, originals))
    runs, length, size = paths.shape
    x = np.concatenate([paths.reshape(-1, size), originals]) - originals.mean(0)
    gram = x @ x.T
    near = [*range(length - 1, runs * length, length), *range(runs * length, len(x))]
    planes: dict[str, Any] = {}
    for name, rows in (("far", list(range(len(x)))), ("near", near)):
        values, axes = np.linalg.eigh(gram[np.ix_(rows, rows)])
        scale = np.sqrt(np.clip(values[:-3:-1], 1e-30, None))
        points = gram[:, rows] @ axes[:, :-3:-1] / scale
        moved, stayed = points[: runs * length].reshape(runs, length, 2), points[runs * length :]
        planes[name] = {"paths": moved.tolist(), "originals": stayed.tolist(), "std": stayed.std(0).tolist()}
    away = np.linalg.norm(x, axis=1)
    own = away[runs * length :]
    return planes | {
        "steps": list(range(length)) if steps is None else [int(step) for step in steps],
        "distances": away[: runs * length].reshape(runs, length).tolist(),
        "original_distance": (float(own.mean()), float(own.std())),
    }


def maximum_similarity(by_k: Mapping[int, Sequence[float]]) -> Figure:
    """Each generated network's similarity to its nearest original, against K: points, and their range."""
    ours = {k: [float(v) for v in values] for k, values in sorted(by_k.items())}
    paper: Mapping[int, Pair] = PAPER["maximum similarity"].values
    everything = [*(v for values in ours.values() for v in values), *(v for pair in paper.values() for v in pair)]
    axis = Axis.of(everything)  # one axis for both: a similarity means the same on both sides
    panels = []
    for ranges, caption in (
        ({k: (min(v), max(v)) for k, v in ours.items() if v}, HERE),
        (paper, "Paper: range of its 50 points"),
    ):
        plot = Plot(Axis.names([f"{k:,}" for k in ranges]), axis, "number of originals K", _NEAREST)
        for place, (k, (low, high)) in enumerate(ranges.items()):
            plot.span(place, low, high, 3)
            if ranges is not paper:
                jitter = [place + 0.28 * ((0.618034 * i) % 1 - 0.5) for i in range(len(ours[k]))]
                plot.scatter("", list(zip(jitter, ours[k])), 0, size=2.6)
        panels.append((plot.svg(), caption))
    return Figure(tuple(panels), PAPER["maximum similarity"].caption())


def protocol_table(summary: Summary) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the protocol's table for `Report.table`: accuracies in per cent, mean ± spread over runs."""
    columns = ["networks", "n", "best", "mean", "median", "std", "s.e. images", "s.e. networks", "train-selected"]
    columns += ["s.e.", "above originals", "nearest original", "maximum", "L2 nearest", "L2 to mean"]
    percent = ("best", "mean", "median", "std", "se_images", "se_networks", "selected", "selected_se")
    rows = []
    for name, numbers in summary.populations.items():

        def cell(field: str, form: str, factor: float = 1.0, numbers: Mapping[str, Any] = numbers) -> str:
            if field not in numbers:
                return ""
            mean, spread = (format(factor * value, form) for value in (numbers[field].mean, numbers[field].spread))
            return mean if float(spread) == 0 else f"{mean} ± {spread}"

        row = [name, cell("n", ".0f"), *(cell(field, ".2f", 100.0) for field in percent), cell("above", ".0f")]
        row += [cell(field, ".3f") for field in ("nearest", "nearest_max")]
        rows.append(row + [cell(field, ".3g") for field in ("l2_nearest", "l2_centre")])
    return columns, rows


_NEAREST = "similarity to the nearest original"
_THIRD = 370  # pixels: three panels fit side by side
_CUT = "Read the numbers: the axis need not start at 0."


def _mark(k: int, numbers: Numbers, name: str) -> Mark:
    if name == "mean" and "spread" in numbers:
        return float(k), 100 * numbers[name], 100 * numbers["spread"]
    return float(k), 100 * numbers[name]


def _sweep(series: Mapping[str, Sequence[Mark]], originals: float | None = None) -> str:
    marks = [mark for marks in series.values() for mark in marks]
    edges = [y for m in marks for y in (m[1] + (m[2] if len(m) == 3 else 0), m[1] - (m[2] if len(m) == 3 else 0))]
    ks = sorted({mark[0] for mark in marks})
    heights = Axis.of(edges if originals is None else [*edges, originals])
    plot = Plot(Axis.at(ks, log=True), heights, "number of originals K", "accuracy, %")
    for ink, (name, line) in enumerate(series.items()):
        plot.line(name, line, ink)
    if originals is not None:
        plot.level("originals' mean", originals, 7)
    return plot.svg()


def _percent(rows: Mapping[str, Numbers], names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    return {row: {n: 100 * numbers[n] if n in numbers else None for n in names} for row, numbers in rows.items()}


def _grouped(rows: Mapping[str, Numbers], experiment: str) -> Figure:
    paper = {row: dict(zip(SHOWN, values)) for row, values in PAPER[experiment].values.items()}
    return Figure(
        (
            (_bar_panel(_percent(rows, SHOWN), SHOWN), f"{HERE}. {_CUT}"),
            (_bar_panel(paper, SHOWN), f"Paper: {PAPER[experiment].what}. {_CUT}"),
        ),
        PAPER[experiment].caption(),
    )


def _bar_panel(rows: Mapping[str, Mapping[str, float | None]], names: Sequence[str]) -> str:
    known = [v for row in rows.values() for v in row.values() if v is not None] or [0.0]
    low, high = min(known), max(known)
    bottom = 0.0 if low < high / 2 else low - max(0.25 * (high - low), 0.2)
    heights = Axis.of([bottom, high], least=bottom)
    plot = Plot(Axis.names(list(rows)), heights, "", "accuracy, %", width=520)
    for place, name in enumerate(names):
        plot.bars(name, [row.get(name) for row in rows.values()], place, len(names), place)
    return plot.svg()


def _boxes(experiment: str) -> str:
    ranges: Mapping[str, tuple[Pair | None, Pair | None]] = PAPER[experiment].values
    x = Axis.of([v for similarity, _ in ranges.values() for v in similarity or ()])
    y = Axis.of([v for _, accuracy in ranges.values() for v in accuracy or ()])
    plot = Plot(x, y, _NEAREST, "accuracy, %", _THIRD)
    for ink, (name, (similarity, accuracy)) in enumerate(ranges.items()):
        plot.box(name, similarity or (x.low, x.high), accuracy or (y.low, y.high), ink)
    return plot.svg()


def _plane(plane: Mapping[str, Any], zoom: bool) -> str:
    paths, originals = plane["paths"], plane["originals"]
    ends = [path[-1] for path in paths]
    shown = [*ends, *originals] if zoom else [*(point for path in paths for point in path), *originals]
    x, y = (Axis.of([point[i] for point in shown]) for i in (0, 1))
    plot = Plot(x, y, "first direction", "second direction", _THIRD, 340)
    plot.scatter("originals", [tuple(point) for point in originals], 1, size=2.2)
    plot.ellipse("their mean ± std", (0.0, 0.0), plane["std"], 5)
    for path, end in zip(paths, ends):
        outside = [i for i, (a, b) in enumerate(path) if not (x.low <= a <= x.high and y.low <= b <= y.high)]
        inside = path[max(outside, default=-1) + 1 :]
        plot.line("generated", [tuple(point) for point in inside], 0, dots=False)
        plot.scatter("their ends", [tuple(end)], 4, "triangle", 5)
    return plot.svg()


def _bare(values: Sequence[float]) -> Axis:
    around = Axis.of(values)
    return Axis(around.low, around.high, ())
