import numpy as np
import pytest
import torch
from PIL import Image

from latentia.core.images import as_output, from_pil, grid, to_pil, to_uint8
from latentia.errors import InputError, NonFiniteError, UnknownChoiceError


@pytest.mark.parametrize("channels", [1, 3])
def test_every_byte_survives_the_round_trip(channels):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(2, 16, 16, channels)
    mode = "L" if channels == 1 else "RGB"
    pictures = [Image.fromarray(p[..., 0].numpy() if channels == 1 else p.numpy()) for p in levels]
    x = from_pil(pictures, channels)
    assert x.shape == (2, channels, 16, 16)
    assert (x.min(), x.max()) == (-1, 1)
    assert np.array_equal(to_uint8(x), levels.numpy())
    assert [np.asarray(p).tolist() for p in to_pil(x)] == [np.asarray(p).tolist() for p in pictures]
    assert {p.mode for p in to_pil(x)} == {mode}


def test_rows_and_columns_stay_rows_and_columns():
    x = torch.full((1, 3, 2, 5), -1.0)
    x[0, 0, 1, 4] = 1
    (picture,) = to_pil(x)
    assert picture.size == (5, 2)
    assert picture.getpixel((4, 1)) == (255, 0, 0)
    assert torch.equal(from_pil([picture]), x)


def test_rounding_is_to_the_nearest_and_outside_is_clipped():
    x = torch.tensor([-9.0, -1, -1 + 0.9 / 255, -1 + 1.1 / 255, 0.0, 1, 9]).reshape(1, 1, 1, 7)
    assert to_uint8(x).ravel().tolist() == [0, 0, 0, 1, 128, 255, 255]
    assert to_uint8(x.half()).ravel().tolist()[-2:] == [255, 255]


def test_grey_and_palette_pictures_become_what_is_asked():
    grey = Image.new("L", (2, 2), 255)
    assert from_pil([grey]).shape == (1, 3, 2, 2)
    assert torch.equal(from_pil([Image.new("RGBA", (2, 2), (255, 255, 255, 0))], 1), torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_pictures_are_named_before_they_turn_black(output_type, bad):
    x = torch.zeros(3, 1, 2, 2)
    x[1, 0, 0, 0] = bad
    with pytest.raises(NonFiniteError, match=r"pictures \[1\] hold NaN or infinity: decode in float32"):
        as_output(x, output_type)


def test_outputs_agree():
    x = torch.linspace(-1.2, 1.2, 48).reshape(2, 3, 2, 4)
    unit = as_output(x, "pt")
    assert (unit.min(), unit.max()) == (0, 1)
    assert torch.allclose(unit, (x.clamp(-1, 1) + 1) / 2)
    assert np.array_equal(as_output(x, "np"), unit.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.asarray(as_output(x, "pil")[0]), to_uint8(x)[0])
    with pytest.raises(UnknownChoiceError, match="unknown output_type 'pli': did you mean 'pil'"):
        as_output(x, "pli")


def test_wrong_pictures_are_input_errors():
    with pytest.raises(InputError, match=r"float pictures \(B, C, H, W\), got torch\.float32 of shape \(3, 2, 2\)"):
        to_uint8(torch.zeros(3, 2, 2))
    with pytest.raises(InputError, match=r"got torch\.uint8"):
        to_uint8(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    with pytest.raises(InputError, match="1 or 3 channels, got 4: decode the latents"):
        to_pil(torch.zeros(1, 4, 2, 2))
    with pytest.raises(InputError, match="1 or 3 channels, got 4"):
        grid(torch.zeros(1, 4, 2, 2))
    with pytest.raises(InputError, match="channels must be 1 or 3, got 2"):
        from_pil([Image.new("L", (2, 2))], 2)
    with pytest.raises(InputError, match="one size, got none"):
        from_pil([])
    with pytest.raises(InputError, match=r"one size, got \[\(2, 2\), \(3, 2\)\]"):
        from_pil([Image.new("L", (2, 2)), Image.new("L", (3, 2))])


def test_grid_places_pictures_row_by_row():
    x = torch.stack([torch.full((1, 2, 3), v) for v in (-1.0, 0.0, 1.0)])
    sheet = np.asarray(grid(x, columns=2, pad=1, scale=2))
    assert sheet.shape == (2 * 5 + 1, 2 * 7 + 1)
    assert (sheet[1:5, 1:7] == 0).all()
    assert (sheet[1:5, 8:14] == 128).all()
    assert (sheet[6:10, 1:7] == 255).all()
    assert (sheet[6:10, 8:14] == 128).all()
    assert grid(torch.zeros(5, 3, 2, 2), pad=0).size == (6, 4)
    for wrong in ({"columns": 0}, {"columns": -1}, {"scale": 0}):
        with pytest.raises(InputError, match="at least 1"):
            grid(x, **wrong)
    with pytest.raises(InputError, match="needs pictures"):
        grid(x[:0])
