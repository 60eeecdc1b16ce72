import pytest
import torch

from latentia.errors import ConfigError, InputError
from latentia.nn.rope import rope_axes, rope_table, rotate


@pytest.mark.parametrize(("head", "axes"), [(64, (8, 28, 28)), (96, (12, 42, 42)), (32, (4, 14, 14))])
def test_axes_as_released(head, axes):
    assert rope_axes(head) == axes


@pytest.mark.parametrize("head", range(4, 130, 2))
def test_axes_are_even_and_add_up(head):
    axes = rope_axes(head)
    assert sum(axes) == head
    assert all(a >= 0 and a % 2 == 0 for a in axes)
    assert axes[1] == axes[2] >= 1


@pytest.mark.parametrize("head", [0, 2, 33])
def test_a_head_that_cannot_be_paired_is_refused(head):
    with pytest.raises(ConfigError, match="even width"):
        rope_axes(head)


def test_rotation_is_the_complex_product():
    positions = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, -1.5]])
    axes, theta = (2, 4, 2), 100.0
    x = torch.randn(1, 3, 2, 8)
    omega = torch.tensor([1.0, 1.0, 0.1, 1.0])  # θ^(−2k/d) of axes 0, 1, 1, 2
    angle = positions[:, [0, 1, 1, 2]] * omega
    expected = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(torch.ones(2, 4), angle)
    turned = rotate(x, rope_table(positions, axes, theta))
    torch.testing.assert_close(turned, torch.view_as_real(expected).flatten(-2))


def test_accelerators_compute_the_same():
    x, table = torch.randn(2, 3, 5, 8), rope_table(torch.rand(5, 3) * 9, (4, 2, 2))
    here = rotate(x, table)

    class Elsewhere(torch.Tensor):
        device = torch.device("cuda")

    there = rotate(x.as_subclass(Elsewhere), table).as_subclass(torch.Tensor)
    torch.testing.assert_close(there, here)


def test_products_depend_on_differences_alone_and_norms_stay():
    axes = rope_axes(16)
    positions = torch.rand(5, 3) * 10
    q, k = torch.randn(2, 1, 1, 5, 16)
    shift = torch.tensor([3.0, -2.0, 7.5])
    here, there = rope_table(positions, axes), rope_table(positions + shift, axes)
    products = [rotate(q, table) @ rotate(k, table).transpose(-1, -2) for table in (here, there)]
    torch.testing.assert_close(*products, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(rotate(q, here).norm(dim=-1), q.norm(dim=-1))


def test_half_precision_is_rotated_in_float32():
    x = torch.randn(1, 1, 3, 8, dtype=torch.bfloat16)
    table = rope_table(torch.arange(9.0).view(3, 3), (4, 2, 2))
    turned = rotate(x, table)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned, rotate(x.float(), table).bfloat16())


def test_positions_of_other_axes_are_refused():
    with pytest.raises(InputError, match=r"expected \(N, 3\)"):
        rope_table(torch.zeros(4, 2), (2, 4, 2))
