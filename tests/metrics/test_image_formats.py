"""Image formats at a budget: kept, used up, and counted without headers where asked."""

import numpy as np
import pytest
from PIL import Image

from latentia.errors import InputError, UnknownChoiceError
from latentia.metrics.image_formats import FORMATS, compress


@pytest.fixture(scope="module")
def picture():
    y, x = np.mgrid[:96, :128] / 16
    texture = np.random.default_rng(0).normal(0, 20, (96, 128, 3))
    values = np.stack([np.sin(x) + y, np.cos(y), np.sin(x * y / 4)], -1) * 40 + 128 + texture
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", FORMATS)
def test_budget_is_kept_and_more_bits_are_closer(picture, name):
    errors = []
    for budget in (1500, 4000):
        found = compress(picture, name, budget)
        assert found.fits
        assert 0.6 * budget < found.bytes <= budget
        assert 0 < found.payload < found.bytes
        errors.append(np.square(np.asarray(found.picture, float) - np.asarray(picture, float)).mean())
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", FORMATS)
def test_without_headers_there_is_room_for_more(picture, name):
    whole, payload = compress(picture, name, 2000), compress(picture, name, 2000, headers=False)
    assert payload.payload <= 2000
    assert payload.quality >= whole.quality


@pytest.mark.parametrize("name", FORMATS)
def test_impossible_budget_says_so(picture, name):
    found = compress(picture, name, 20)
    assert not found.fits
    assert found.quality == 0
    assert found.bytes > 20


def test_bad_input(picture):
    with pytest.raises(UnknownChoiceError, match="jpeg"):
        compress(picture, "jpg", 100)
    with pytest.raises(InputError, match="RGBA"):
        compress(picture.convert("RGBA"), "jpeg", 100)
