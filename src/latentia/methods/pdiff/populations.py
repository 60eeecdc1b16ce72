"""A set of networks, judged: its accuracies, the one that training data would choose, and how new it is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol as Contract

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from latentia.errors import InputError
from latentia.methods.pdiff.controls import prediction_ensemble
from latentia.methods.pdiff.similarity import (
    jackknife_nearest,
    l2_matrix,
    mean_similarity,
    nearest_similarity,
    own_nearest_similarity,
)

Own = Mapping[str, Tensor]
"""Name → (N, …): what each network has for itself beside its vector, such as BatchNorm statistics."""


class Scores(Contract):
    """What judges networks on one set of images; `scoring.Scorer` and `dataset_scoring.DatasetScorer` do."""

    @property
    def y(self) -> Tensor:
        """The true classes (M,)."""
        ...

    def wrong(self, vectors: Tensor, *, own: Own | None = None) -> Tensor:
        """Which images each network (N, D) gets wrong: bool (N, M)."""
        ...

    def accuracies(self, vectors: Tensor, *, own: Own | None = None) -> Tensor:
        """Share of right answers of each network (N, D): (N,)."""
        ...

    def probabilities(self, vectors: Tensor, *, own: Own | None = None) -> Tensor:
        """Predicted probabilities of each network (N, D): (N, M, C)."""
        ...


class Result(BaseModel):
    """A frozen part of report.json; what could not be measured is None, never NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Population(Result):
    """The numbers of one set of n networks; all accuracies but `selected_on` are on the held-out test set.

    Attributes:
        best: the highest accuracy, chosen on the test set itself: optimistic, never a result.
        mean, median, std: over the networks (std unbiased; 0 for one network).
        se_images: binomial standard error of `mean`, √(p(1 − p)/M): what M test images can tell.
        se_networks: std/√n; None for one network. Checkpoints of one trajectory depend on each other: theirs is too
            small.
        selected: accuracy of the network that is best on the selection set; the mean of `tied` ones if several are.
        selected_on: what that is on the selection set.
        selected_se: binomial standard error of `selected`.
        above: how many are above the originals' mean.
        nearest, nearest_std, nearest_max: similarity to the nearest original (for an original: another one).
        among: mean similarity between two of them; None for one network.
        l2_nearest, l2_mean, l2_centre: mean distance of the weights to the nearest original, to all, and to the
            originals' average; None where there are no weights (an ensemble of predictions).
    """

    name: str
    n: int
    best: float
    mean: float
    median: float
    std: float
    se_images: float
    se_networks: float | None
    selected: float
    selected_on: float
    selected_se: float
    tied: int
    above: int
    nearest: float | None
    nearest_std: float | None
    nearest_max: float | None
    among: float | None
    l2_nearest: float | None
    l2_mean: float | None
    l2_centre: float | None


@dataclass(frozen=True)
class Judged:
    """One set of networks with what the judges said of each, from which `Population` and comparisons are computed.

    Attributes:
        name: how the report calls it.
        select: (N,) accuracies on the selection set.
        wrong: bool (N, M) mistakes on the test set.
        originals: bool (K, M) mistakes of the originals, the same tensor as `wrong` for themselves.
        vectors: (N, D) weights; None for predictions without a network.
    """

    name: str
    select: Tensor
    wrong: Tensor
    originals: Tensor
    vectors: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.wrong) or len(self.select) != len(self.wrong):
            raise InputError(f"{self.name}: {len(self.select)} selection scores for {len(self.wrong)} networks")

    @property
    def is_originals(self) -> bool:
        """Whether these are the originals, so that each has itself among them."""
        return self.wrong is self.originals

    @cached_property
    def accuracy(self) -> Tensor:
        """(N,) float64, on the test set."""
        return 1 - self.wrong.double().mean(1)

    @cached_property
    def chosen(self) -> Tensor:
        """(N,) bool: the best on the selection set, all of them when several are; the test set has no say in it."""
        return self.select == self.select.max()

    @cached_property
    def nearest(self) -> Tensor | None:
        """(N,) similarity to the nearest original, or to the nearest other one; None for an only original."""
        if not self.is_originals:
            return nearest_similarity(self.wrong, self.originals)[0].double()
        return own_nearest_similarity(self.wrong).double() if len(self.wrong) > 1 else None

    @cached_property
    def leave_out(self) -> Tensor | None:
        """(G,) mean nearest similarity without one group of test images each."""
        if self.nearest is None:
            return None
        return jackknife_nearest(self.wrong, self.originals, other=self.is_originals)


