"""What p-diff's paper recipes need to know of its data sets, its fine-tuning and its results; no torch.

Accuracies are per cent on the test set: best original / uniform average of the weights / best generated. Ours are
beside them in report.json, with means and the train-selected network, which the published tables do not have.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Triple = tuple[float, float, float]
ArchitectureName = Literal["resnet18", "resnet50", "vit-tiny", "vit-base", "convnext-tiny", "convnext-base"]
DatasetName = Literal["cifar10", "cifar100", "stl10", "flowers", "pets", "food101", "imagenet", "digits"]


class Source(NamedTuple):
    """A data set: where it is, its size, and the split that is reported on."""

    data: str
    classes: int
    train: int
    test: int
    test_split: str = "test"


SOURCES: dict[str, Source] = {
    "cifar10": Source("hf:uoft-cs/cifar10", 10, 50_000, 10_000),
    "cifar100": Source("hf:uoft-cs/cifar100", 100, 50_000, 10_000),
    "stl10": Source("hf:tanganke/stl10", 10, 5_000, 8_000),
    "flowers": Source("hf:dpdl-benchmark/oxford_flowers102", 102, 1_020, 6_149),
    "pets": Source("hf:timm/oxford-iiit-pet", 37, 3_680, 3_669),
    "food101": Source("hf:ethz/food101", 101, 75_750, 25_250, "validation"),
    "imagenet": Source("hf:ILSVRC/imagenet-1k", 1000, 1_281_167, 50_000, "validation"),
    "digits": Source("digits", 10, 600, 540),
}

FIRST: dict[str, dict[str, Triple]] = {
    "resnet18": {
        "cifar10": (92.5, 92.5, 92.7),
        "cifar100": (76.7, 76.7, 76.9),
        "stl10": (75.5, 75.5, 75.4),
        "flowers": (49.1, 49.1, 49.7),
        "pets": (60.9, 60.8, 61.1),
        "food101": (71.2, 71.3, 71.3),
        "imagenet": (78.7, 78.5, 78.7),
    }
}
"""First edition, table 1 as on the project page of February 2024, of the network that its code trains."""

THIRD: dict[str, dict[str, Triple]] = {
    "resnet18": {
        "cifar100": (77.4, 77.7, 77.9),
        "stl10": (95.1, 95.1, 95.2),
        "flowers": (80.1, 79.2, 79.7),
        "pets": (89.0, 88.8, 89.1),
        "food101": (79.1, 79.4, 79.4),
        "imagenet": (69.5, 70.3, 70.4),
    },
    "resnet50": {
        "cifar100": (78.4, 78.6, 78.7),
        "stl10": (97.0, 96.9, 97.1),
        "flowers": (85.9, 85.8, 86.1),
        "pets": (92.6, 92.1, 92.5),
        "food101": (80.4, 80.0, 80.1),
        "imagenet": (78.3, 78.5, 78.5),
    },
    "vit-tiny": {
        "cifar100": (86.7, 86.4, 86.7),
        "stl10": (97.8, 97.6, 97.7),
        "flowers": (87.6, 87.5, 87.6),
        "pets": (90.5, 89.9, 90.4),
        "food101": (87.4, 87.4, 87.5),
        "imagenet": (75.2, 75.4, 75.4),
    },
    "vit-base": {
        "cifar100": (91.2, 91.1, 91.2),
        "stl10": (99.1, 99.1, 99.1),
        "flowers": (98.1, 98.0, 98.2),
        "pets": (94.1, 94.1, 94.4),
        "food101": (91.3, 91.2, 91.2),
        "imagenet": (85.1, 85.1, 85.1),
    },
    "convnext-tiny": {
        "cifar100": (89.8, 89.6, 89.8),
        "stl10": (99.1, 98.9, 99.0),
        "flowers": (98.2, 98.2, 98.3),
        "pets": (94.2, 93.7, 93.9),
        "food101": (91.6, 91.5, 91.6),
        "imagenet": (83.4, 83.7, 83.7),
    },
    "convnext-base": {
        "cifar100": (93.2, 93.1, 93.2),
        "stl10": (99.7, 99.6, 99.7),
        "flowers": (99.5, 99.5, 99.5),
        "pets": (95.2, 94.7, 95.0),
        "food101": (92.8, 92.9, 93.0),
        "imagenet": (85.1, 85.3, 85.3),
    },
}
"""Third edition (arXiv 2402.13144v3), table 1. Its table leaves CIFAR-10 out."""

HUB = {
    "resnet18": "microsoft/resnet-18",
    "resnet50": "microsoft/resnet-50",
    "vit-tiny": "WinKawaks/vit-tiny-patch16-224",
    "vit-base": "google/vit-base-patch16-224",
    "convnext-tiny": "facebook/convnext-tiny-224",
    "convnext-base": "facebook/convnext-base-224",
}
"""ImageNet weights in transformers' format; the paper took timm's."""


class Tuning(NamedTuple):
    """How the later edition's code trains a base network."""

    lr: float
    weight_decay: float
    epochs: int


def main_tuning(architecture: str, dataset: str) -> Tuning:
    """AdamW of the later code for the whole network; ImageNet takes the pretrained weights as they are."""
    resnet = architecture.startswith("resnet")
    if dataset == "imagenet":
        return Tuning(1e-4, 1e-4, 0)
    if dataset == "flowers":
        return Tuning(5e-3, 5e-3, 15) if resnet else Tuning(1e-4, 1e-4, 12)
    if architecture == "resnet18":
        return Tuning(5e-4, 5e-4, 10)
    return Tuning(1e-4, 1e-4, 30 if (architecture, dataset) == ("resnet50", "pets") else 10)


def collect_rate(architecture: str, dataset: str) -> float:
    """Constant rate of the later code while it collects; 0.03 stands for its "0.03 or 0.05" on norm layers."""
    special = {
        ("convnext-base", "flowers"): 0.1,
        ("vit-base", "pets"): 0.1,
        ("vit-tiny", "cifar10"): 0.15,
        ("resnet50", "imagenet"): 0.005,
    }
    return special.get((architecture, dataset), 0.03)
