"""Pictures and masks in every form: the same tensors as Diffusers' VaeImageProcessor, and errors that teach."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from latentia.errors import InputError
from latentia.pipelines.image_input import load_masks, load_pictures, rows_of

RNG = np.random.default_rng(0)
UINT8 = RNG.integers(0, 256, (2, 21, 27, 3), dtype=np.uint8)
UNIT = RNG.random((2, 21, 27, 3), dtype=np.float32)
GREY = RNG.random((2, 21, 27), dtype=np.float32)


def pil(array):
    return Image.fromarray(array)


def torch_of(array):
    return torch.from_numpy(array).movedim(-1, -3).contiguous()


FORMS = {
    "pil": pil(UINT8[0]),
    "pil list": [pil(UINT8[0]), pil(UINT8[1])],
    "numpy": UNIT[0],
    "numpy batch": UNIT,
    "numpy list": [UNIT[0], UNIT[1]],
    "torch": torch_of(UNIT[0]),
    "torch batch": torch_of(UNIT),
    "torch list": [torch_of(UNIT[0]), torch_of(UNIT[1])],
    "torch signed": torch_of(UNIT) * 2 - 1,
    "half": torch_of(UNIT).half(),
}


@pytest.mark.parametrize("size", [None, (16, 40)])
@pytest.mark.parametrize("form", FORMS)
def test_pictures_are_diffusers(form, size):
    from diffusers.image_processor import VaeImageProcessor

    height, width = size or (None, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = FORMS[form]
        batched = given[None] if isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 3 else given
        want = VaeImageProcessor(vae_scale_factor=8).preprocess(batched, height, width).float()
    pictures = load_pictures(given, height, width)
    assert pictures.centred().shape == want.shape == (len(want), 3, *(size or (16, 24)))
    # Their half tensors are normalised in half precision.
    assert (pictures.centred() - want).abs().max() <= (1e-3 if form == "half" else 1.2e-7)
    assert (pictures.unit() - (want / 2 + 0.5)).abs().max() <= (1e-3 if form == "half" else 1.2e-7)
    assert not pictures.latent


@pytest.mark.parametrize(
    "given",
    [
        pil(UINT8[0]),
        [pil(UINT8[0]).convert("L"), pil(UINT8[1]).convert("L")],
        pil(UINT8[0]).convert("1"),
        pil(np.dstack([UINT8[0], UINT8[1, ..., :1]])),
        GREY,
        GREY[..., None],
        GREY[:1],
        torch.from_numpy(GREY),
        torch.from_numpy(GREY)[:, None],
        torch.from_numpy(GREY[:1]),
    ],
    ids=["rgb", "grey", "1 bit", "rgba", "bhw", "bhw1", "1hw", "torch bhw", "torch b1hw", "torch 1hw"],
)
@pytest.mark.parametrize("size", [None, (40, 16)])
def test_masks_are_diffusers(given, size):
    from diffusers.image_processor import VaeImageProcessor

    theirs = VaeImageProcessor(
        vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    ).preprocess(given, *(size or ()))
    ours = load_masks(given, *(size or ()))
    assert torch.equal(ours, theirs)
    assert set(ours.unique().tolist()) == {0.0, 1.0}


def test_uint8_arrays_are_the_pil_picture():
    from_pil = load_pictures([pil(UINT8[0]), pil(UINT8[1])], multiple=1).centred()
    for form in (UINT8, torch_of(UINT8), [UINT8[0], UINT8[1]]):
        assert torch.equal(load_pictures(form, multiple=1).centred(), from_pil)
    assert torch.equal((from_pil * 127.5 + 127.5).round().to(torch.uint8), torch_of(UINT8))


def test_grey_and_transparent_pil_pictures_become_rgb():
    grey = pil(UINT8[0, ..., 0])
    assert torch.equal(*(load_pictures(grey, multiple=1).values[:, channel] for channel in (0, 2)))
    assert load_pictures(pil(np.dstack([UINT8[0], UINT8[1, ..., :1]]))).values.shape == (1, 3, 16, 24)
    assert load_pictures(grey, channels=1).values.shape == (1, 1, 16, 24)


def test_float64_keeps_every_bit_of_a_unit_picture():  # above 2⁻²⁹
    values = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) ** 2
    back = (load_pictures(values).centred(torch.float64) / 2 + 0.5).float()
    assert torch.equal(back, values)


def test_masks_of_whole_numbers():
    on_off = np.zeros((8, 8), np.uint8)
    on_off[2:5] = 1
    want = torch.from_numpy(on_off).float()[None, None]
    for mask in (on_off, on_off * 255, on_off.astype(bool), torch.from_numpy(on_off), torch.from_numpy(on_off).long()):
        assert torch.equal(load_masks(mask), want)


def test_a_soft_mask_keeps_its_greys():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    assert torch.equal(load_masks(ramp, soft=True)[0, 0], torch.from_numpy(ramp))
    assert load_masks(ramp).sum() == (ramp >= 0.5).sum()


def test_latents_are_neither_changed_nor_resized():
    latents = 5 * torch.randn(2, 4, 3, 5)
    pictures = load_pictures(latents, 64, 64, latent_channels=4)
    assert pictures.latent
    assert torch.equal(pictures.values, latents)
    assert torch.equal(pictures.centred(), latents)
    assert load_pictures(torch.rand(2, 3, 8, 8), latent_channels=3).latent is False  # three channels are a picture


def test_pictures_of_several_sizes_need_a_size():
    several = [pil(UINT8[0]), pil(UINT8[0, :16])]
    with pytest.raises(InputError, match="several sizes"):
        load_pictures(several)
    assert load_pictures(several, 16, 16).values.shape == (2, 3, 16, 16)
    with pytest.raises(InputError, match="several sizes"):
        load_pictures([torch.rand(3, 8, 8), torch.rand(3, 8, 16)])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "image is missing"),
        ([], "empty list"),
        ("cat.png", "PIL.Image.open"),
        ([pil(UINT8[0]), UINT8[0]], "list of Image, ndarray"),
        (np.zeros((8, 8, 4), np.float32), "4 channels, expected 3"),
        (np.zeros((3, 8, 8), np.float32), "8 channels, expected 3"),
        (torch.zeros(1, 8, 8), "1 channels, expected 3"),
        (np.zeros((8, 8), np.float32), r"numpy pictures are \(H, W, 3\)"),
        (torch.zeros(0, 3, 8, 8), "has shape"),
        (torch.full((3, 8, 8), torch.nan), "NaN"),
        (torch.full((3, 8, 8), 255.0), "values from 255 to 255: pass uint8"),
        (torch.full((3, 8, 8), -2.0), "values from -2"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "int64: pass uint8"),
        (torch.zeros(3, 7, 8), "7 pixels high and 8 wide, at least 8"),
        (Image.new("I;16", (8, 8)), "mode 'I;16'"),
        ([torch.zeros(4, 8, 8), torch.zeros(3, 8, 8)], "4 channels, expected 3"),
        (torch.full((4, 8, 8), torch.inf), "finite latents"),
    ],
)
def test_bad_pictures(given, says):
    with pytest.raises(InputError, match=says):
        load_pictures(given, latent_channels=4)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "mask_image is missing"),
        (np.zeros((8, 8, 3)), "a mask has one channel"),
        (torch.zeros(1, 3, 8, 8), "a mask has one channel"),
        (torch.full((8, 8), torch.nan), "NaN"),
        (torch.full((8, 8), -1.0), r"values from -1 to -1: pass booleans"),
        (np.full((8, 8), 255.0), r"floats in \[0, 1\]"),
        (torch.full((8, 8), 3), "int64"),
        (Image.new("F", (8, 8)), "mode 'F'"),
    ],
)
def test_bad_masks(given, says):
    with pytest.raises(InputError, match=says):
        load_masks(given)


def test_a_bad_size():
    with pytest.raises(InputError, match="height must be an integer of at least 1"):
        load_pictures(UNIT, 0, 8)


def test_rows():
    assert rows_of("image", 1, 2, 3) == (0,) * 6
    assert rows_of("image", 2, 2, 3) == (0, 0, 0, 1, 1, 1)
    assert rows_of("image", 6, 2, 3) == (0, 1, 2, 3, 4, 5)
    assert rows_of("image", 3, 1, 3) == (0, 1, 2)
    with pytest.raises(InputError, match="3 in image for 2 prompts of 2 pictures each: give 1, 2, 4"):
        rows_of("image", 3, 2, 2)
