"""Similarity of mistakes and of weights, in closed form."""

import pytest
import torch

from latentia.errors import InputError
from latentia.methods.pdiff import similarity as sim


def sets(*members: set[int], images: int = 8) -> torch.Tensor:
    wrong = torch.zeros(len(members), images, dtype=torch.bool)
    for row, indices in zip(wrong, members):
        row[list(indices)] = True
    return wrong


def test_iou_of_known_sets():
    a = sets({0, 1, 2}, {5}, set())
    b = sets({1, 2, 3}, {0, 1, 2}, set(), {4, 5, 6, 7})
    expected = [[2 / 4, 1, 0, 0], [0, 0, 0, 1 / 4], [0, 0, 1, 0]]
    torch.testing.assert_close(sim.iou_matrix(a, b), torch.tensor(expected))


def test_the_matrix_product_equals_the_definition():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(n, 97, generator=generator) < 0.3 for n in (13, 17))
    both = (a[:, None] & b).sum(-1)
    either = (a[:, None] | b).sum(-1)
    torch.testing.assert_close(sim.iou_matrix(a, b), both / either)


def test_the_four_comparisons_leave_out_self_pairs():
    originals = sets({0, 1}, {1, 2}, {1})  # pairs: 1/3, 1/2, 1/2
    generated = sets({0, 1, 2, 3}, {1, 2})  # pair: 1/2
    found = sim.four_comparisons(originals, generated)
    assert found.originals == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3)
    assert found.generated == pytest.approx(1 / 2)
    assert found.across == pytest.approx((2 / 4 + 2 / 4 + 1 / 4 + 1 / 3 + 1 + 1 / 2) / 6)
    assert found.nearest == pytest.approx((1 / 2 + 1) / 2)


def test_one_network_has_no_pairs():
    found = sim.four_comparisons(sets({0, 1}), sets({0}))
    assert (found.originals, found.generated, found.across, found.nearest) == (None, None, 0.5, 0.5)
    with pytest.raises(InputError, match="two networks, got 1"):
        sim.own_nearest_similarity(sets({0}))


def test_the_nearest_original_is_named_and_never_oneself():
    originals = sets({0, 1}, {1, 2, 3}, {1, 2})
    values, rows = sim.nearest_similarity(sets({1, 2, 3, 4}, {0}), originals)
    assert rows.tolist() == [1, 0]
    assert values.tolist() == [0.75, 0.5]
    torch.testing.assert_close(sim.own_nearest_similarity(originals), torch.tensor([1 / 3, 2 / 3, 2 / 3]))


def test_the_jackknife_leaves_out_one_group_of_images_at_a_time():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.rand(n, 41, generator=generator) < 0.3 for n in (6, 9))
    found = sim.jackknife_nearest(a, b, groups=7)
    for group, value in enumerate(found.tolist()):
        keep = torch.arange(41) % 7 != group
        assert value == pytest.approx(float(sim.nearest_similarity(a[:, keep], b[:, keep])[0].mean()))
    own = sim.jackknife_nearest(a, a, groups=3, other=True)
    keep = torch.arange(41) % 3 != 2
    assert float(own[2]) == pytest.approx(float(sim.own_nearest_similarity(a[:, keep]).mean()))


def test_the_jackknife_error_of_a_mean_is_the_textbook_one():
    x = torch.tensor([1.0, 4.0, 2.0, 7.0, 3.0], dtype=torch.float64)
    leave_one_out = (x.sum() - x) / (len(x) - 1)
    assert sim.jackknife_error(leave_one_out) == pytest.approx(float(x.std()) / len(x) ** 0.5)


def test_distances_of_near_copies_far_from_the_origin(monkeypatch):
    monkeypatch.setattr(sim, "COLUMNS", 50)
    generator = torch.Generator().manual_seed(2)
    base = 100 + torch.randn(1, 333, generator=generator)
    a, b = (base + 0.01 * torch.randn(n, 333, generator=generator) for n in (4, 6))
    exact = (a.double()[:, None] - b.double()).norm(dim=-1)
    torch.testing.assert_close(sim.l2_matrix(a, b), exact, rtol=1e-9, atol=1e-9)
    assert float(sim.l2_matrix(a, a).diagonal().max()) < 1e-6


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(2, 3), sets({0}, images=3), r"a must be bool .*float32 \(2, 3\)"),
        (sets({0}), sets({0}, images=9), "same images, got 8 and 9"),
        (sets({0})[0], sets({0}), "a must be bool"),
    ],
)
def test_only_mistakes_on_the_same_images_compare(a, b, message):
    with pytest.raises(InputError, match=message):
        sim.iou_matrix(a, b)


def test_only_vectors_of_one_length_have_a_distance():
    with pytest.raises(InputError, match=r"got \(2, 3\) and \(2, 4\)"):
        sim.l2_matrix(torch.zeros(2, 3), torch.zeros(2, 4))
