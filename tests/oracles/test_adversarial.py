"""Adversarial losses against values worked out by hand."""

import math

import pytest
import torch
from torch import nn

from latentia.losses.adversarial import LeCam, adaptive_weight, discriminator_loss, generator_loss, r1_penalty

REAL, FAKE = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.0])


@pytest.mark.parametrize(
    ("kind", "d", "g"),
    [
        ("hinge", 0.5 * (0.25 + 0.5), 1.5),
        (
            "vanilla",
            0.25 * sum(math.log1p(math.exp(v)) for v in (-2.0, -0.5, -3.0, 0.0)),
            1.5,
        ),
        (
            "non_saturating",
            0.25 * sum(math.log1p(math.exp(v)) for v in (-2.0, -0.5, -3.0, 0.0)),
            0.5 * (math.log1p(math.exp(3.0)) + math.log(2)),
        ),
    ],
)
def test_values_by_hand(kind, d, g):
    assert float(discriminator_loss(REAL, FAKE, kind)) == pytest.approx(d, rel=1e-6)
    assert float(generator_loss(FAKE, kind)) == pytest.approx(g, rel=1e-6)


def test_a_discriminator_that_says_nothing():
    zero = torch.zeros(4)
    assert float(discriminator_loss(zero, zero, "hinge")) == 1
    assert float(discriminator_loss(zero, zero, "vanilla")) == pytest.approx(math.log(2))


def test_hinge_has_no_gradient_beyond_the_margin():
    real, fake = torch.tensor([1.5, 0.0], requires_grad=True), torch.tensor([-1.5, 0.0], requires_grad=True)
    discriminator_loss(real, fake).backward()
    assert real.grad.tolist() == [0, -0.25]
    assert fake.grad.tolist() == [0, 0.25]


def test_adaptive_weight_by_hand():
    """x̂ = w·h: ∂(a·x̂)/∂w = a·h, so λ = |a|‖h‖/(|b|‖h‖ + δ)."""
    h = torch.tensor([3.0, 4.0])
    w = nn.Parameter(torch.tensor([0.1, 0.2]))
    made = (w * h).sum()
    assert float(adaptive_weight(2 * made, -0.5 * made, w)) == pytest.approx(10 / (2.5 + 1e-4), rel=1e-6)
    weight = adaptive_weight(2 * made, 1e-9 * made, w)
    assert float(weight) == 1e4  # clamped
    assert not weight.requires_grad
    assert w.grad is None


def test_adaptive_weight_makes_both_pull_alike():
    torch.manual_seed(0)
    last, judge = nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(3, 1, 4, 2)
    x, h = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 8, 8)
    made = last(h)
    rec, gan = (made - x).abs().mean(), -judge(made).mean()
    weight = adaptive_weight(rec, gan, last.weight)
    (g_rec,) = torch.autograd.grad(rec, last.weight, retain_graph=True)
    (g_gan,) = torch.autograd.grad(weight * gan, last.weight)
    assert float(g_gan.norm()) == pytest.approx(float(g_rec.norm()), rel=1e-2)


def test_r1_of_a_linear_judge_is_half_its_squared_length():
    judge = nn.Linear(12, 1)
    x = torch.randn(5, 3, 2, 2)
    penalty = r1_penalty(lambda v: judge(v.flatten(1)), x)
    assert float(penalty.detach()) == pytest.approx(0.5 * float(judge.weight.detach().square().sum()), rel=1e-5)
    penalty.backward()
    assert torch.allclose(judge.weight.grad, judge.weight, atol=1e-6)


def test_lecam_moves_its_means_then_measures():
    lecam = LeCam(decay=0.5)
    value = lecam(torch.tensor([2.0]), torch.tensor([-4.0]))  # means become 1 and -2
    assert lecam.means.tolist() == [1, -2]
    assert float(value) == (2 + 2) ** 2 + (1 + 4) ** 2
    lecam.eval()
    lecam(torch.tensor([9.0]), torch.tensor([9.0]))
    assert lecam.means.tolist() == [1, -2]
