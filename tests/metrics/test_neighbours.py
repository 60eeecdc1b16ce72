import pytest
import torch

from latentia.errors import InputError, NonFiniteError
from latentia.metrics.kid import kernel_distance, mmd2
from latentia.metrics.neighbours import nearest, nearest_training
from latentia.metrics.precision_recall import manifold_radii, precision_recall


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_nearest_is_brute_force():
    a, b = normal(17, 5), normal(23, 5, seed=1)
    every = (a.double()[:, None] - b.double()).norm(dim=-1)
    distances, rows = nearest(a, b, chunk=4)
    assert torch.allclose(distances, every.min(1).values, atol=1e-10)
    assert torch.equal(rows, every.argmin(1))


def test_copies_are_at_zero():
    a = 100 + normal(8, 1024)
    distances, rows = nearest(a, a)
    assert float(distances.max()) < 1e-3
    assert rows.tolist() == list(range(8))


def test_memorising_shows():
    train, held_out = normal(200, 16), normal(100, 16, seed=1)
    honest = nearest_training("x", normal(100, 16, seed=2), train, held_out)
    assert honest["nearest_x_ratio"].value == pytest.approx(1, abs=0.05)
    copied = nearest_training("x", train[:100] + 0.1 * normal(100, 16, seed=3), train, held_out)
    assert copied["nearest_x_ratio"].value < 0.2
    assert copied["nearest_x"].details["smallest"] <= copied["nearest_x"].details["q05"] <= copied["nearest_x"].value
    assert (copied["nearest_x"].n_generated, copied["nearest_x"].n_real) == (100, 200)
    assert set(nearest_training("x", held_out, train)) == {"nearest_x"}


def test_radii_by_hand():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert manifold_radii(line, k=2).tolist() == [3, 2, 3, 6]
    assert manifold_radii(line, k=1, chunk=3).tolist() == [1, 1, 2, 4]


def test_precision_and_recall_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # k = 1 radii: 1, 1, 1, 8
    generated = torch.tensor([[0.5], [-0.5], [-1.5], [30.0]])  # radii: 1, 1, 1, 29.5
    found = precision_recall("x", real, generated, k=1)
    assert found["precision_x"].value == 0.5
    assert found["recall_x"].value == 1.0
    assert found["recall_x"].details == {"k": 1}


def test_precision_and_recall_tell_quality_from_variety():
    real = normal(300, 4)
    narrow = precision_recall("x", real, 0.2 * normal(300, 4, seed=1))
    wide = precision_recall("x", real, 4 * normal(300, 4, seed=1))
    assert narrow["precision_x"].value > 0.95
    assert narrow["recall_x"].value < 0.3
    assert wide["precision_x"].value < 0.4
    assert wide["recall_x"].value > 0.9


def test_chunks_do_not_matter():
    a, b = normal(50, 3), normal(40, 3, seed=1)
    assert precision_recall("x", a, b, chunk=7) == precision_recall("x", a, b)


def test_kernel_distance_is_unbiased():
    values = torch.tensor([mmd2(normal(40, 3, seed=2 * i), normal(50, 3, seed=2 * i + 1)) for i in range(200)])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 200**0.5
    assert mmd2(normal(40, 3), 1 + normal(50, 3, seed=1)) > 1


def test_kernel_distance_by_loops():
    x, y = normal(4, 2).double(), normal(3, 2, seed=1).double()

    def k(a, b):
        return (float(a @ b) / 2 + 1) ** 3

    xx = sum(k(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    yy = sum(k(y[i], y[j]) for i in range(3) for j in range(3) if i != j) / 6
    xy = sum(k(a, b) for a in x for b in y) / 12
    assert mmd2(x, y) == pytest.approx(xx + yy - 2 * xy, abs=1e-12)


def test_kernel_distance_equals_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    real, fake = normal(30, 6).double(), 0.5 + normal(30, 6, seed=1).double()
    expected = kid.poly_mmd(real, fake)
    assert mmd2(real, fake) == pytest.approx(float(expected), abs=1e-10)
    assert kernel_distance("x", real, fake).value == mmd2(real, fake)


def test_kernel_distance_of_subsets_repeats():
    a, b = normal(60, 3), 1 + normal(60, 3, seed=1)
    first = kernel_distance("x", a, b, subset=20, subsets=30, seed=1)
    assert first == kernel_distance("x", a, b, subset=20, subsets=30, seed=1)
    assert first.value == pytest.approx(mmd2(a, b), rel=0.1)
    assert first.details["subset"] == 20


def test_bad_input():
    with pytest.raises(InputError, match=r"got \(3, 2\) and \(3, 4\)"):
        nearest(normal(3, 2), normal(3, 4))
    with pytest.raises(InputError, match="on both sides, got 0 and 3"):
        nearest(normal(0, 2), normal(3, 2))
    with pytest.raises(InputError, match="more than k samples, got n = 3"):
        precision_recall("x", normal(3, 2), normal(9, 2))
    with pytest.raises(InputError, match="N ≥ 2"):
        mmd2(normal(1, 2), normal(3, 2))
    with pytest.raises(InputError, match="subset ≥ 2"):
        kernel_distance("x", normal(3, 2), normal(3, 2), subset=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_have_no_distances(bad):
    good, broken = torch.randn(8, 2), torch.full((8, 2), bad)
    for measure in (precision_recall, nearest_training, kernel_distance):
        for pair in ((good, broken), (broken, good)):
            with pytest.raises(NonFiniteError, match="NaN or infinity"):
                measure("dots", *pair)
