import hashlib

import pytest
import torch
import torch.nn.functional as F

from latentia.data.digits import digit_indices, digits
from latentia.errors import InputError, UnknownChoiceError


def test_split_is_balanced_complete_and_disjoint():
    train, test, every = (digit_indices(split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(every)) == (1257, 540, 1797)
    assert torch.equal(torch.cat([train, test]).sort().values, every)
    assert digits("test", size=8).tensors["label"].bincount().tolist() == [54] * 10


def test_split_never_changes():
    digest = hashlib.sha256(digit_indices("test").numpy().astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "ddd8eec975b52c80"


def test_no_scan_is_in_both_splits():
    train = {row.numpy().tobytes() for row in digits("train", size=8).tensors["x"]}
    test = {row.numpy().tobytes() for row in digits("test", size=8).tensors["x"]}
    assert not train & test


@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 1), (32, 3), (5, 1), (1, 1)])
def test_shape_type_and_range(size, channels):
    data = digits("test", size=size, channels=channels)
    x, label = data.tensors["x"], data.tensors["label"]
    assert x.shape == (540, channels, size, size)
    assert x.dtype == torch.float32
    assert label.dtype == torch.int64
    assert -1 <= float(x.min()) <= float(x.max()) <= 1
    assert torch.equal(x[:, 0], x[:, -1])


def test_size_8_is_the_scan_itself():
    from sklearn.datasets import load_digits

    source = load_digits()
    data = digits("all", size=8)
    assert torch.equal(data.tensors["x"][:, 0], torch.from_numpy(source.images).float() / 8 - 1)
    assert data.tensors["label"].tolist() == source.target.tolist()


def test_enlarged_digits_shrink_back_to_the_scans():
    small, large = digits("test", size=8).tensors["x"], digits("test", size=32).tensors["x"]
    both = torch.stack([F.avg_pool2d(large, 4).flatten(), small.flatten()])
    assert float(both.corrcoef()[0, 1]) > 0.99


@pytest.mark.parametrize("size", [0, -1, 2.5, "32", True])
def test_bad_size(size):
    with pytest.raises(InputError, match="size must be a whole number"):
        digits("train", size=size)


def test_bad_split_and_channels():
    with pytest.raises(UnknownChoiceError, match="did you mean 'train'"):
        digits("trian")
    with pytest.raises(InputError, match="channels must be 1"):
        digits("train", channels=2)
