"""What the p-diff papers, their code's logs and their critics report: the numbers that stand beside ours.

Two editions: the first (February 2024; K = 200, SGD) and the third (arXiv 2402.13144v3, December 2024; K = 300, AdamW).
Accuracies are in per cent, on the test set. Numbers read by eye from a published figure say so.
"""

from dataclasses import dataclass, field
from typing import Any

RESNET = "ResNet-18 on CIFAR-100, last two BatchNorm layers"


@dataclass(frozen=True, slots=True)
class Published:
    """Numbers of one experiment.

    Attributes:
        what: network, data and parameters.
        source: edition and table or figure.
        values: the numbers, None for one that could not be read.
        says: the finding in words, where the source gives no number.
    """

    what: str
    source: str
    values: dict[Any, Any] = field(default_factory=dict)
    says: str = ""

    def caption(self) -> str:
        """One line below a figure."""
        return f"{'Paper' if self.values else 'The paper'}: {self.says or self.what} ({self.source})."


PAPER: dict[str, Published] = {
    "originals": Published(
        RESNET,
        "first edition, table 2a; best, mean, median of 100",
        {1: (76.6, 70.7, 73.2), 10: (76.5, 71.2, 73.8), 50: (76.7, 71.3, 74.3), 200: (76.9, 72.4, 75.6)}
        | {500: (76.8, 72.3, 75.4)},
    ),
    "originals, third edition": Published(
        RESNET,
        "third edition, table 3; best, mean of 200",
        {10: (77.0, 76.6), 50: (77.5, 77.2), 200: (77.8, 77.5), 300: (77.9, 77.7), 400: (78.0, 77.6)},
    ),
    "layers": Published(
        "ResNet-18 on CIFAR-100",
        "first edition, table 2b; best, mean, median",
        {"originals": (76.7, 76.6, 76.6), "BN 10–14": (76.8, 71.9, 75.3), "BN 14–16": (76.9, 72.2, 75.5)}
        | {"BN 16–18": (76.9, 72.4, 75.6)},
    ),
    "noise": Published(
        RESNET,
        "first edition, table 2c; best, mean, median",
        {"none": (76.7, 65.8, 65.0), "parameters": (76.7, 66.7, 67.3), "latents": (76.7, 72.1, 75.3)}
        | {"both": (76.9, 72.4, 75.6)},
    ),
    "whole networks": Published(
        "all parameters, 200 seeds each; original, ensemble, p-diff",
        "first edition, tables 1 and 3; MLP-3 from memory, unverified",
        {"ConvNet-3, MNIST": (99.2, 99.2, 99.2), "ConvNet-3, CIFAR-10": (77.2, 77.3, 77.5)}
        | {"ConvNet-3, CIFAR-100": (57.2, 57.2, 57.3), "ConvNet-3, STL-10": (56.4, 56.4, 56.4)}
        | {"MLP-3, MNIST": (85.3, 85.2, 85.4), "MLP-3, CIFAR-10": (48.1, 48.1, 48.2)},
    ),
    "patterns": Published(
        "ResNet-18, three seeds",
        "first edition, figure 3",
        says="heat maps of ResNet-18 from three seeds are said to show patterns of each layer; no number is given",
    ),
    "similarity": Published(
        RESNET,
        "first edition, figure 4a, read by eye ± .003; only networks above 76.5 %",
        {"originals": 0.968, "p-diff": 0.912, "originals × p-diff": 0.921, "nearest original": 0.933},
    ),
    "similarity, later code": Published(
        RESNET,
        "logs of the later code; the other way round: generated networks are more alike than originals",
        {"originals": 0.784, "p-diff": 0.880, "originals × p-diff": 0.819, "nearest original": 0.848},
    ),
    "accuracy and similarity": Published(
        RESNET,
        "first edition, figure 4b, read by eye: ranges of similarity and accuracy",
        {"originals": (None, (76.5, 76.65)), "p-diff": ((0.855, 0.985), (76.4, 76.82))}
        | {"fine-tuned, noise-added": ((0.98, 1.0), None)},
        says="fine-tuned and noise-added copies hardly leave their original and are hardly ever better; "
        "what could not be read is drawn from edge to edge",
    ),
    "critics": Published(
        RESNET,
        "B. Zeng et al., “Generalization or Memorization?”, arXiv 2506.07998, read by eye",
        {
            "originals": ((0.96, 0.99), (76.5, 77.3)),
            "p-diff": ((0.835, 0.865), (76.9, 77.65)),
            "average of 16": ((0.855, 0.885), (77.3, 77.65)),
            "Gaussian": ((0.82, 0.86), (76.8, 77.5)),
            "noise 0.06": ((0.90, 0.935), (76.2, 77.1)),
            "noise 0.12": ((0.81, 0.88), (75.2, 76.9)),
        },
        says="averages of 16 checkpoints and a Gaussian per coordinate do as well as p-diff; p-diff beats raw noise",
    ),
    "t-SNE": Published(
        RESNET,
        "first edition, figure 4c",
        says="p-diff's latents form a cluster of their own, noise-added ones lie among the originals",
    ),
    "trajectories": Published(
        RESNET,
        "first edition, figure 5a",
        says="five paths, all different, approach the originals' mean and stop short of it",
    ),
    "maximum similarity": Published(
        RESNET,
        "first edition, figure 5b, read by eye; 50 networks above 76.5 % for each K",
        {1: (0.96, 0.98), 10: (0.91, 0.97), 50: (0.87, 0.97), 200: (0.85, 0.98), 500: (0.85, 0.97)},
    ),
    "memory": Published(
        "MB of GPU memory by parameters, batch 50: autoencoder, diffusion",
        "third edition, table 13",
        {2_048: (658, 530), 30_016: (3_756, 1_418), 100_288: (13_352, 3_594), 300_288: (44_882, 12_942)},
    ),
}
