import pytest
import torch

from latentia.errors import InputError, NonFiniteError
from latentia.metrics.features import PixelFeatures
from latentia.metrics.frechet import (
    EPS,
    Gaussian,
    balanced_draw,
    frechet,
    frechet_distance,
    frechet_of,
    noise_ceiling,
    real_floor,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_name_is_the_ruler_and_n_is_told():
    found = frechet(PixelFeatures(), normal(40, 1, 2, 2), normal(30, 1, 2, 2, seed=1))
    assert (found.name, found.n_real, found.n_generated) == ("frechet_pixels", 40, 30)
    assert found.details == {"dim": 4, "eps": EPS, "rank_deficient": False}
    assert str(found).endswith("(n = 30 against 40 real)")


def test_a_network_called_fid_gets_no_fid():
    ruler = PixelFeatures()
    ruler.name = "inception"
    assert frechet(ruler, normal(9, 1, 2, 2), normal(9, 1, 2, 2)).name == "frechet_inception"


def test_too_few_samples_warn_and_are_recorded():
    with pytest.warns(UserWarning, match="40 real and 5 generated samples in 8 dimensions"):
        found = frechet_of("frechet_x", normal(40, 8), normal(5, 8))
    assert found.details["rank_deficient"] is True


def test_saved_moments_serve_as_well():
    real, fake = normal(40, 3), normal(30, 3, seed=1)
    assert frechet_of("f", Gaussian.fit(real), fake).value == frechet_of("f", real, fake).value


def test_bad_input():
    with pytest.raises(InputError, match="N ≥ 2"):
        Gaussian.fit(normal(1, 4))
    with pytest.raises(NonFiniteError, match="NaN"):
        Gaussian.fit(normal(4, 4).log())
    zero, eye = torch.zeros(3), torch.eye(3)
    with pytest.raises(InputError, match=r"mean2 must be \(3,\)"):
        frechet_distance(zero, eye, torch.zeros(4), torch.eye(4))
    with pytest.raises(InputError, match=r"covariance2 must be \(3, 3\)"):
        frechet_distance(zero, eye, zero, torch.eye(4))
    with pytest.raises(NonFiniteError, match="covariance1"):
        frechet_distance(zero, eye * torch.nan, zero, eye)
    with pytest.raises(InputError, match="not symmetric"):
        frechet_distance(zero, eye + torch.ones(3, 3).triu(1), zero, eye)
    with pytest.raises(InputError, match="eigenvalue -1"):
        frechet_distance(zero, -eye, zero, eye)
    with pytest.raises(InputError, match="eps must not be negative"):
        frechet_distance(zero, eye, zero, eye, eps=-1)


def test_balanced_draw():
    labels = torch.arange(4).repeat_interleave(torch.tensor([5, 6, 7, 8]))
    rows = balanced_draw(labels, 12, torch.Generator().manual_seed(0))
    assert labels[rows].bincount().tolist() == [3, 3, 3, 3]
    assert len(rows.unique()) == 12
    assert sorted(labels[balanced_draw(labels, 14, torch.Generator().manual_seed(0))].bincount().tolist()) == [
        3,
        3,
        4,
        4,
    ]
    with pytest.raises(InputError, match="class 0 has 5 samples, a balanced draw of 24 needs 6"):
        balanced_draw(labels, 24, torch.Generator())


def test_floor_is_small_repeatable_and_balanced():
    labels = torch.arange(10).repeat(40)
    features = normal(400, 4) + 5 * torch.nn.functional.one_hot(labels % 4, 4)
    floor = real_floor("frechet_x", features, 100, labels, draws=4, seed=3)
    assert floor.name == "frechet_x_floor_balanced"
    assert (floor.n_generated, floor.n_real, floor.seed) == (100, 400, 3)
    assert 0 < floor.value < 0.2
    assert floor.details["draws"] == 4
    assert 0 < floor.details["std"] < floor.value
    assert real_floor("frechet_x", features, 100, labels, draws=4, seed=3).value == floor.value
    assert real_floor("frechet_x", features, 100, labels, draws=4, seed=4).value != floor.value
    assert real_floor("frechet_x", features, 400, draws=1).value == pytest.approx(0, abs=1e-9)


def test_disjoint_floor_is_what_fresh_samples_score():
    """E[d²] of fresh samples is ∝ 1/n + 1/N, of a part of the reference ∝ 1/n − 1/N (n = N/2 here: 3 times, and 4)."""
    features = normal(2000, 8)
    part = real_floor("f", features, 1000, draws=10)
    rest = real_floor("f", features, 1000, draws=10, disjoint=True)
    assert (rest.name, rest.n_real) == ("f_floor_disjoint", 1000)
    assert rest.value / part.value == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(("n", "draws"), [(1, 3), (21, 3), (10, 0)])
def test_bad_floor(n, draws):
    with pytest.raises(InputError):
        real_floor("f", normal(20, 2), n, draws=draws)


def test_noise_is_the_ceiling():
    real = 0.1 * normal(60, 1, 2, 2)
    ceiling = noise_ceiling(PixelFeatures(), real, 50, (1, 2, 2), seed=1)
    assert ceiling.name == "frechet_pixels_ceiling"
    assert ceiling.value > 10 * frechet(PixelFeatures(), real, 0.1 * normal(50, 1, 2, 2, seed=5)).value
