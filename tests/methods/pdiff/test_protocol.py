"""The protocol on linear classifiers: every number by hand, verdicts for constructed cases, and who may see what."""

import json
import math

import pytest
import torch
from torch import nn

from latentia.errors import InputError, NonFiniteError
from latentia.methods.pdiff import controls, verdict
from latentia.methods.pdiff.checkpoints import Checkpoints
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.populations import Judged, Result, population
from latentia.methods.pdiff.protocol import (
    AVERAGE,
    ENSEMBLE,
    GENERATED,
    NOISE,
    ORIGINALS,
    SINGLE,
    SOUP,
    TRIVIAL,
    Protocol,
    Summary,
)
from latentia.methods.pdiff.protocol import verdict as summarise
from latentia.methods.pdiff.scoring import Scorer
from latentia.methods.pdiff.verdict import Gap, combine_gaps, compare, conclude

FEATURES, CLASSES = 4, 3


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class LinearJudge:
    """Scores (N, FEATURES·CLASSES) linear classifiers."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        return torch.einsum("mf,ncf->nmc", self.x, vectors.reshape(len(vectors), CLASSES, FEATURES))

    def wrong(self, vectors: torch.Tensor, own: object = None) -> torch.Tensor:
        return self.logits(vectors).argmax(-1) != self.y

    def accuracies(self, vectors: torch.Tensor, own: object = None) -> torch.Tensor:
        return 1 - self.wrong(vectors).float().mean(1)

    def probabilities(self, vectors: torch.Tensor, own: object = None) -> torch.Tensor:
        return self.logits(vectors).softmax(-1)


TRUTH = torch.randn(1, CLASSES * FEATURES, generator=rng(0))


def images(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, FEATURES, generator=rng(seed))
    logits = x @ TRUTH.view(CLASSES, FEATURES).T + 0.8 * torch.randn(n, CLASSES, generator=rng(seed + 100))
    return x, logits.argmax(-1)


def networks(n: int, seed: int, noise: float = 0.5) -> torch.Tensor:
    return TRUTH + noise * torch.randn(n, CLASSES * FEATURES, generator=rng(seed))


def checkpoints(vectors: torch.Tensor) -> Checkpoints:
    net = nn.Linear(FEATURES, CLASSES, bias=False)
    return Checkpoints(ParameterLayout.select(net, "weight"), vectors, net.state_dict())


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return Protocol(LinearJudge(*images(120, 1)), LinearJudge(*images(300, 2)), samples=30, soup=True)


@pytest.fixture(scope="module")
def originals() -> Checkpoints:
    return checkpoints(networks(25, 3))


@pytest.fixture(scope="module")
def runs(protocol, originals):
    return [
        protocol.run(
            originals, networks(30, 10 + seed, 0.4), seed=seed, single=lambda one: one + 0.01 * networks(30, 99)
        )
        for seed in range(3)
    ]


def test_every_control_is_there_in_order(runs):
    names = [each.name for each in runs[0].populations]
    assert names == [ORIGINALS, GENERATED, *TRIVIAL, SINGLE, SOUP, ENSEMBLE]
    assert [each.control for each in runs[0].comparisons] == [ORIGINALS, *TRIVIAL, SINGLE, SOUP, ENSEMBLE]
    assert [each.n for each in runs[0].populations] == [25, 30, 1, 30, 30, 30, 30, 30, 1, 1]


def test_the_numbers_of_a_population_are_the_definitions(protocol, originals, runs):
    generated = networks(30, 10, 0.4)
    accuracy = protocol.test.accuracies(generated).double()
    mine, theirs = runs[0].population(GENERATED), runs[0].population(ORIGINALS)
    assert mine.mean == pytest.approx(float(accuracy.mean()))
    assert mine.best == pytest.approx(float(accuracy.max()))
    assert mine.median == pytest.approx(float(accuracy.quantile(0.5)))
    assert mine.std == pytest.approx(float(accuracy.std()))
    assert mine.se_networks == pytest.approx(float(accuracy.std()) / math.sqrt(30))
    assert mine.se_images == pytest.approx(math.sqrt(mine.mean * (1 - mine.mean) / 300))
    assert mine.above == int((accuracy > theirs.mean).sum())
    on_select = protocol.select.accuracies(generated)
    chosen = on_select == on_select.max()
    assert mine.selected == pytest.approx(float(accuracy[chosen].mean()))
    assert (mine.selected_on, mine.tied) == (pytest.approx(float(on_select.max())), int(chosen.sum()))
    distances = torch.cdist(generated, originals.vectors)
    assert mine.l2_nearest == pytest.approx(float(distances.amin(1).mean()), rel=1e-5)
    assert mine.l2_mean == pytest.approx(float(distances.mean()), rel=1e-5)
    own = torch.cdist(originals.vectors, originals.vectors).fill_diagonal_(torch.inf)
    assert theirs.l2_nearest == pytest.approx(float(own.amin(1).mean()), rel=1e-4)
    assert runs[0].population(ENSEMBLE).l2_mean is None
    assert runs[0].iou.nearest == pytest.approx(mine.nearest)
    assert (runs[0].iou.originals, runs[0].iou.generated) == (theirs.among, mine.among)


def test_the_noise_is_as_new_as_the_generated_networks(runs):
    for run in runs:
        assert run.noise.reached
        assert run.population(NOISE).nearest == pytest.approx(run.population(GENERATED).nearest, abs=0.0021)
        assert run.noise.similarity == pytest.approx(run.population(NOISE).nearest)


def test_a_run_repeats_itself_and_another_seed_draws_other_controls(protocol, originals, runs):
    again = protocol.run(originals, networks(30, 10, 0.4), seed=0, single=lambda one: one + 0.01 * networks(30, 99))
    assert again == runs[0]
    without = protocol.run(originals, networks(30, 10, 0.4), seed=0)
    assert without.population(NOISE) == again.population(NOISE)  # leaving one control out changes no other
    other = protocol.run(originals, networks(30, 10, 0.4), seed=1)
    assert other.population("Gaussian") != without.population("Gaussian")
    assert other.population(AVERAGE) == without.population(AVERAGE)


def test_the_scorer_of_networks_says_the_same(protocol, originals, runs):
    net = nn.Linear(FEATURES, CLASSES, bias=False)
    select, test = (
        Scorer(net, originals.layout, originals.base, judge.x, judge.y) for judge in (protocol.select, protocol.test)
    )
    found = Protocol(select, test, samples=30).run(originals, networks(30, 10, 0.4), seed=0)
    expected = Protocol(protocol.select, protocol.test, samples=30).run(originals, networks(30, 10, 0.4), seed=0)
    for mine, theirs in zip(found.populations, expected.populations, strict=True):
        assert mine.model_dump() == pytest.approx(theirs.model_dump(), abs=1e-6)
    assert [each.sentence for each in found.comparisons] == [each.sentence for each in expected.comparisons]


def test_networks_are_judged_with_what_is_their_own():
    net = nn.Sequential(nn.BatchNorm1d(FEATURES, affine=False), nn.Linear(FEATURES, CLASSES, bias=False))
    layout = ParameterLayout.select(net, "1.weight")
    x, y = images(200, 2)
    means = torch.randn(6, FEATURES, generator=rng(5))
    nets = Checkpoints(layout, networks(6, 3), net.state_dict(), own={"0.running_mean": means})
    scorer = Scorer(net.eval(), layout, net.state_dict(), x, y)
    run = Protocol(scorer, scorer, samples=4).run(nets, nets, others={"without": nets.vectors})
    shifted = torch.einsum("nmf,ncf->nmc", x - means[:, None], nets.vectors.view(6, CLASSES, FEATURES))
    expected = (shifted.argmax(-1) == y).double().mean(1)
    for name in (ORIGINALS, GENERATED):
        assert run.population(name).mean == pytest.approx(float(expected.mean()), abs=1e-6)
    assert run.population("without").mean == pytest.approx(float(scorer.accuracies(nets.vectors).mean()))
    assert run.population("without").mean > run.population(GENERATED).mean
    together = shifted.div(math.sqrt(1 + 1e-5)).softmax(-1).mean(0).argmax(-1)
    assert run.population(ENSEMBLE).mean == pytest.approx(float((together == y).double().mean()))


def test_selection_never_sees_the_test_set(originals):
    x, y = images(300, 2)
    select = images(120, 1)
    generated = networks(30, 10, 0.4)
    seen = []
    for labels in (y, (y + 1) % CLASSES):  # another truth on the test set chooses the same networks
        protocol = Protocol(LinearJudge(*select), LinearJudge(x, labels), samples=5)
        run = protocol.run(originals, generated)
        accuracy = protocol.test.accuracies(generated).double()
        on_select = protocol.select.accuracies(generated)
        seen.append(run.population(GENERATED))
        assert seen[-1].selected == pytest.approx(float(accuracy[on_select == on_select.max()].mean()))
    assert seen[0].selected_on == seen[1].selected_on
    assert seen[0].tied == seen[1].tied
    assert seen[0].best > seen[1].best
    assert seen[0].selected <= seen[0].best


def test_ties_on_the_selection_set_are_averaged_and_not_resolved_by_order():
    wrong = torch.zeros(3, 10, dtype=torch.bool)
    wrong[0, :4] = wrong[1, :2] = True
    judged = Judged("x", torch.tensor([0.9, 0.9, 0.8]), wrong, wrong)
    found = population(judged, judged)
    assert (found.tied, found.best) == (2, 1.0)
    assert found.selected == pytest.approx((0.6 + 0.8) / 2)


def judged(name: str, errors: list[set[int]], originals: torch.Tensor, m: int = 400) -> Judged:
    wrong = torch.zeros(len(errors), m, dtype=torch.bool)
    for row, indices in zip(wrong, errors):
        row[list(indices)] = True
    return Judged(name, 1 - wrong.float().mean(1), wrong, originals)


@pytest.mark.parametrize(
    ("mine", "theirs", "outcome", "words"),
    [
        # the original is wrong on 0 to 49: similarities are 10/70 and 50/90 here, 25/50 and 50/100 in the next row
        (range(40, 70), range(90), "beats", "p-diff beats noise in accuracy and novelty"),
        (range(25), range(100), "beats", "p-diff beats noise at matched novelty"),
        (range(100), range(25), "loses", "does not beat noise: at matched novelty it is less accurate"),
        (range(50), range(50), "ties", "does not beat noise: at matched novelty the two cannot be told apart"),
        (range(50), range(20, 70), "loses", "equally accurate, it is closer to the originals"),
        (range(20, 70), range(50), "beats", "p-diff is newer than noise at equal accuracy"),
        (range(50), range(120), "trades", "it is more accurate but less novel"),
        (range(120), range(50), "trades", "it is more novel but less accurate"),
        (range(90), range(35, 70), "loses", "does not beat noise"),
    ],
)
def test_verdicts_of_constructed_cases(mine, theirs, outcome, words):
    base = torch.zeros(1, 400, dtype=torch.bool)
    base[0, :50] = True
    found = compare(judged("p-diff", [set(mine)], base), judged("noise", [set(theirs)], base))
    assert found.outcome == outcome
    assert words in found.sentence
    assert found.accuracy.value == pytest.approx((len(theirs) - len(mine)) / 400)
    assert f"mean accuracy {100 * found.accuracy.value:+.2f} ± {100 * found.accuracy.se:.2f} points" in found.sentence


def test_an_advantage_within_two_standard_errors_is_none():
    base = torch.zeros(1, 400, dtype=torch.bool)
    base[0, :50] = True
    found = compare(judged("p-diff", [set(range(50))], base), judged("noise", [set(range(51))], base))
    assert found.accuracy.value == pytest.approx(1 / 400)
    assert found.accuracy.se == pytest.approx(1 / 400, rel=0.01)  # paired: only the one image differs
    assert found.outcome == "ties"


def gap(value: float, se: float = 0.001, networks: float = 0.0) -> Gap:
    return Gap(value=value, se_images=se, se_networks=networks)


def comparison(control: str, accuracy: float, similarity: float = 0.0) -> verdict.Comparison:
    return conclude(control, gap(accuracy), gap(accuracy, 0.01), gap(similarity), (0.9 + similarity, 0.9))


def test_the_overall_sentence_claims_no_more_than_the_comparisons():
    wins = [comparison("A", 0.01), comparison("B", 0.0, -0.05)]
    assert verdict.overall(wins, ["A", "B"]) == (
        "p-diff beats every control at matched novelty, by more than 2 standard errors."
    )
    mixed = [*wins, comparison("C", -0.01), comparison("D", 0.001), comparison("E", 0.01, 0.05)]
    assert verdict.overall(mixed, ["A", "D"]) == (
        "At matched novelty p-diff does not beat every control: it beats A and B; it cannot be told apart from D; "
        "it loses to C; it trades accuracy against novelty with E; as D learns nothing but averages and spreads, "
        "this is no evidence that p-diff learnt more."
    )
    assert "no control" in verdict.overall([], [])


def test_similarities_nearer_than_the_bisection_can_match_them_are_matched():
    assert comparison("A", 0.01, 0.004).outcome == "beats"
    assert comparison("A", 0.01, 0.006).outcome == "trades"


def test_the_targets_print_their_standard_errors():
    below = conclude("originals", gap(-0.0019), gap(-0.009, 0.01), None, None)
    mean, selected = verdict.targets(below)
    assert (mean.met, mean.bound, mean.se) == (True, -0.002, 0.001)
    assert (selected.met, selected.bound) == (True, -0.01)
    mean, selected = verdict.targets(conclude("originals", gap(-0.0021), gap(-0.011, 0.01), None, None))
    assert (mean.met, selected.met) == (False, False)
    assert below.outcome == "unmeasured"


def test_gaps_of_several_runs_combine():
    found = combine_gaps([gap(0.01, 0.003, 0.001), gap(0.02, 0.004, 0.001), gap(0.03, 0.005, 0.001)])
    assert found.value == pytest.approx(0.02)
    assert found.se_images == pytest.approx(math.sqrt((9 + 16 + 25) / 3) * 1e-3)  # the same images in every run
    assert found.se_networks == pytest.approx(0.01 / math.sqrt(3))  # the runs spread more than their networks
    assert combine_gaps([gap(0.01, 0.0, 0.003)] * 4).se_networks == pytest.approx(0.0015)


def test_runs_become_mean_and_spread_and_survive_json(runs):
    summary = summarise(runs)
    means = torch.tensor([run.population(GENERATED).mean for run in runs], dtype=torch.float64)
    cell = summary.populations[GENERATED]["mean"]
    assert (cell.mean, cell.spread) == (pytest.approx(float(means.mean())), pytest.approx(float(means.std())))
    assert summary.populations[ORIGINALS]["mean"].spread == pytest.approx(0, abs=1e-12)
    assert "l2_mean" not in summary.populations[ENSEMBLE]
    assert Summary.model_validate(json.loads(summary.model_dump_json())) == summary
    assert summary.overall.count("p-diff") >= 1
    assert summary.comparisons[0].control == ORIGINALS
    controls_only = [each for each in summary.comparisons if each.control != ORIGINALS]
    assert summary.overall == verdict.overall(controls_only, TRIVIAL)
    assert ORIGINALS not in summary.overall
    assert not summary.against_others


def test_other_networks_stand_in_the_table_and_not_in_the_verdict(protocol, originals):
    run = protocol.run(originals, networks(30, 10), others={"plain p-diff": networks(4, 50, 3.0)})
    summary = summarise([run])
    assert run.population("plain p-diff").n == 4
    assert [each.control for each in summary.against_others] == ["plain p-diff"]
    assert "plain" not in summary.overall
    with pytest.raises(InputError, match="already"):
        protocol.run(originals, networks(30, 10), others={NOISE: networks(4, 50)})
    with pytest.raises(InputError, match="same populations"):
        summarise([run, protocol.run(originals, networks(30, 10))])
    with pytest.raises(InputError, match="no population 'plan'"):
        run.population("plan")


def test_one_original_has_no_pairs_and_its_noise_another_unit(protocol):
    run = protocol.run(checkpoints(networks(1, 3)), networks(30, 10, 0.1))
    assert run.noise.unit == "tensor"
    assert run.population(ORIGINALS).nearest is None
    assert run.comparisons[0].outcome == "unmeasured"
    assert summarise([run]).populations[GENERATED]["nearest"].mean == run.population(GENERATED).nearest


def test_bad_networks_are_refused(protocol, originals):
    with pytest.raises(InputError, match="have 12 parameters, generated ones 11"):
        protocol.run(originals, torch.zeros(5, 11))
    broken = networks(3, 1)
    broken[2, 0] = math.inf
    with pytest.raises(NonFiniteError, match="generated network 2 holds NaN or infinity"):
        protocol.run(originals, broken)
    with pytest.raises(InputError, match="at least 1, got 0"):
        Protocol(protocol.select, protocol.test, samples=0)


def test_the_greedy_soup_is_cooked_on_the_selection_set(protocol, originals, runs):
    best = float(protocol.select.accuracies(originals.vectors).max())
    assert runs[0].population(SOUP).selected_on >= best - 1e-6
    soup = controls.greedy_soup(
        originals.vectors, protocol.select.accuracies(originals.vectors), protocol.select.accuracies
    )
    assert runs[0].population(SOUP).mean == pytest.approx(float(protocol.test.accuracies(soup)))


def test_results_hold_no_nan():
    class Number(Result):
        x: float

    with pytest.raises(ValueError, match="finite"):
        Number(x=float("nan"))
