"""scikit-learn's 1,797 real handwritten digits, with a fixed split that never depends on a random generator."""

import hashlib
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from latentia.data.dataset import TensorDataset, check_channels, check_size
from latentia.errors import check_choice

SPLITS = ("train", "test", "all")
TEST_PER_CLASS = 54
NUM_CLASSES = 10


def digits(split: str = "train", size: int = 32, channels: int = 1) -> TensorDataset:
    """Handwritten digits as `{"x": (N, channels, size, size) in [-1, 1], "label": (N,) in 0..9}`.

    The 8×8 scans (values 0–16, 0 is paper) become v/8 − 1, then are resized by bicubic interpolation
    (a = −0.5, half-pixel centres, antialiased when shrinking) and clipped to [-1, 1]; size 8 is exact.

    Args:
        split: `train` (1,257), `test` (540, 54 of each class) or `all` (1,797); rows keep the source's order.
            Rule: in each class the samples are sorted by the BLAKE2b digest of their 64 pixel bytes, and the
            first 54 are the test set. It depends on the pixels alone, and equal scans sort side by side.
        size: pixels a side, at least 1.
        channels: 1, or 3 for three equal ones.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test part).
    Raises `UnknownChoiceError` for another split, `InputError` for a bad size or number of channels.
    """
    check_choice("split", split, SPLITS)
    size, channels = check_size(size), check_channels(channels)
    pixels, labels = _scans()
    x = (torch.from_numpy(pixels).float() / 8 - 1).unsqueeze(1)
    if size != 8:
        x = F.interpolate(x, size=(size, size), mode="bicubic", antialias=True).clamp_(-1, 1)
    rows = digit_indices(split)
    x = x[rows].expand(-1, channels, -1, -1).contiguous()
    return TensorDataset({"x": x, "label": torch.from_numpy(labels)[rows]})


def digit_indices(split: str) -> torch.Tensor:
    """Row numbers of `split` in scikit-learn's `load_digits`, ascending int64."""
    check_choice("split", split, SPLITS)
    pixels, labels = _scans()
    if split == "all":
        return torch.arange(len(labels))
    digests = [hashlib.blake2b(scan.tobytes(), digest_size=8).digest() for scan in pixels]
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(NUM_CLASSES):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda row: (digests[row], row))
        is_test[members[:TEST_PER_CLASS]] = True
    return torch.nonzero(is_test if split == "test" else ~is_test).flatten()


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # imported late: scikit-learn takes a second

    loaded = load_digits()
    return loaded.images.astype(np.uint8), loaded.target.astype(np.int64)
