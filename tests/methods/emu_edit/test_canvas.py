"""Any picture in, the same picture out wherever the editor changed nothing: modes, sizes, shapes, broken files."""

import numpy as np
import pytest
import torch
from PIL import Image

from latentia.errors import InputError
from latentia.methods.emu_edit.canvas import Canvas, open_picture, read_picture, read_pictures
from tiny_editor import picture

SIZES = [(64, 64), (1, 1), (1, 300), (300, 1), (17, 64), (100, 61), (63, 65), (640, 333), (5, 3)]
"""(width, height) in front of an editor of 64 × 64."""


def rgb(width=20, height=12, seed=0):
    return Image.fromarray(picture(height, width, seed=seed))


def same(a, b):
    return a.mode == b.mode and a.size == b.size and np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_cropped_squeezed_or_changed(size):
    original = rgb(*size)
    canvas = Canvas.fit(original, 64, 64)
    assert canvas.seen.shape == (64, 64, 3)
    left, top, right, bottom = canvas.box
    assert right - left == 64 or bottom - top == 64
    assert min(left, top) >= 0
    factor = 64 / max(size)
    assert right - left == max(1, round(size[0] * factor))
    assert bottom - top == max(1, round(size[1] * factor))
    assert same(canvas.returned(canvas.seen.copy()), original)


@pytest.mark.parametrize("size", SIZES)
def test_everything_changed_is_the_edited_square(size):
    canvas = Canvas.fit(rgb(*size), 64, 64)
    flat = np.where(canvas.seen == 200, 201, 200).astype(np.uint8)
    made = np.asarray(canvas.returned(flat))
    assert made.shape == (size[1], size[0], 3)
    assert abs(made.astype(int) - 200).max() <= 2


@pytest.mark.parametrize("size", [(256, 256), (251, 130), (64, 64), (65, 90)])
def test_only_what_belongs_to_changed_pixels_changes(size):
    original = rgb(*size)
    canvas = Canvas.fit(original, 64, 64)
    edited = canvas.seen.copy()
    edited[20:40, 10:30] = (0, 255, 0)
    edited[30:35, 25:50] = (0, 255, 0)  # with a corner that reaches inwards
    changed = (edited != canvas.seen).any(-1)
    made, before = np.asarray(canvas.returned(edited)), np.asarray(original)
    left, top, right, bottom = canvas.box
    rows = top + (np.arange(size[1]) + 0.5) * (bottom - top) / size[1]
    columns = left + (np.arange(size[0]) + 0.5) * (right - left) / size[0]
    owner = changed[rows.astype(int)[:, None], columns.astype(int)[None]]
    moved = (made != before).any(-1)
    assert not moved[~owner].any()
    inside = (
        changed & np.roll(changed, 1, 0) & np.roll(changed, -1, 0) & np.roll(changed, 1, 1) & np.roll(changed, -1, 1)
    )
    deep = inside[rows.astype(int)[:, None], columns.astype(int)[None]]
    assert moved[deep].mean() > 0.99


def test_what_is_kept_counts_as_unchanged():
    canvas = Canvas.fit(rgb(64, 64), 64, 64)
    edited = 255 - canvas.seen
    kept = np.zeros((64, 64), bool)
    kept[:, :32] = True
    made = np.asarray(canvas.returned(edited, kept))
    assert np.array_equal(made[:, :32], canvas.seen[:, :32])
    assert np.array_equal(made[:, 32:], edited[:, 32:])


def test_edges_go_on_around_the_picture():
    canvas = Canvas.fit(rgb(64, 32), 64, 64)
    assert canvas.box == (0, 16, 64, 48)
    assert np.array_equal(canvas.seen[:16], np.broadcast_to(canvas.seen[16], (16, 64, 3)))
    assert np.array_equal(canvas.seen[48:], np.broadcast_to(canvas.seen[47], (16, 64, 3)))
    assert not canvas.reduced
    assert Canvas.fit(rgb(65, 32), 64, 64).reduced


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_modes_become_rgb(mode):
    given = rgb().convert(mode)
    read = read_picture(given)
    assert same(read, given.convert("RGB"))
    assert same(Canvas.fit(read, 64, 64).returned(Canvas.fit(read, 64, 64).seen), read)


