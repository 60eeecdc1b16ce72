"""The report that every family of codecs writes."""

import json

import pytest
import torch

from latentia.codecs.vq_model import VQModel
from latentia.data.digits import digits
from latentia.metrics.photo_features import PhotoFeatures
from latentia.recipes import codec_report
from latentia.recipes.codec_report import format_rows, formats_beside, told_usage, write_report

pytestmark = pytest.mark.filterwarnings("ignore:.*a covariance is singular")


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    x = digits("test", 16).batch(range(8))["x"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec = VQModel(
            in_channels=1,
            out_channels=1,
            block_out_channels=(8,),
            latent_channels=4,
            num_vq_embeddings=16,
            norm_num_groups=4,
            patch_size=4,
        )
    numbers = write_report("mine", codec, x, [PhotoFeatures("tiny", 1)], out, "test", {"steps": 7})
    return out, numbers, x


def test_page_and_json_say_the_same(reported):
    out, numbers, _ = reported
    told = json.loads((out / "report.json").read_text())
    assert (told["recipe"], told["split"], told["n"], told["steps"]) == ("mine", "test", 8, 7)
    assert told["bits_per_pixel"] * 256 == 16 * 4
    assert told["psnr"] == numbers.psnr
    page = (out / "report.html").read_text()
    assert f"<td>{numbers.psnr:.2f}</td>" in page
    assert f"<td>{told['frechet']['frechet_tiny']:.4g}</td>" in page
    assert "PSNR" in page
    assert (out / "reconstructions.png").stat().st_size > 0


def test_formats_stand_beside_with_and_without_headers(reported):
    formats = json.loads((reported[0] / "report.json").read_text())["formats"]
    assert formats["n"] == 8
    rows = format_rows(formats, 256, "frechet_tiny")
    assert [row[0].split(", ")[:2] for row in rows] == [
        [name, how] for how in ("payload", "file") for name in ("jpeg", "webp", "avif")
    ]
    for row, found in zip(rows, [*formats["without headers"].values(), *formats["with headers"].values()]):
        assert row[1] == f"{256 * found['bits_per_pixel']:.0f}"
        assert row[4] == f"{found['psnr']:.2f}"
        assert ("% fit" in row[0]) == (found["fits"] < 1)


def test_too_many_pixels_are_cut_and_lose_the_frechet_distance(reported, monkeypatch):
    monkeypatch.setattr(codec_report, "FORMAT_PIXELS", 512)
    formats = formats_beside(reported[2], 0.5, [PhotoFeatures("tiny", 1)])
    assert formats["n"] == 2
    assert formats["with headers"]["jpeg"]["frechet"] == {}
    assert format_rows(formats, 256, "frechet_tiny")[0][-1] == ""


def test_no_formats_without_bits(reported):
    assert formats_beside(reported[2], None, []) == {}


def test_a_collapsed_codebook_is_said():
    usage = {"perplexity": 3.0, "ceiling": 512, "used": 9, "codes": 512}
    assert "collapsed" in told_usage(usage)
    assert "collapsed" not in told_usage(usage | {"perplexity": 300.0})


def test_flowmo_writes_the_same_report(tmp_path, monkeypatch):
    from latentia.metrics.classifier import ConvClassifier
    from latentia.recipes import registry
    from latentia.recipes.overrides import override
    from latentia.recipes.run import run_recipe

    judge = ConvClassifier(name="digits", num_classes=10, in_channels=1).eval()
    few = digits("test", 16).batch(range(6))["x"]
    monkeypatch.setattr("latentia.recipes.codec_gan_judging.rulers", lambda recipe, out: [judge])
    monkeypatch.setattr("latentia.recipes.codec_gan_judging.MOST", 6)
    monkeypatch.setattr("latentia.recipes.flowmo_judging.ruler", lambda recipe, bench: judge)
    monkeypatch.setattr("latentia.recipes.flowmo_judging.test_pictures", lambda recipe: few)
    sizes = [f"sizes.{half}.{name}" for half in ("encoder", "decoder") for name in ("width=16", "depth=1")]
    small = [
        "steps=2",
        "regression_steps=1",
        "batch_size=4",
        "post.steps=0",
        "perceptual.steps=1",
        "sampling.steps=1",
        "preview_every=2",
    ]
    run_recipe(
        override(registry.recipe("flowmo-digits"), [*small, *sizes, "device=cpu"]), tmp_path / "run", False, False
    )
    told = json.loads((tmp_path / "run/report.json").read_text())
    assert (told["recipe"], told["n"], told["bits_per_pixel"]) == ("flowmo-digits", 6, 0.5)
    assert "flowmo-digits" in (tmp_path / "run/report.html").read_text()
    assert (tmp_path / "run/numbers.json").is_file()