def judge(
    name: str,
    vectors: Tensor,
    select: Scores,
    test: Scores,
    originals: Tensor | None = None,
    own: Own | None = None,
) -> Judged:
    """Score the networks `vectors` (N, D); without the mistakes of `originals` (K, M) these are the originals."""
    wrong = test.wrong(vectors, own=own)
    return Judged(name, select.accuracies(vectors, own=own), wrong, wrong if originals is None else originals, vectors)


def judge_ensemble(
    name: str, vectors: Tensor, select: Scores, test: Scores, originals: Tensor, own: Own | None = None
) -> Judged:
    """Score the mean prediction of all networks (N, D) as if it were a network; `originals` as in `judge`."""
    mistakes = [
        (prediction_ensemble(vectors, each.probabilities, own).argmax(-1) != each.y.cpu())[None]
        for each in (select, test)
    ]
    return Judged(name, 1 - mistakes[0].double().mean(1), mistakes[1], originals)


def population(judged: Judged, originals: Judged) -> Population:
    """The numbers of `judged` beside `originals`."""
    accuracy, images = judged.accuracy, judged.wrong.shape[1]
    n, mean = len(accuracy), float(accuracy.mean())
    selected = float(accuracy[judged.chosen].mean())
    std = float(accuracy.std()) if n > 1 else 0.0
    near = judged.nearest
    return Population(
        name=judged.name,
        n=n,
        best=float(accuracy.max()),
        mean=mean,
        median=float(accuracy.quantile(0.5)),
        std=std,
        se_images=binomial(mean, images),
        se_networks=std / math.sqrt(n) if n > 1 else None,
        selected=selected,
        selected_on=float(judged.select.max()),
        selected_se=binomial(selected, images),
        tied=int(judged.chosen.sum()),
        above=int((accuracy > originals.accuracy.mean() + 1e-12).sum()),
        nearest=None if near is None else float(near.mean()),
        nearest_std=None if near is None else float(near.std(correction=min(1, n - 1))),
        nearest_max=None if near is None else float(near.max()),
        among=mean_similarity(judged.wrong),
        **distances(judged, originals),
    )


def distances(judged: Judged, originals: Judged) -> dict[str, float | None]:
    """The three mean distances of the weights; an original is not compared with itself."""
    if judged.vectors is None or originals.vectors is None:
        return {"l2_nearest": None, "l2_mean": None, "l2_centre": None}
    centre = originals.vectors.mean(0, keepdim=True)
    near: float | None = None
    mean: float | None = None
    if not judged.is_originals:
        matrix = l2_matrix(judged.vectors, originals.vectors)
        near, mean = float(matrix.amin(1).mean()), float(matrix.mean())
    elif (k := len(originals.vectors)) > 1:
        matrix = l2_matrix(originals.vectors, originals.vectors)
        mean = float(matrix.fill_diagonal_(0).sum() / (k * (k - 1)))
        near = float(matrix.fill_diagonal_(torch.inf).amin(1).mean())
    return {"l2_nearest": near, "l2_mean": mean, "l2_centre": float(l2_matrix(judged.vectors, centre).mean())}


def binomial(p: float, images: int) -> float:
    """Standard error of an accuracy `p` measured on `images`: √(p(1 − p)/M)."""
    return math.sqrt(max(p * (1 - p), 0.0) / images)
