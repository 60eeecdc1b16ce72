import json

import numpy as np
import pytest
import torch
from PIL import Image

from latentia.core.protocols import Dataset
from latentia.data.decode import flatten, prepare
from latentia.data.folder import image_folder
from latentia.errors import ArtifactError, InputError, UnknownChoiceError


def paint(path, colour=(255, 0, 0), size=(12, 8), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    paint(tmp_path / "dog" / "b.png", (0, 255, 0))
    paint(tmp_path / "cat" / "a.png")
    paint(tmp_path / "cat" / "c.jpg", (0, 0, 255))
    paint(tmp_path / ".hidden" / "x.png")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    return tmp_path


def test_order_labels_and_values(folder):
    data = image_folder(folder, size=8)
    assert isinstance(data, Dataset)
    assert data.files == ("cat/a.png", "cat/c.jpg", "dog/b.png")
    assert data.classes == ("cat", "dog")
    batch = data.batch([2, 0])
    assert batch["label"].tolist() == [1, 0]
    assert batch["x"].shape == (2, 3, 8, 8)
    assert batch["x"][0].mean(dim=(1, 2)).tolist() == [-1, 1, -1]
    assert data.batch([])["x"].shape == (0, 3, 8, 8)


def test_shorter_side_is_resized_and_the_centre_kept():
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    x = prepare(Image.fromarray(pixels), 4, 3)
    assert x.shape == (3, 4, 4)
    assert x[:, :, 1:3].float().mean() > 250
    exact = prepare(Image.fromarray(pixels), 8, 3)
    assert torch.equal(exact, torch.full((3, 8, 8), 255, dtype=torch.uint8))


def test_resizing_is_antialiased():
    checkers = np.indices((64, 64)).sum(0) % 2 * 255
    x = prepare(Image.fromarray(checkers.astype(np.uint8)), 8, 1)
    assert float((x.float() - 127.5).abs().max()) < 16


def test_transparency_lies_on_white_and_16_bit_grey_is_scaled():
    assert flatten(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), "RGB").getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.full((2, 2), 32768, np.uint16))
    assert flatten(deep, "L").getpixel((0, 0)) == 128


def test_exif_orientation_is_applied(tmp_path):
    picture = Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 8, axis=0).repeat(4, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "turned.png", exif=exif)
    x = image_folder(tmp_path, 8, channels=1).batch([0])["x"]
    assert x[0, 0, 0].tolist() == [1] * 4 + [-1] * 4


def test_corrupt_files_are_named(folder):
    (folder / "cat" / "bad.png").write_bytes(b"not a picture")
    whole = (folder / "cat" / "a.png").read_bytes()
    (folder / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    data = image_folder(folder, size=8)
    with pytest.raises(ArtifactError, match=r"2 pictures .* cat/bad\.png .*dog/cut\.png"):
        data.batch(range(len(data)))
    assert set(data.corrupt()) == {"cat/bad.png", "dog/cut.png"}
    with pytest.warns(UserWarning, match=r"left out: 2 pictures"):
        kept = image_folder(folder, size=8, on_corrupt="skip")
    assert kept.files == ("cat/a.png", "cat/c.jpg", "dog/b.png")
    assert set(kept.skipped) == {"cat/bad.png", "dog/cut.png"}
    assert kept.batch(range(3))["label"].tolist() == [0, 0, 1]


def test_metadata_gives_labels_and_captions(tmp_path):
    for name in ("a.png", "b.png"):
        paint(tmp_path / name)
    lines = [{"file_name": "b.png", "label": 7, "text": "bee"}, {"file_name": "a.png", "label": 3}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    data = image_folder(tmp_path, 8)
    assert data.labels.tolist() == [3, 7]
    assert len(data.classes) == 8
    assert data.captions == ("", "bee")


def test_metadata_words_are_numbered_in_order(tmp_path):
    for name in ("a.png", "b.png"):
        paint(tmp_path / name)
    lines = [{"file_name": "a.png", "label": "zebra"}, {"file_name": "b.png", "label": "ant"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    assert image_folder(tmp_path, 8).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "a.png"}\n{oops', "line 2 is no JSON object"),
        ('{"name": "a.png"}', "line 1 is no JSON object with a file_name"),
        ('{"file_name": "z.png"}', r"1 listed but missing \['z.png'\], 2 present but not listed"),
        ('{"file_name": "a.png", "label": 1}\n{"file_name": "b.png"}', "1 of 2 entries have no label, e.g. b.png"),
    ],
)
def test_broken_metadata(tmp_path, text, message):
    for name in ("a.png", "b.png"):
        paint(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        image_folder(tmp_path, 8)


def test_bad_folders(tmp_path, folder):
    with pytest.raises(ArtifactError, match="no folder at"):
        image_folder(tmp_path / "nowhere", 8)
    with pytest.raises(ArtifactError, match="it is a file"):
        image_folder(folder / "cat" / "a.png", 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures in"):
        image_folder(tmp_path / "empty", 8)
    with pytest.raises(ArtifactError, match=r"no metadata\.jsonl"):
        image_folder(folder, 8, labels="metadata")
    with pytest.raises(UnknownChoiceError, match="did you mean 'folders'"):
        image_folder(folder, 8, labels="folder")
    with pytest.raises(InputError, match="size must"):
        image_folder(folder, 0)
    paint(folder / "loose.png")
    with pytest.raises(InputError, match="lie in no class folder"):
        image_folder(folder, 8)


def test_only_corrupt_files(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(InputError, match="none of the 1 pictures"):
        image_folder(tmp_path, 8, on_corrupt="skip")
