import pytest
import torch

from latentia.errors import InputError, UnknownChoiceError
from latentia.losses.reconstruction import ERRORS, per_sample, weighted_error

A = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
B = torch.tensor([[0.0, 0.5], [0.0, 2.0]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mse", [[0, 0.25], [4, 9]]),
        ("l2", [[0, 0.25], [4, 9]]),
        ("l1", [[0, 0.5], [2, 3]]),
        ("huber", [[0, 0.125], [1.5, 2.5]]),
    ],
)
def test_elementwise_values(name, expected):
    assert torch.equal(ERRORS[name](A, B), torch.tensor(expected))


def test_per_sample_sum_is_mean_times_elements():
    x = torch.arange(24.0).view(2, 3, 4)
    assert per_sample(x, "sum").tolist() == [66, 210]
    assert per_sample(x, "mean").tolist() == [5.5, 17.5]
    assert per_sample(torch.tensor([1.0, 2.0]), "mean").tolist() == [1, 2]
    with pytest.raises(UnknownChoiceError, match="did you mean 'sum'"):
        per_sample(x, "summ")


def test_weighted_error_weights_samples():
    assert float(weighted_error(A, B)) == pytest.approx(13.25 / 4)
    assert float(weighted_error(A, B, "mse", torch.tensor([1.0, 0.0]))) == pytest.approx(0.125 / 2)
    assert weighted_error(A.bfloat16(), B.bfloat16()).dtype == torch.float32


def test_weighted_error_refuses_broadcasting():
    with pytest.raises(InputError, match="differ in shape"):
        weighted_error(A, B[:1])
    with pytest.raises(UnknownChoiceError, match="known: huber, l1, l2, mse"):
        weighted_error(A, B, "lpips")
