"""Where to crop, how to fit, how to blend."""

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from latentia.errors import InputError
from latentia.pipelines.paste import crop_box, feathered, fitted, pasted

RNG = np.random.default_rng(0)


def cases(number):
    """Sizes of a picture, sizes of a call, and a random rectangle in the picture."""
    for _ in range(number):
        width, height = RNG.integers(10, 90, 2)
        mask = np.zeros((height, width), np.uint8)
        left, top = RNG.integers(width), RNG.integers(height)
        mask[top : top + RNG.integers(1, 50), left : left + RNG.integers(1, 50)] = RNG.choice([1, 255])
        yield mask, 8 * int(RNG.integers(1, 12)), 8 * int(RNG.integers(1, 12)), int(RNG.choice([0, 1, 5, 32]))


def test_boxes_are_diffusers():
    for mask, height, width, padding in cases(200):
        picture = Image.fromarray(mask)
        theirs = VaeImageProcessor.get_crop_region(picture, width, height, pad=padding)
        assert crop_box(picture, height, width, padding) == tuple(theirs)


def test_an_empty_mask_has_no_box():
    with pytest.raises(InputError, match="black everywhere"):
        crop_box(Image.new("L", (8, 8)), 8, 8, 4)


def test_fits_are_diffusers():
    processor = VaeImageProcessor()
    for mask, height, width, _ in cases(40):
        picture = Image.fromarray(RNG.integers(0, 256, (*mask.shape, 3), dtype=np.uint8))
        for cover, theirs in ((False, processor._resize_and_fill), (True, processor._resize_and_crop)):
            ours = fitted(picture, width, height, cover=cover)
            assert (np.asarray(ours) == np.asarray(theirs(picture, width, height))).all()


@pytest.mark.parametrize("feather", [0.0, 0.3, 1.0, 2.5])
def test_feathering_is_one_on_the_mask_and_zero_far_from_it(feather):
    mask = torch.zeros(2, 1, 40, 50)
    mask[0, :, 15:25, 20:30] = 1
    mask[1, :, :4, :4] = 1
    reach = 2 * int(np.ceil(2 * feather))
    opacity = feathered(mask, feather)
    assert (opacity[mask == 1] == 1).all()
    near = torch.zeros_like(mask)
    near[0, :, 15 - reach : 25 + reach, 20 - reach : 30 + reach] = 1
    near[1, :, : 4 + reach, : 4 + reach] = 1
    assert (opacity[near == 0] == 0).all()
    assert (opacity[near == 1] > 0).all()
    edge = opacity[0, 0, 20, 29:]
    assert (edge[1:] <= edge[:-1]).all()
    if reach:
        # Halfway out, at a straight edge: between the Gaussian's halves.
        middle = opacity[0, 0, 20, 29 + reach // 2 : 31 + reach // 2].mean()
        assert middle == pytest.approx(0.5, abs=1e-6)


def test_a_mask_of_ones_stays():
    assert torch.equal(feathered(torch.ones(1, 1, 9, 9), 3.0), torch.ones(1, 1, 9, 9))
    assert torch.equal(feathered(torch.zeros(1, 1, 9, 9), 3.0), torch.zeros(1, 1, 9, 9))


def test_pasting_is_exact_at_both_ends():
    original, repainted = torch.rand(2, 1, 3, 5, 5, dtype=torch.float64) * 2 - 1
    opacity = torch.zeros(1, 1, 5, 5)
    opacity[..., 2] = 1
    opacity[..., 3] = 0.25
    made = pasted(original, repainted * 3, opacity)
    assert torch.equal(made[..., :2], original[..., :2])
    assert torch.equal(made[..., 2], (repainted * 3).clamp(-1, 1)[..., 2])
    want = 0.75 * original + 0.25 * (repainted * 3).clamp(-1, 1)
    assert torch.allclose(made[..., 3], want[..., 3])
