import pytest
import torch

from latentia.errors import InputError
from latentia.metrics.classifier import ConvClassifier
from latentia.metrics.evaluate import (
    Classifier,
    Judge,
    class_accuracy,
    evaluate_features,
    evaluate_reconstruction,
    predict,
)


class Brightness:
    """Class 1 when the mean is positive; features: mean, and mean of each half."""

    name = "brightness"

    def features(self, x):
        return torch.stack([x.mean(dim=(1, 2, 3)), x[..., :1].mean(dim=(1, 2, 3))], dim=1)

    def __call__(self, x):
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([-mean, mean], dim=1)


def images(n, seed=0):
    labels = torch.arange(n) % 2
    noise = 0.2 * torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return noise + (labels * 2.0 - 1).reshape(-1, 1, 1, 1) * 0.5, labels


def test_accuracy_counts_and_names_its_worst_class():
    x, labels = images(20)
    assert class_accuracy(Brightness(), x, labels).value == 1.0
    wrong = labels.clone()
    wrong[0] = 1
    found = class_accuracy(Brightness(), x, wrong, batch_size=6)
    assert (found.name, found.value, found.n_generated) == ("accuracy_brightness", 0.95, 20)
    assert found.details["worst_class"] == pytest.approx(10 / 11)
    assert found.details["standard_error"] == pytest.approx((0.95 * 0.05 / 20) ** 0.5)
    with pytest.raises(InputError, match="20 images and 3 labels"):
        class_accuracy(Brightness(), x, labels[:3])


def test_judge_reports_every_number_with_n():
    real, labels = images(100)
    generated, wanted = images(40, seed=1)
    judge = Judge(Brightness(), real, labels, train=real[:60], held_out=real[60:], seed=5)
    assert isinstance(Brightness(), Classifier)
    report = judge(generated, wanted)
    assert list(report) == [
        "accuracy_brightness",
        "frechet_brightness",
        "kid_brightness",
        "precision_brightness",
        "recall_brightness",
        "nearest_pixels",
        "nearest_pixels_held_out",
        "nearest_pixels_ratio",
    ]
    assert all(report[name].name == name for name in report)
    assert all(m.n_generated == 40 for name, m in report.items() if name != "nearest_pixels_held_out")
    assert report["nearest_pixels_ratio"].value == pytest.approx(1, abs=0.15)
    assert "accuracy_brightness" not in judge(generated)


def test_floor_is_below_ceiling():
    real, labels = images(100)
    judge = Judge(Brightness(), real, labels)
    floor, ceiling = judge.floor(40), judge.ceiling(40)
    assert (floor.name, ceiling.name) == ("frechet_brightness_floor_balanced", "frechet_brightness_ceiling")
    assert floor.value < 0.05 < 0.1 < ceiling.value
    assert judge.floor(40, balanced=False).value > floor.value
    assert judge.floor(40, disjoint=True).value > floor.value
    assert "nearest_pixels" not in judge(real)


def test_judge_refuses_other_shapes():
    real, labels = images(10)
    with pytest.raises(InputError, match="one label for each real image"):
        Judge(Brightness(), real, labels[:3])
    with pytest.raises(InputError, match=r"compares with images of \(1, 4, 4\), got \(3, 4, 4\)"):
        Judge(Brightness(), real, labels)(torch.zeros(5, 3, 4, 4))


def test_a_module_is_judged_in_evaluation_mode():
    network = ConvClassifier(channels=(4, 4), pool=2, feature_dim=4, num_classes=2, dropout=0.9).train()
    x, labels = images(12)
    first = class_accuracy(network, x, labels)
    assert first == class_accuracy(network, x, labels, batch_size=1)
    assert network.training


def test_reconstruction():
    x, _ = images(6)
    x = x.clamp(-1, 1)
    found = evaluate_reconstruction(x, x + 0.02)
    assert set(found) == {"psnr", "psnr_pooled"}
    assert found["psnr"].value >= 40
    big = x.repeat(1, 1, 4, 4)
    assert evaluate_reconstruction(big, big)["ssim"].value == pytest.approx(1)


def test_evaluate_features_names_its_ruler():
    g = torch.Generator().manual_seed(0)
    found = evaluate_features("x", torch.randn(30, 3, generator=g), torch.randn(20, 3, generator=g))
    assert list(found) == ["frechet_x", "kid_x", "precision_x", "recall_x"]


def test_predictions_restore_the_mode_even_when_they_fail():
    judge = ConvClassifier().train()
    with pytest.raises(InputError, match="judges x of"):
        predict(judge, torch.zeros(2, 3, 8, 8))
    assert all(part.training for part in judge.modules())
    with pytest.raises(InputError, match="batch_size must be an integer of at least 1, got 0"):
        predict(judge, torch.zeros(2, 1, 8, 8), 0)
    with pytest.raises(InputError, match="no images to classify with 'digits'"):
        predict(judge, torch.zeros(0, 1, 8, 8))
