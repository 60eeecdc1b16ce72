import io
import sys
import types

import pytest
from PIL import Image

from latentia.core.protocols import Dataset
from latentia.data.hub_datasets import hf_dataset
from latentia.errors import ArtifactError, InputError, MissingDependency, UnknownChoiceError


class ImageFeature:
    def __init__(self, decode=True):
        self.decode = decode


def encoded(colour):
    handle = io.BytesIO()
    Image.new("RGB", (6, 9), colour).save(handle, "PNG")
    return {"bytes": handle.getvalue(), "path": None}


class Rows:
    """As much of a `datasets.Dataset` as is used."""

    def __init__(self, columns, names=None):
        self.columns = columns
        self.column_names = list(columns)
        self.features = {name: types.SimpleNamespace(names=names) for name in columns}
        if "img" in columns:
            self.features["img"] = ImageFeature()

    def cast_column(self, name, feature):
        assert not feature.decode
        self.features[name] = feature
        return self

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, rows):
        return {name: [values[i] for i in rows] for name, values in self.columns.items()}


@pytest.fixture
def hub(monkeypatch):
    pictures = [encoded((i * 100, 0, 0)) for i in range(3)]
    table = Rows({"img": pictures, "label": [2, 0, 1]}, ["a", "b", "c"])

    def load_dataset(name, config, revision, cache_dir):
        if name == "nowhere":
            raise FileNotFoundError("no such data set")
        return {"train": table, "bare": Rows({"words": [1, 2]})}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset, Image=ImageFeature))
    return table


def test_rows_become_batches(hub):
    data = hf_dataset("some/name", size=4)
    assert isinstance(data, Dataset)
    assert len(data) == 3
    assert data.classes == ("a", "b", "c")
    batch = data.batch([2, 0])
    assert batch["x"].shape == (2, 3, 4, 4)
    assert batch["label"].tolist() == [1, 2]
    assert batch["x"][0, 0, 0, 0].item() == pytest.approx(200 / 127.5 - 1)


def test_bad_names(hub):
    with pytest.raises(ArtifactError, match="cannot load data set 'nowhere'"):
        hf_dataset("nowhere", 4)
    with pytest.raises(UnknownChoiceError, match="did you mean 'train'"):
        hf_dataset("some/name", 4, split="training")
    with pytest.raises(UnknownChoiceError, match="unknown image column 'imgs': did you mean 'img'"):
        hf_dataset("some/name", 4, image="imgs")
    with pytest.raises(InputError, match="no image column among words"):
        hf_dataset("some/name", 4, split="bare")


def test_pictures_may_be_decoded_or_lie_in_files(hub, tmp_path):
    hub.columns["img"][0] = Image.new("RGB", (4, 4), "white")
    Image.new("RGB", (4, 4), "white").save(tmp_path / "a.png")
    hub.columns["img"][1] = {"bytes": None, "path": str(tmp_path / "a.png")}
    assert hf_dataset("some/name", 4).batch([0, 1])["x"].min() == 1


def test_unreadable_rows_are_listed(hub):
    hub.columns["img"][1] = {"bytes": b"no picture", "path": None}
    with pytest.raises(ArtifactError, match=r"1 pictures cannot be decoded: row 1 \(UnidentifiedImageError"):
        hf_dataset("some/name", 4).batch([0, 1])


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependency, match=r"pip install 'latentia\[datasets\]'"):
        hf_dataset("some/name", 4)
