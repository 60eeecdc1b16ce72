"""Every number of a report in one call, and the judge: a classifier that measures class-conditional images."""

from typing import Protocol, runtime_checkable

import torch

from latentia.core.arguments import check_count
from latentia.core.evaluating import evaluating
from latentia.core.protocols import FeatureNetwork
from latentia.errors import InputError
from latentia.metrics.features import Images, PixelFeatures, batch_of, device_of, extract
from latentia.metrics.frechet import EPS, Gaussian, frechet_of, noise_ceiling, real_floor
from latentia.metrics.kid import kernel_distance
from latentia.metrics.measurement import Measurement
from latentia.metrics.neighbours import nearest_training
from latentia.metrics.precision_recall import precision_recall
from latentia.metrics.psnr import DATA_RANGE, psnr, psnr_pooled
from latentia.metrics.ssim import WINDOW, ssim

Report = dict[str, Measurement]


@runtime_checkable
class Classifier(FeatureNetwork, Protocol):
    """A feature network that also gives class logits."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) in [-1, 1] → logits (B, classes)."""
        ...


def evaluate_features(
    name: str, real: torch.Tensor, generated: torch.Tensor, k: int = 3, eps: float = EPS, seed: int = 0
) -> Report:
    """Fréchet and kernel distance, precision and recall of generated (M, D) to real (N, D) features of ruler `name`."""
    numbers = [frechet_of(f"frechet_{name}", real, generated, eps), kernel_distance(name, real, generated, seed=seed)]
    return {each.name: each for each in numbers} | precision_recall(name, real, generated, k)


def evaluate_reconstruction(x: torch.Tensor, reconstruction: torch.Tensor) -> Report:
    """`psnr` (mean of each image's), `psnr_pooled` and `ssim` of images in [-1, 1]; reconstructions are clipped first.

    SSIM is left out for images smaller than its window of 11 pixels.
    """
    clipped = reconstruction.clamp(-1, 1)
    n, details = len(x), {"data_range": DATA_RANGE}
    values = {"psnr": float(psnr(x, clipped).mean()), "psnr_pooled": psnr_pooled(x, clipped)}
    if min(x.shape[-2:]) >= WINDOW:
        values["ssim"] = float(ssim(x, clipped).mean())
    return {name: Measurement(name, value, n, n, details=details) for name, value in values.items()}


def class_accuracy(classifier: Classifier, images: Images, labels: torch.Tensor, batch_size: int = 256) -> Measurement:
    """`accuracy_<classifier>`: share of `images` that the classifier takes for the class in `labels` (N,).

    `details`: the standard error √(p(1 − p)/n) and the accuracy of the worst class.
    """
    if len(images) != len(labels) or not len(labels):
        raise InputError(f"needs one label for each image, got {len(images)} images and {len(labels)} labels")
    hits = predict(classifier, images, batch_size) == labels.cpu()
    accuracy = float(hits.double().mean())
    worst = min(float(hits[labels.cpu() == label].double().mean()) for label in labels.unique().tolist())
    details = {"standard_error": (accuracy * (1 - accuracy) / len(labels)) ** 0.5, "worst_class": worst}
    return Measurement(f"accuracy_{classifier.name}", accuracy, len(labels), details=details)


@torch.no_grad()
def predict(classifier: Classifier, images: Images, batch_size: int = 256) -> torch.Tensor:
    """The classifier's choice for each image, in evaluation mode: int64 (N,). Raises `InputError` for no images."""
    if not len(images):
        raise InputError(f"no images to classify with {classifier.name!r}")
    check_count("batch_size", batch_size)
    rows = [range(i, min(i + batch_size, len(images))) for i in range(0, len(images), batch_size)]
    where = device_of(classifier)
    with evaluating([classifier]):
        return torch.cat([classifier(batch_of(images, each).to(where)).argmax(1).cpu() for each in rows])


class Judge:
    """Measures generated images against real ones on a trained classifier; real features are computed once.

    Args:
        classifier: gives `accuracy_<name>` and the features of `frechet_<name>`.
        real: images (N, C, H, W) that generated ones are compared with (for the digits: all 1,797).
        labels: their classes (N,), to balance the floor's draws.
        train: images that generators were trained on; `held_out`: real ones they never saw. For the nearest neighbours.
        pixels: the ruler of the nearest-neighbour distance.
        seed: of the random draws.
    """

    def __init__(
        self,
        classifier: Classifier,
        real: torch.Tensor,
        labels: torch.Tensor,
        train: torch.Tensor | None = None,
        held_out: torch.Tensor | None = None,
        pixels: FeatureNetwork | None = None,
        seed: int = 0,
    ) -> None:
        if len(real) != len(labels):
            raise InputError(f"needs one label for each real image, got {len(real)} and {len(labels)}")
        self.classifier, self.seed = classifier, seed
        self.labels, self.shape = labels, tuple(real.shape[1:])
        self.pixels: FeatureNetwork = pixels or PixelFeatures()
        self.real = extract(classifier, real)
        self.gaussian = Gaussian.fit(self.real)
        self.train = None if train is None else extract(self.pixels, train)
        self.held_out = None if held_out is None else extract(self.pixels, held_out)

    @property
    def name(self) -> str:
        """The Fréchet distance's name, `frechet_<classifier>`."""
        return f"frechet_{self.classifier.name}"

    def __call__(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> Report:
        """Every number of generated `images` (M, C, H, W); accuracy only with their intended `labels` (M,)."""
        if tuple(images.shape[1:]) != self.shape:
            raise InputError(f"the judge compares with images of {self.shape}, got {tuple(images.shape[1:])}")
        report = evaluate_features(self.classifier.name, self.real, extract(self.classifier, images), seed=self.seed)
        if labels is not None:
            accuracy = class_accuracy(self.classifier, images, labels)
            report = {accuracy.name: accuracy} | report
        if self.train is not None:
            report |= nearest_training(self.pixels.name, extract(self.pixels, images), self.train, self.held_out)
        return report

    def floor(self, n: int, draws: int = 10, balanced: bool = True, disjoint: bool = False) -> Measurement:
        """What `n` real images score against all real ones (`disjoint`: against the others); see `real_floor`."""
        labels = self.labels if balanced else None
        return real_floor(self.name, self.real, n, labels, draws, self.seed, disjoint=disjoint)

    def ceiling(self, n: int) -> Measurement:
        """What `n` noise images score."""
        return noise_ceiling(self.classifier, self.gaussian, n, self.shape, self.seed)
