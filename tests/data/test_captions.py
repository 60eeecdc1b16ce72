import io
import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from latentia.core.protocols import Dataset
from latentia.data.captions import CaptionedImages, ConditionImages, Views
from latentia.data.dataset import TensorDataset
from latentia.data.folder import image_folder
from latentia.data.joined import JoinedDataset, PairedDataset
from latentia.data.masks import random_masks
from latentia.data.pictures import HubPictures, folder_pictures
from latentia.errors import ArtifactError, InputError, UnknownChoiceError

ROWS = [f"row {i}" for i in range(3)]


def ramp(width, height=8):
    """A picture whose red grows from left to right, by 10 a pixel."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 10 * np.arange(width)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """Three pictures of 16×8, each with the inverted one to steer by."""
    lines = []
    for i, text in enumerate(ROWS):
        picture = ramp(16)
        picture.save(tmp_path / f"{i}.png")
        (tmp_path / "edges").mkdir(exist_ok=True)
        Image.fromarray(255 - np.asarray(picture)).save(tmp_path / "edges" / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "text": text, "conditioning_image": f"edges/{i}.png"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def images(folder, size=8, **options):
    return CaptionedImages(folder_pictures(folder, size), size, **options)


def test_pictures_tokens_and_captions(folder):
    data = images(folder)
    assert isinstance(data, Dataset)
    assert data.captions == ROWS
    assert set(data.batch([0])) == {"x"}
    batch = data.with_tokens(torch.arange(12).view(3, 4)).batch([2, 0])
    assert batch["input_ids"].tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert batch["x"].shape == (2, 3, 8, 8)
    assert torch.equal(batch["x"][0, 0, 0], torch.arange(4.0, 12) * 10 / 127.5 - 1)
    assert set(data.with_tokens(torch.zeros(3, 4, dtype=torch.long)).called("pixels").batch([0])) == {
        "pixels",
        "input_ids",
    }
    assert data.batch([])["x"].shape == (0, 3, 8, 8)


def test_steering_pictures_are_left_out_of_the_pictures(folder):
    data = image_folder(folder, 8)
    assert data.files == ("0.png", "1.png", "2.png")
    assert data.conditions == ("edges/0.png", "edges/1.png", "edges/2.png")
    assert data.without({"1.png": "blurred"}).conditions == ("edges/0.png", "edges/2.png")


@pytest.mark.parametrize("views", [Views(), Views("random", 3, flip=True, seed=5)])
def test_the_steering_picture_has_the_same_crop_and_flip(folder, views):
    pictures = folder_pictures(folder, 8)
    first, second = CaptionedImages(pictures, 8, views), ConditionImages(pictures, 8, views)
    rows = range(len(first))
    assert len(second) == len(first)
    condition = second.batch(rows)["condition"]
    assert condition.dtype == torch.uint8
    assert torch.equal(255 - condition, first.pixels(rows))


def test_views_are_crops_and_flips_by_index(folder):
    data = images(folder, views=Views("random", 4, flip=True))
    assert len(data) == 3 * 4 * 2
    pixels = data.pixels(range(24))
    assert torch.equal(pixels[12:], pixels[:12].flip(-1))
    lefts = pixels[:12, 0, 0, 0] // 10
    assert 0 <= int(lefts.min()) < int(lefts.max()) <= 8
    assert len(set(lefts.tolist())) > 4
    again = images(folder, views=Views("random", 4, flip=True))
    assert torch.equal(again.pixels([17, 3]), pixels[[17, 3]])
    other = images(folder, views=Views("random", 4, flip=True, seed=1))
    assert not torch.equal(other.pixels(range(24)), pixels)
    assert data.rows([0, 4, 13, 23]) == [0, 1, 1, 2]


def test_captions_in_text_files(folder):
    (folder / "metadata.jsonl").unlink()
    for i, text in enumerate(ROWS):
        (folder / f"{i}.txt").write_text(f"{text}\n")
    with pytest.raises(InputError, match=r"3 of 6 pictures have no caption, e.g. edges/0.png, edges/1.png.*NAME.txt"):
        images(folder)
    assert images(folder, caption="something").captions == [*ROWS, *["something"] * 3]
    assert images(folder, caption="sks", every=True).captions == ["sks"] * 6
    with pytest.raises(InputError, match=r"not every picture has one to steer by: name it as 'conditioning_image'"):
        ConditionImages(folder_pictures(folder, 8), 8)
    (folder / "0.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match=r"0\.txt is no UTF-8 text"):
        images(folder)


def test_a_train_folder_is_found(folder, tmp_path):
    inner = tmp_path / "set" / "train"
    inner.mkdir(parents=True)
    ramp(8).save(inner / "a.png")
    (inner / "a.txt").write_text("a ramp")
    assert images(tmp_path / "set").captions == ["a ramp"]


def test_bad_pictures_are_named(folder):
    (folder / "1.png").write_bytes(b"no picture")
    ramp(9).save(folder / "edges" / "2.png")
    with pytest.raises(ArtifactError, match=r"1 pictures cannot be used: 1.png \(UnidentifiedImageError"):
        images(folder).batch(range(3))
    steering = ConditionImages(folder_pictures(folder, 8), 8)
    with pytest.raises(
        ArtifactError, match=r"2.png \(ValueError: its conditioning image is 9×8, another form than 16×8"
    ):
        steering.batch([0, 2])
    with pytest.raises(InputError, match=r"input_ids \(2, 4\) do not fit 3 captions"):
        images(folder).with_tokens(torch.zeros(2, 4, dtype=torch.long))


def test_bad_views():
    with pytest.raises(InputError, match="2 views of the same centre: set crop='random'"):
        Views(views=2)
    with pytest.raises(UnknownChoiceError, match="did you mean 'center'"):
        Views("centre")


def test_joined_and_paired():
    a, b = TensorDataset({"x": torch.arange(3)}), TensorDataset({"y": torch.arange(3) * 10})
    assert {k: v.tolist() for k, v in JoinedDataset(a, b).batch([2, 0]).items()} == {"x": [2, 0], "y": [20, 0]}
    with pytest.raises(InputError, match=r"equally long, got \[3, 2\]"):
        JoinedDataset(a, b.select([0, 1]))
    both = PairedDataset(a, b.select([0, 1]), "prior_")
    batch = both.batch(range(len(both)))
    assert sorted(zip(batch["x"].tolist(), batch["prior_y"].tolist())) == [(i, j) for i in range(3) for j in (0, 10)]


# A Hub data set --------------------------------------------------------------------------------------------


class Rows:
    """As much of a `datasets.Dataset` as is used."""

    def __init__(self, columns):
        self.columns, self.column_names = columns, list(columns)
        self.features = dict.fromkeys(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key):
        if isinstance(key, str):
            return iter(self.columns[key])
        return {name: [values[i] for i in key] for name, values in self.columns.items()}


def cell(picture):
    handle = io.BytesIO()
    picture.save(handle, "PNG")
    return {"bytes": handle.getvalue(), "path": None}


@pytest.fixture
def hub(monkeypatch):
    table = Rows({"image": [cell(ramp(16)) for _ in ROWS], "text": list(ROWS), "conditioning_image": [ramp(16)] * 3})
    image = type("Image", (), {})
    fake = types.SimpleNamespace(load_dataset=lambda *a, **k: {"train": table}, Image=image)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return table


def test_a_hub_data_set(hub):
    pictures = HubPictures("some/name")
    data = CaptionedImages(pictures, 8)
    assert data.captions == ROWS
    assert torch.equal(data.pixels([1]), ConditionImages(pictures, 8).batch([1])["condition"])
    hub.columns["text"] = [["first", "second"], None, ""]
    with pytest.raises(InputError, match=r"2 of 3 pictures have no caption, e\.g\. row 1, row 2"):
        CaptionedImages(HubPictures("some/name"), 8)
    assert CaptionedImages(HubPictures("some/name"), 8, caption="x").captions == ["first", "x", "x"]


def test_a_hub_data_set_without_captions(hub):
    hub.column_names = ["image"]
    pictures = HubPictures("some/name")
    assert pictures.captions == ["", "", ""]
    assert not pictures.conditioned


# Masks -----------------------------------------------------------------------------------------------------


def test_masks():
    generator = torch.Generator().manual_seed(0)
    masks = random_masks(2000, 24, 16, generator=generator)
    assert masks.shape == (2000, 1, 24, 16)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    share = masks.mean(dim=(1, 2, 3))
    assert float((share == 1).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(share.min()) > 0
    assert float(share[share < 1].mean()) == pytest.approx(0.2, abs=0.05)
    again = random_masks(2000, 24, 16, generator=generator.manual_seed(0))
    assert torch.equal(masks, again)
    assert bool(random_masks(8, 4, 4, cover=1).all())
    assert float(random_masks(200, 24, 16, cover=0, generator=generator).mean(dim=(1, 2, 3)).max()) < 1


def test_masks_at_another_size_are_the_same_picture():
    small, large = (random_masks(16, s, s, generator=torch.Generator().manual_seed(1)) for s in (32, 128))
    shrunk = torch.nn.functional.avg_pool2d(large, 4).round()
    assert float((shrunk - small).abs().mean()) < 0.03


@pytest.mark.parametrize(("change", "message"), [({"cover": 2}, "probability"), ({"height": 0}, "height")])
def test_bad_masks(change, message):
    with pytest.raises(InputError, match=message):
        random_masks(**({"batch": 1, "height": 8, "width": 8} | change))
