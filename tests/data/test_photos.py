import builtins

import pytest
import torch

from latentia.core.protocols import Dataset
from latentia.data import photos as module
from latentia.data.photos import LABELS, PHOTOS, photograph, photos
from latentia.errors import InputError, MissingDependency, UnknownChoiceError


def test_report_photographs_are_in_no_other_split():
    assert set(PHOTOS["report"]) == {"coffee", "grace_hopper"}
    assert not set(PHOTOS["report"]) & set(PHOTOS["train"] + PHOTOS["test"])
    assert not set(PHOTOS["train"]) & set(PHOTOS["test"])
    assert set(photos("all", size=64).names) == set(PHOTOS["train"] + PHOTOS["test"])


def test_tiles_are_pixels_of_the_photograph():
    tiles = photos("test", size=32)
    assert isinstance(tiles, Dataset)
    assert tiles.shape == (3, 32, 32)
    assert len(tiles) == (300 // 32) * (451 // 32)
    batch = tiles.batch([0, 15])
    chelsea = torch.from_numpy(photograph("chelsea").copy()).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.allclose(batch["x"][0], chelsea[:, :32, :32])
    assert torch.allclose(batch["x"][1], chelsea[:, 32:64, 32:64])
    assert batch["label"].tolist() == [LABELS["chelsea"]] * 2


def test_stride_scales_and_grey():
    assert len(photos("test", size=32, stride=16)) == (268 // 16 + 1) * (419 // 16 + 1)
    both = photos("test", size=32, scales=(1.0, 0.5), channels=1)
    assert len(both) == 9 * 14 + (150 // 32) * (226 // 32)
    assert both.batch([len(both) - 1])["x"].shape == (1, 1, 32, 32)


def test_half_scale_is_antialiased():
    whole, half = photos("test", size=300), photos("test", size=150, scales=(0.5,))
    averaged = torch.nn.functional.avg_pool2d(whole.batch([0])["x"], 2)
    assert float((averaged - half.batch([0])["x"]).abs().mean()) < 0.03


def test_report_needs_matplotlib(monkeypatch):
    importing = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    module.photograph.cache_clear()
    with pytest.raises(MissingDependency, match="pip install matplotlib"):
        photos("report")


def test_report_gives_both():
    pytest.importorskip("matplotlib")
    tiles = photos("report", size=64)
    assert tiles.names == ("coffee", "grace_hopper")
    assert set(tiles.materialise().tensors["label"].tolist()) == {LABELS["coffee"], LABELS["grace_hopper"]}


def test_bad_input():
    with pytest.raises(UnknownChoiceError, match="did you mean 'report'"):
        photos("raport")
    with pytest.raises(UnknownChoiceError, match="known: astronaut"):
        photograph("skin")
    with pytest.raises(InputError, match="no tile of 512×512 fits"):
        photos("test", size=512)
    with pytest.raises(InputError, match="stride must"):
        photos("test", stride=0)
    for scales in ((), (0.0,), (2.0,), 1.0):
        with pytest.raises(InputError, match="scales must"):
            photos("test", scales=scales)
