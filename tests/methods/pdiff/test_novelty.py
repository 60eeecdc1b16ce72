"""Novelty at equal accuracy, on networks whose mistakes are a function of one number."""

import pytest
import torch

from latentia.errors import InputError
from latentia.methods.pdiff.novelty import NEARLY, SCALES, combine_equals, equal_accuracy, finding, strongest
from latentia.methods.pdiff.populations import Judged

IMAGES = 1000
ORIGINALS = torch.rand(8, IMAGES, generator=torch.Generator().manual_seed(0)) < 0.1


def mistakes(fresh: float, n: int = 20, seed: int = 1, kept: float = 1.0) -> torch.Tensor:
    """Mistakes of an original (each kept with probability `kept`), and others on a share `fresh` of the images."""
    generator = torch.Generator().manual_seed(seed)
    base = ORIGINALS[torch.randint(8, (n,), generator=generator)]
    keep = torch.rand(n, IMAGES, generator=generator) < kept
    return (base & keep) | (torch.rand(n, IMAGES, generator=generator) < fresh)


def judge(wrong: torch.Tensor, name: str = "noise") -> Judged:
    return Judged(name, 1 - wrong.double().mean(1), wrong, ORIGINALS)


def make(scale: float) -> torch.Tensor:
    return mistakes(min(0.1 * scale, 1.0))


def test_the_strongest_noise_of_an_accuracy_is_found():
    for wanted in (0.85, 0.75, 0.5):
        scale, found = strongest(make, judge, wanted)
        assert float(found.accuracy.mean()) == pytest.approx(wanted, abs=2e-3)
        assert float(found.accuracy.mean()) >= wanted
        assert scale == pytest.approx((1 - wanted / 0.9) / 0.1, rel=0.1)


def test_networks_that_forget_old_mistakes_for_new_ones_are_newer_than_noise():
    newer = judge(mistakes(0.08, seed=5, kept=0.3), "p-diff")
    same = judge(mistakes(0.08, seed=6), "Gaussian")
    curve = equal_accuracy([newer, same], ["p-diff", "Gaussian"], make, judge)
    assert [each.scale for each in curve.noise] == list(SCALES)
    assert [a.accuracy >= b.accuracy for a, b in zip(curve.noise, curve.noise[1:])] == [True] * (len(SCALES) - 1)
    first, second = curve.equals
    assert first.novelty.sign == 1
    assert first.found.accuracy > 0.88
    assert second.novelty.sign == 0
    assert second.equal
    assert second.noise.accuracy == pytest.approx(second.found.accuracy, abs=2e-3)
    assert second.noise.scale == pytest.approx(0.8, rel=0.1)


def test_what_is_more_accurate_than_any_noise_meets_noise_that_costs_almost_nothing():
    better = judge(mistakes(0.0, kept=0.5), "p-diff")
    (found,) = equal_accuracy([better], ["p-diff"], make, judge).equals
    assert not found.equal
    unchanged = float(judge(make(0.0)).accuracy.mean())
    assert found.noise.accuracy == pytest.approx(unchanged - NEARLY, abs=2e-4)
    assert "Not every run has noise as accurate" in finding([found], "p-diff")


def test_runs_are_combined_and_the_sentence_has_their_numbers():
    sets = lambda seed: [  # noqa: E731
        judge(mistakes(0.08, seed=seed, kept=0.3), "p-diff"),
        judge(mistakes(0.08, seed=seed + 9), "Gaussian"),
    ]
    runs = [equal_accuracy(sets(seed), ["p-diff", "Gaussian"], make, judge) for seed in range(3)]
    combined = combine_equals(runs)
    values = [run.equals[0].novelty.value for run in runs]
    assert combined[0].novelty.value == pytest.approx(sum(values) / 3)
    assert combined[0].novelty.se_networks >= torch.tensor(values).std().item() / 3**0.5 - 1e-9
    words = finding(combined, "p-diff")
    assert "p-diff is newer than noise" in words
    assert f"{combined[0].novelty.value:+.3f} ± {combined[0].novelty.se:.3f}" in words
    assert words.endswith("Nothing that needs no learning lies beyond the noise.")
    assert combined[0].beyond
    assert not combined[1].beyond
    lucky = combined[0].model_copy(update={"name": "average of 16"})
    assert finding([combined[0], lucky], "p-diff").endswith("So this takes no learning.")
    assert "was not measured" in finding([], "p-diff")


def test_a_set_without_novelty_is_refused():
    with pytest.raises(InputError, match="no novelty of p-diff"):
        equal_accuracy([], ["p-diff"], make, judge)
