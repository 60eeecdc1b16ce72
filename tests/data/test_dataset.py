import pytest
import torch

from latentia.core.protocols import Dataset
from latentia.data.dataset import TensorDataset
from latentia.errors import InputError


@pytest.fixture
def ten() -> TensorDataset:
    return TensorDataset({"x": torch.arange(60.0).reshape(10, 1, 2, 3), "label": torch.arange(10)})


def test_it_is_a_dataset_that_knows_its_shapes(ten):
    assert isinstance(ten, Dataset)
    assert len(ten) == 10
    assert ten.shape == (1, 2, 3)
    assert ten.shapes == {"x": (1, 2, 3), "label": ()}
    assert repr(ten) == "TensorDataset(10 samples: {'x': (1, 2, 3), 'label': ()})"


@pytest.mark.parametrize("indices", [[7, 0, 7], torch.tensor([7, 0, 7]), range(7, -8, -7)][:2])
def test_batch_gathers_in_the_given_order(ten, indices):
    found = ten.batch(indices)
    assert found["label"].tolist() == [7, 0, 7]
    assert torch.equal(found["x"], ten.tensors["x"][[7, 0, 7]])


def test_range_and_empty_batches(ten):
    assert ten.batch(range(3))["label"].tolist() == [0, 1, 2]
    assert ten.batch([])["x"].shape == (0, 1, 2, 3)


def test_batches_are_copies(ten):
    ten.batch([1])["x"].zero_()
    assert ten.tensors["x"][1].sum() > 0


def test_select_is_a_dataset(ten):
    smaller = ten.select([3, 5])
    assert len(smaller) == 2
    assert smaller.batch([1])["label"].item() == 5


@pytest.mark.parametrize("bad", [[10], [-1], [0.5], [[0, 1]], [True], "ab", None])
def test_bad_indices_are_refused(ten, bad):
    with pytest.raises(InputError, match="indices must"):
        ten.batch(bad)


def test_bad_tensors_are_refused():
    with pytest.raises(InputError, match="at least one tensor"):
        TensorDataset({})
    with pytest.raises(InputError, match=r"same length, got \{'x': 3, 'label': 2\}"):
        TensorDataset({"x": torch.zeros(3, 1), "label": torch.zeros(2)})
    with pytest.raises(InputError, match="no sample dimension"):
        TensorDataset({"x": torch.tensor(1.0)})
    with pytest.raises(InputError, match="no 'x'"):
        _ = TensorDataset({"z": torch.zeros(3)}).shape
