import pytest
import torch

from latentia.codecs.quantizers import nearest
from latentia.codecs.quantizers.nearest import nearest_codes


def by_differences(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return (z[:, None].double() - codes.double()).square().sum(-1).argmin(1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n", "k", "d"), [(300, 1000, 3), (50, 64, 256), (7, 1, 2), (1, 500, 1), (0, 5, 4)])
@pytest.mark.parametrize("spread", [1.0, 1e-4])
def test_is_the_smallest_difference(n, k, d, spread):
    """Spread 1e-4 is a codebook of 10⁴ codes at its start, where the usual expansion of the square loses all digits."""
    z, codes = normal(n, d), normal(k, d, seed=1) * spread
    found = nearest_codes(z, codes)
    assert found.dtype == torch.int64
    assert torch.equal(found, by_differences(z, codes))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_stays_exact_when_products_may_round(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        z, codes = normal(200, 4), normal(300, 4, seed=1)
        assert torch.equal(nearest_codes(z, codes), by_differences(z, codes))
    finally:
        torch.set_float32_matmul_precision(before)


def test_precision_that_cannot_be_asked_counts_as_the_worst(monkeypatch):
    def refuse() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    z, codes = normal(200, 4), normal(300, 4, seed=1)
    assert nearest._input_rounding() == 2.0**-7
    assert torch.equal(nearest_codes(z, codes), by_differences(z, codes))


def test_a_difference_that_float32_products_cannot_see():
    """z·e and ½‖e‖² of both codes round to the same number; the second is nearer."""
    codes = torch.tensor([[1000.0, 0.0], [1000.0, 1e-3]])
    z = torch.tensor([[1000.0, 6e-4], [1000.0, 4e-4]])
    assert nearest_codes(z, codes).tolist() == [1, 0]


def test_ties_go_to_the_first():
    once = normal(5, 3)
    assert torch.equal(
        nearest_codes(normal(400, 3, seed=1), once.repeat(40, 1)), nearest_codes(normal(400, 3, seed=1), once)
    )
    assert nearest_codes(torch.zeros(3, 2), torch.tensor([[1.0, 0.0], [0.0, -1.0], [-1.0, 0.0]])).tolist() == [0] * 3


def test_chunks_change_nothing(monkeypatch):
    z, codes = normal(101, 3), normal(50, 3, seed=1).repeat(2, 1)
    whole = nearest_codes(z, codes)
    monkeypatch.setattr(nearest, "SCORES_AT_ONCE", {"cpu": 700})
    monkeypatch.setattr(nearest, "ELEMENTS_AT_ONCE", 10)
    assert torch.equal(nearest_codes(z, codes), whole)
    assert torch.equal(torch.cat([nearest_codes(row, codes) for row in z.split(1)]), whole)


def test_memory_is_bounded():
    """Three million scores, of which few are held at once."""
    z, codes = normal(300, 2), normal(10_000, 2, seed=1)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    with Watch():
        nearest_codes(z, codes)
    assert max(sizes) <= nearest.SCORES_AT_ONCE["cpu"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_compared_in_float32(dtype):
    z, codes = normal(200, 8).to(dtype), normal(100, 8, seed=1).to(dtype)
    assert torch.equal(nearest_codes(z, codes), by_differences(z, codes))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_codes(z.float(), codes.float()), by_differences(z, codes))


def test_shapes_without_numbers():
    found = nearest_codes(torch.empty(5, 3, device="meta"), torch.empty(9, 3, device="meta"))
    assert (found.shape, found.dtype, found.is_meta) == ((5,), torch.int64, True)


def test_rows_that_are_not_finite_have_some_code_and_spoil_no_other():
    z, codes = normal(6, 3), normal(9, 3, seed=1)
    clean = nearest_codes(z, codes)
    z[1, 0], z[4, 2] = float("nan"), float("inf")
    found = nearest_codes(z, codes)
    assert ((found >= 0) & (found < 9)).all()
    assert torch.equal(found[[0, 2, 3, 5]], clean[[0, 2, 3, 5]])
