"""The controls: averages, moments and matched similarities, in closed form."""

import math

import pytest
import torch

from latentia.errors import InputError, NonFiniteError, UnknownChoiceError
from latentia.methods.pdiff import controls


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def vectors() -> torch.Tensor:
    """(12, 5) checkpoints with correlated coordinates far from 0; the last never moves."""
    x = torch.randn(12, 5, generator=rng(7)) * torch.tensor([1.0, 0.1, 3.0, 0.5, 0.0])
    x[:, 1] += 0.3 * x[:, 0]
    return x + torch.tensor([10.0, -5.0, 0.0, 1.0, 2.0])


def test_the_uniform_average_is_the_mean(vectors):
    torch.testing.assert_close(controls.uniform_average(vectors), vectors.mean(0, keepdim=True))


def test_averages_are_of_different_checkpoints():
    found = controls.average_draws(torch.eye(20), 50, rng(), size=16)
    torch.testing.assert_close(found.sum(1), torch.ones(50))
    assert torch.equal((found > 1e-3).sum(1), torch.full((50,), 16))
    torch.testing.assert_close(found[found > 1e-3], torch.full((800,), 1 / 16))
    assert len(found.round(decimals=4).unique(dim=0)) == 50


def test_fewer_checkpoints_than_an_average_takes_are_all_averaged(vectors):
    found = controls.average_draws(vectors[:3], 4, rng())
    torch.testing.assert_close(found, vectors[:3].mean(0).expand(4, 5))