def test_sixteen_bits_are_scaled_and_not_cut_off():
    levels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    expected = np.array([0, 1, 128, 255])
    assert Image.fromarray(levels).mode == "I;16"
    for given in (levels, levels.astype(np.int32), levels.astype(np.float32) / 65535):
        read = read_picture(Image.fromarray(given))
        assert read.mode == "RGB"
        assert np.array_equal(np.asarray(read)[0, :, 1], expected)
    eight = np.array([[0, 1, 128, 255]], dtype=np.float32)
    assert np.array_equal(np.asarray(read_picture(Image.fromarray(eight)))[0, :, 0], expected)
    for wrong, words in ((np.float32([[np.nan]]), "NaN"), (np.float32([[-1]]), "-1"), (np.int32([[70000]]), "70000")):
        with pytest.raises(InputError, match=words):
            read_picture(Image.fromarray(wrong))


def test_what_is_transparent_stays_so_unless_it_was_edited():
    original = Image.fromarray(picture(64, 64, 4))
    for given in (original, original.convert("LA"), original.convert("RGBa"), original.convert("PA")):
        read = read_picture(given)
        assert read.mode == "RGBA"
        canvas = Canvas.fit(read, 64, 64)
        assert same(canvas.returned(canvas.seen.copy()), read)
    canvas = Canvas.fit(original, 64, 64)
    edited = canvas.seen.copy()
    edited[:8, :8] = 255 - edited[:8, :8]
    made = np.asarray(canvas.returned(edited))
    assert np.array_equal(made[8:], np.asarray(original)[8:])
    assert np.array_equal(made[:8, :8, :3], edited[:8, :8])
    assert made[:8, :8, 3].min() == 255
    assert read_picture(Image.new("RGBA", (3, 3), (1, 2, 3, 255))).mode == "RGB"
    clear = Canvas.fit(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), 8, 8)
    assert clear.seen.min() == 255  # seen on white


def test_a_palette_with_a_transparent_colour(tmp_path):
    given = rgb().convert("P")
    given.save(tmp_path / "p.png", transparency=given.getpixel((3, 3)))
    assert open_picture(tmp_path / "p.png").mode == "RGBA"


def test_pictures_stand_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    rgb(20, 12).save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (12, 20)


def test_colour_profiles_stay_where_they_still_hold(tmp_path):
    for mode, kept in (("RGB", True), ("CMYK", False), ("L", False)):
        rgb().convert(mode).save(tmp_path / "given.tif", icc_profile=b"profile")
        read = open_picture(tmp_path / "given.tif")
        canvas = Canvas.fit(read, 64, 64)
        for made in (canvas.returned(canvas.seen.copy()), canvas.returned(255 - canvas.seen)):
            made.save(tmp_path / "made.png")
            with Image.open(tmp_path / "made.png") as again:
                assert (again.info.get("icc_profile") == b"profile") is kept


def test_files_that_are_no_pictures(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    rgb(200, 200).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "spoilt.png").write_bytes(data[:100] + b"\0" * 50 + data[150:])
    for name in ("text.png", "empty.png", "cut.png", "spoilt.png"):
        with pytest.raises(InputError, match=name):
            open_picture(tmp_path / name)


def test_more_pixels_than_pillow_allows(tmp_path, monkeypatch):
    rgb(100, 100).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6000)
    assert open_picture(tmp_path / "large.png").size == (100, 100)  # Pillow only warns up to twice as many
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="too large"):
        open_picture(tmp_path / "large.png")


def test_arrays_and_tensors_are_pictures_too():
    array = picture(6, 5)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    unit = tensor.float() / 255
    for given in (array, array[None], tensor, tensor[None], unit, unit * 2 - 1, [array], [unit], array / 255.0):
        (read,) = read_pictures(given)
        assert np.array_equal(np.asarray(read), array)
    assert len(read_pictures(np.stack([array, array]))) == 2
    assert [p.size for p in read_pictures([rgb(3, 4), rgb(7, 2)])] == [(3, 4), (7, 2)]
    for wrong in (None, "file.png", [], [rgb(), array], array[..., :2], unit * 300, torch.full((3, 4, 4), torch.nan)):
        with pytest.raises(InputError, match="image"):
            read_pictures(wrong)


def test_a_huge_picture_returns_whole():
    original = Image.new("RGB", (5000, 2000), (10, 20, 30))
    canvas = Canvas.fit(original, 64, 64)
    edited = canvas.seen.copy()
    edited[32, 32] = 255
    made = canvas.returned(edited)
    assert made.size == (5000, 2000)
    assert min(made.getpixel((2540, 1040))) > 220  # Lanczos has its top in the middle
    assert 0 < (np.asarray(made)[..., 0] != 10).sum() <= 79**2
