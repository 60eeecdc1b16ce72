import json

import pytest
import torch
from pydantic import ValidationError

from latentia import VQModel
from latentia.data.dataset import TensorDataset
from latentia.recipes.codec_training import TurnedDataset
from latentia.recipes.registry import recipe
from latentia.recipes.vqvae import Tokenizer


def test_bits_are_as_stated():
    photos, digits = recipe("vqvae-photos"), recipe("vqvae-digits")
    with torch.device("meta"):
        assert photos.build_codec().bits((3, 32, 32)) == pytest.approx(576)
        assert digits.build_codec().bits((1, 16, 16)) == pytest.approx(128)
    assert len(photos.images()) > 10**6


@pytest.mark.parametrize(
    ("sizes", "bits"),
    [
        ({"quantizer": "vq", "codes": 8}, 3),
        ({"quantizer": "vq_ema", "codes": 8, "cosine": True, "beta": 1.0}, 3),
        ({"quantizer": "residual", "codes": 8, "residual_levels": 3}, 9),
        ({"quantizer": "lfq", "codes": 32, "code_dim": 5, "entropy_weight": 0.1}, 5),
        ({"quantizer": "fsq", "codes": 16, "code_dim": 2, "fsq_levels": (4, 4)}, 4),
    ],
)
def test_every_quantizer_can_be_chosen(sizes, bits):
    with torch.device("meta"):
        codec = Tokenizer(**{"channels": (8,), "patch_size": 2, "code_dim": 4, **sizes}).build(8, 1)
    assert codec.quantize.bits_per_position() == bits
    assert codec.latent_shape((1, 8, 8))[1:] == (4, 4)


def test_averages_stay_below_one():
    with pytest.raises(ValidationError, match="less than 1"):
        Tokenizer(channels=(8,), decay=1.0)


def test_a_small_run_saves_a_codec_and_its_numbers(tmp_path, monkeypatch):
    from latentia.recipes import codec_gan_judging
    from latentia.recipes.run import run_recipe

    monkeypatch.setattr(codec_gan_judging, "rulers", lambda recipe, out: [])
    small = Tokenizer(channels=(8,), patch_size=4, latent_channels=4, groups=4, codes=16, code_dim=2)
    changed = {"codec": small, "steps": 3, "batch_size": 8, "device": "cpu"}
    out = run_recipe(recipe("vqvae-digits").model_copy(update=changed), tmp_path / "run", progress=False)
    codec = VQModel.from_pretrained(out)
    assert codec.bits((1, 16, 16)) == 64
    assert bool(codec.quantize.started)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["recipe"], report["n"]) == ("vqvae-digits", 540)
    assert report["bits_per_pixel"] == 0.25
    assert 0 < report["usage"]["perplexity"] <= report["usage"]["ceiling"] == 16
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"rec", "commitment", "perplexity", "perplexity_ceiling", "codes_used"} <= set(line)


def test_turned_pictures_are_the_eight_orientations():
    x = torch.arange(12.0).view(3, 1, 2, 2)
    data = TurnedDataset(TensorDataset({"x": x, "label": torch.arange(3)}))
    assert len(data) == 33
    whole = data.batch(range(33))
    assert torch.equal(whole["x"][:12], x.repeat(4, 1, 1, 1))
    assert torch.equal(whole["label"], torch.arange(3).repeat(11))
    first = {tuple(each.flatten().tolist()) for each in whole["x"][::3]}
    turned = [torch.rot90(side, k, (-2, -1)) for side in (x[0], x[0].flip(-1)) for k in range(4)]
    assert first == {tuple(each.flatten().tolist()) for each in turned}
    assert torch.equal(data.batch([32, 5])["x"], whole["x"][[32, 5]])
