import json
import os
from contextlib import nullcontext

import pytest
import torch
from PIL import Image

from latentia.codecs.vq_model import VQModel
from latentia.data.dataset import TensorDataset
from latentia.data.digits import digits
from latentia.errors import InputError
from latentia.metrics.classifier import ConvClassifier
from latentia.recipes import evaluation
from latentia.recipes.judge import everything, train_judge
from latentia.recipes.sampling import Request


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A judge of 16×16 and 32×32 digits that was hardly trained."""
    folder = tmp_path_factory.mktemp("judge")
    train_data, test_data = digits("train", 16), digits("test", 16)
    classifier, accuracy = train_judge("digits", train_data, test_data, steps=60, progress=False)
    assert accuracy.name == "accuracy_digits"
    assert accuracy.n_generated == 540
    assert 0.85 < accuracy.value <= 1
    classifier.save_pretrained(folder)
    return folder


def test_a_judge_is_a_function_of_its_seed():
    data = digits("test", 8)
    first, again, other = (train_judge("d", data, data, seed=s, steps=2, progress=False)[0] for s in (1, 1, 2))
    x = data.batch(range(4))["x"]
    assert not first.training
    assert torch.equal(first(x), again(x))
    assert not torch.equal(first(x), other(x))


def test_a_judge_needs_classes():
    data = TensorDataset({"x": torch.zeros(4, 1, 8, 8)})
    assert everything(data)[1].tolist() == [0, 0, 0, 0]
    with pytest.raises(InputError, match="needs labelled images of at least 2 classes, got 1"):
        train_judge("d", data, data, progress=False)


def test_a_pipeline_is_judged_with_floor_and_ceiling(ddpm_run, judge):
    request = Request(count=100, steps=2, seed=4, scheduler="ddim")
    numbers = {m.name: m for m in evaluation.evaluate_pipeline(ddpm_run, "digits", request, evaluation.Rulers(judge))}
    assert next(iter(numbers)) == "accuracy_digits_on_real_test_images"
    assert {"accuracy_digits", "frechet_digits", "frechet_digits_floor", "frechet_digits_ceiling", "kid_digits",
            "precision_digits", "recall_digits", "nearest_pixels_ratio"} <= set(numbers)  # fmt: skip
    assert numbers["frechet_digits_floor"].value < numbers["frechet_digits"].value
    assert numbers["accuracy_digits"].value < 0.5 < numbers["accuracy_digits_on_real_test_images"].value
    assert (numbers["accuracy_digits"].n_generated, numbers["accuracy_digits"].seed) == (100, 4)
    assert numbers["frechet_digits"].n_real == 1797


@pytest.mark.parametrize(("data", "said"), [("digts", "no data called 'digts'"), ("", "needs labelled images")])
def test_wrong_data_is_found_before_the_pictures_are_made(ddpm_run, tmp_path, monkeypatch, data, said):
    Image.linear_gradient("L").save(tmp_path / "alone.png")
    monkeypatch.setattr(evaluation, "sample", None)
    with pytest.warns(UserWarning, match="no test images of its own") if not data else nullcontext():
        with pytest.raises(InputError, match=said):
            evaluation.evaluate_pipeline(ddpm_run, data or str(tmp_path), Request(), evaluation.Rulers())


def test_the_judge_of_a_run_is_found(tmp_path):
    assert evaluation.judge_beside(tmp_path, "digits") is None
    ConvClassifier().save_pretrained(tmp_path / "judge")
    assert evaluation.judge_beside(tmp_path, "digits") == tmp_path / "judge"
    assert evaluation.judge_beside(tmp_path / "pipeline", "digits") == tmp_path / "judge"
    assert evaluation.judge_beside(tmp_path, "photos") is None


def test_a_judge_is_trained_by_one_process_of_many(monkeypatch):
    data = digits("test", 8)
    alone, _ = train_judge("d", data, data, steps=2, progress=False)
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "3")):
        monkeypatch.setenv(name, value)
    one_of_three, _ = train_judge("d", data, data, steps=2, progress=False)
    x = data.batch(range(4))["x"]
    assert torch.equal(alone(x), one_of_three(x))
    assert os.environ["WORLD_SIZE"] == "3"


def test_kinds_of_folders(ldm_run):
    assert evaluation.is_pipeline(ldm_run)
    assert evaluation.is_pipeline(ldm_run / "pipeline")
    assert not evaluation.is_pipeline(ldm_run / "pipeline" / "vae")
    assert not evaluation.is_pipeline("nowhere")


def test_a_codec_is_measured_by_its_reconstructions(ldm_run):
    numbers = {m.name: m for m in evaluation.evaluate_codec(ldm_run / "pipeline" / "vae", "digits", count=70)}
    assert list(numbers) == ["psnr", "psnr_pooled", "ssim"]
    assert {m.n_generated for m in numbers.values()} == {70}
    assert 0 < numbers["psnr"].value < 20
    with pytest.raises(InputError, match="n must be at least 1"):
        evaluation.evaluate_codec(ldm_run, "digits", count=0)


def test_a_vector_quantised_codec_is_measured_too(tmp_path):
    torch.manual_seed(0)
    codec = VQModel(1, 1, norm_num_groups=4, block_out_channels=(4,), num_vq_embeddings=3, sample_size=8)
    codec.save_pretrained(tmp_path)
    numbers = {m.name: m for m in evaluation.evaluate_codec(tmp_path, "digits", count=5)}
    x = digits("test", 8).batch(range(5))["x"]
    with torch.no_grad():
        errors = (codec.eval()(x).sample.clamp(-1, 1) - x).square().mean((1, 2, 3))
    assert numbers["psnr"].value == pytest.approx((10 * torch.log10(4 / errors)).mean().item(), rel=1e-4)


def test_the_report_is_json(tmp_path, ldm_run):
    numbers = evaluation.evaluate_codec(ldm_run, "digits", count=2)
    evaluation.write_report(numbers, tmp_path / "r.json", {"data": "digits"})
    loaded = json.loads((tmp_path / "r.json").read_text())
    assert loaded["data"] == "digits"
    assert [m["name"] for m in loaded["measurements"]] == ["psnr", "psnr_pooled", "ssim"]