def test_the_gaussian_has_the_moments_of_each_coordinate(vectors):
    draws = controls.gaussian(vectors, 40_000, rng())
    torch.testing.assert_close(draws.mean(0), vectors.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(draws.std(0), vectors.std(0), atol=0.02, rtol=0.02)
    correlation = torch.corrcoef(draws[:, :2].T)[0, 1]
    assert abs(float(correlation)) < 0.02  # the originals' is high: a coordinate on its own forgets it


def test_the_pca_gaussian_has_their_covariance(vectors):
    draws = controls.pca_gaussian(vectors, 40_000, rng())
    torch.testing.assert_close(draws.mean(0), vectors.mean(0), atol=0.06, rtol=0)
    torch.testing.assert_close(torch.cov(draws.T), torch.cov(vectors.T), atol=0.12, rtol=0.03)


def test_the_pca_gaussian_keeps_to_its_components(vectors):
    draws = controls.pca_gaussian(vectors, 20_000, rng(), components=2)
    centred = vectors - vectors.mean(0)
    _, lengths, axes = torch.linalg.svd(centred, full_matrices=False)
    torch.testing.assert_close(draws.mean(0), vectors.mean(0), atol=0.06, rtol=0)
    coordinates = (draws - vectors.mean(0)) @ axes.T
    expected = (lengths[:2] / math.sqrt(len(vectors) - 1)).tolist()
    assert coordinates.std(0)[:2].tolist() == pytest.approx(expected, rel=0.03)
    assert float(coordinates[:, 2:].abs().max()) < 1e-4
    with pytest.raises(InputError, match="at least 1, got 0"):
        controls.pca_gaussian(vectors, 3, rng(), components=0)


def test_one_checkpoint_is_all_that_its_gaussians_know(vectors):
    for draw in (controls.gaussian, controls.pca_gaussian, controls.average_draws):
        torch.testing.assert_close(draw(vectors[:1], 3, rng()), vectors[:1].expand(3, 5))


def test_the_units_of_noise(vectors):
    torch.testing.assert_close(controls.spread(vectors), vectors.std(0))
    assert controls.spread(vectors, "one").tolist() == [1.0] * 5
    by_tensor = controls.spread(vectors, "tensor", (slice(0, 3), slice(3, 5)))
    expected = [vectors[:, part].std(1, correction=0).mean() for part in (slice(0, 3), slice(3, 5))]
    torch.testing.assert_close(by_tensor, torch.stack([expected[0]] * 3 + [expected[1]] * 2))
    with pytest.raises(InputError, match=r"1 checkpoint.* no spread per coordinate"):
        controls.spread(vectors[:1])
    with pytest.raises(InputError, match="layout's slices"):
        controls.spread(vectors, "tensor")
    with pytest.raises(UnknownChoiceError, match="did you mean 'tensor'"):
        controls.spread(vectors, "tensr")


def test_noise_moves_checkpoints_by_its_scale(vectors):
    lengths = controls.spread(vectors)
    assert all(row in vectors.tolist() for row in controls.noise(vectors, 30, 0.0, lengths, rng()).tolist())
    small, large = (controls.noise(vectors, 4000, scale, lengths, rng()) for scale in (1.0, 2.0))
    still = controls.noise(vectors, 4000, 0.0, lengths, rng())
    torch.testing.assert_close((large - still), 2 * (small - still), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((small - still).std(0), lengths, atol=0.01, rtol=0.03)


@pytest.mark.parametrize("wanted", [0.999, 0.9, 0.3, 0.01])
def test_bisection_finds_the_scale_of_a_similarity(wanted):
    found = controls.match_scale(
        lambda scale: torch.full((1, 1), scale), wanted, lambda v: math.exp(-3 * float(v)), tolerance=1e-4
    )
    assert found.reached
    assert found.scale == pytest.approx(-math.log(wanted) / 3, rel=0.15 if wanted > 0.99 else 0.02)
    assert found.similarity == pytest.approx(wanted, abs=1e-4)
    assert float(found.vectors) == pytest.approx(found.scale)


def test_matched_noise_hits_its_target(vectors):
    def similarity(x: torch.Tensor) -> float:
        return float((-torch.cdist(x, vectors).amin(1)).exp().mean())

    found = controls.matched_noise(vectors, 200, 0.5, similarity, rng())
    assert found.reached
    assert similarity(found.vectors) == pytest.approx(0.5, abs=0.002)
    lengths = controls.spread(vectors)
    torch.testing.assert_close(found.vectors, controls.noise(vectors, 200, found.scale, lengths, rng()))


def test_a_similarity_out_of_reach_is_said_to_be():
    calls = []

    def similarity(x: torch.Tensor) -> float:
        calls.append(float(x))
        return max(0.4, 1 - float(x))

    found = controls.match_scale(lambda scale: torch.full((1, 1), scale), 0.1, similarity)
    assert (found.reached, found.similarity) == (False, 0.4)
    assert len(calls) < 30
    with pytest.raises(InputError, match=r"in \[0, 1\], got 1.5"):
        controls.match_scale(lambda scale: torch.zeros(1, 1), 1.5, similarity)


def test_a_similarity_that_moves_in_steps_ends_at_the_nearest_one():
    found = controls.match_scale(
        lambda scale: torch.full((1, 1), scale), 0.77, lambda v: 1.0 if float(v) < 5 else 0.7, tolerance=0.002
    )
    assert (found.reached, found.similarity) == (False, 0.7)


def test_the_ensemble_averages_predictions_chunk_by_chunk(vectors):
    def probabilities(x: torch.Tensor, own: dict[str, torch.Tensor]) -> torch.Tensor:
        assert len(x) == len(own["scale"]) <= 5
        return torch.stack([x, own["scale"][:, None] * x], -1)  # (k, M = 5, C = 2)

    scale = torch.arange(12.0)
    expected = torch.stack([vectors.mean(0), (scale[:, None] * vectors).mean(0)], -1)
    torch.testing.assert_close(controls.prediction_ensemble(vectors, probabilities, {"scale": scale}, 5), expected)


def test_the_greedy_soup_takes_only_what_helps():
    vectors = torch.tensor([[1.0], [0.0], [-1.2], [5.0]])
    score = lambda x: -x.abs().flatten()  # noqa: E731
    soup = controls.greedy_soup(vectors[[0, 2, 3]], score(vectors[[0, 2, 3]]), score)
    torch.testing.assert_close(soup, torch.tensor([[-0.1]]))  # 1, then −1.2 helps, 5 does not


def test_one_checkpoint_is_shown_to_the_generator(vectors):
    seen = []

    def generate(one: torch.Tensor) -> torch.Tensor:
        seen.append(one)
        return one.repeat(3, 1)

    found = controls.one_checkpoint(vectors, generate, rng(3))
    assert seen[0].shape == (1, 5)
    assert found[0].tolist() in vectors.tolist()
    again = controls.one_checkpoint(vectors, generate, rng(3))
    assert torch.equal(found, again)


@pytest.mark.parametrize("draw", [controls.average_draws, controls.gaussian, controls.pca_gaussian])
def test_a_control_is_a_function_of_its_generator(draw):
    vectors = torch.randn(20, 5, generator=rng(9))
    assert torch.equal(draw(vectors, 6, rng(1)), draw(vectors, 6, rng(1)))
    assert not torch.equal(draw(vectors, 6, rng(1)), draw(vectors, 6, rng(2)))
    assert draw(vectors, 6, rng(1)).dtype == torch.float32


def test_broken_checkpoints_are_refused(vectors):
    vectors[4, 2] = float("nan")
    with pytest.raises(NonFiniteError, match="checkpoint 4 holds NaN"):
        controls.uniform_average(vectors)
    with pytest.raises(InputError, match=r"checkpoints must be float .*int64 \(2, 3\)"):
        controls.gaussian(torch.zeros(2, 3, dtype=torch.long), 1, rng())
