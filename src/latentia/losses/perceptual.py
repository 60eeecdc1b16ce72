"""Perceptual distances by name: frozen modules (x, x̂) → (B,) whose `name` says on which network they measure.

lpips-vgg, lpips-alex   LPIPS; weights needed                                    `losses.lpips`
resnet50-logits         ResNet-50's logits, as FlowMo and MaskBit; weights needed
photo_features          a small network that the project trains itself
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from latentia.errors import InputError, check_choice
from latentia.losses.lpips import LPIPS, check_pictures, unit
from latentia.losses.perceptual_weights import Weights, check_same, read_weights
from latentia.losses.resnet50 import ResNet50

PERCEPTUAL = ("lpips-alex", "lpips-vgg", "photo_features", "resnet50-logits")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class MapNetwork(Protocol):
    """A network with feature maps to compare."""

    name: str
    config: Any

    def feature_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """x (B, C, H, W) in [-1, 1] → maps (B, c, h, w), from shallow to deep."""
        ...


class FeatureDistance(nn.Module):
    """LPIPS' formula without calibration, on any network's maps:

        d(x, x̂) = 1/L Σ_l mean_hw ‖f̂_l(x) − f̂_l(x̂)‖²,   f̂ of length 1 at each position; 0 ≤ d ≤ 4

    The network is frozen and stays in evaluation mode. `name` is the network's.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name: str = network.name  # type: ignore[assignment]

    def train(self, mode: bool = True) -> "FeatureDistance":
        """Stays in evaluation mode: batch norm must not learn from what it judges."""
        return super().train(False)

    def forward(self, x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        """Distances (B,). Raises `InputError` for shapes that differ or do not suit the network."""
        if x.shape != x_hat.shape:
            raise InputError(
                f"a distance needs two tensors of one shape, got {tuple(x.shape)} and {tuple(x_hat.shape)}"
            )
        network: Any = self.network
        with torch.no_grad():
            real = [unit(maps) for maps in network.feature_maps(x)]
        made = network.feature_maps(x_hat)
        layers = [(unit(b) - a).square().sum(1).mean((1, 2)) for a, b in zip(real, made, strict=True)]
        return torch.stack(layers).mean(0)


class LogitDistance(nn.Module):
    """d(x, x̂) = mean over ImageNet's 1000 classes of (logit(x) − logit(x̂))², on ResNet-50 (Weber et al. 2024, MaskBit).

    x in [-1, 1] → [0, 1] → resized to 224×224 (bilinear, antialiased) → ImageNet's mean and deviation. Frozen; `name`
    is `resnet50-logits`.

    Args:
        weights: torchvision's `resnet50-0676ba61.pth` (IMAGENET1K_V1), or the same as safetensors.

    Raises `ArtifactError` for weights that are missing or of another network.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.name = "resnet50-logits"
        with torch.device("meta"):
            self.network = ResNet50()
        given = read_weights(weights)
        wanted = self.network.state_dict()
        counters = {name: torch.zeros((), dtype=torch.long) for name in wanted if name.endswith("num_batches_tracked")}
        check_same(wanted, counters | given, "ResNet-50", "Give torchvision's resnet50-0676ba61.pth (IMAGENET1K_V1)")
        self.network.load_state_dict({name: (counters | given)[name] for name in wanted}, assign=True)
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "LogitDistance":
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        """Distances (B,) of x, x̂ (B, 3 or 1, H, W)."""
        check_pictures(x, x_hat, (1, 3), 1)
        with torch.no_grad():
            real = self._logits(x)
        return (real - self._logits(x_hat)).float().square().mean(1)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        shown = F.interpolate((x + 1) / 2, size=(224, 224), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
        logits: torch.Tensor = self.network((shown - self.mean) / self.std)
        return logits


def perceptual_loss(kind: str, weights: Weights | None = None, network: nn.Module | None = None) -> nn.Module:
    """The distance of this name, frozen.

    Args:
        kind: one of `PERCEPTUAL`.
        weights: files, folder or Hub id; needed by all but `photo_features`.
        network: the trained `PhotoFeatures` of `photo_features`.

    Raises `UnknownChoiceError` for another name, `InputError` for one without what it needs, `ArtifactError` for
    weights that do not fit.
    """
    check_choice("perceptual distance", kind, PERCEPTUAL)
    if kind == "photo_features":
        if network is None:
            raise InputError("photo_features needs its network: train one (latentia.recipes.photo_features), pass it")
        return FeatureDistance(network)
    if weights is None:
        raise InputError(
            f"{kind} needs its weights: give a file or a Hub id; photo_features is trained here and needs none"
        )
    return LogitDistance(weights) if kind == "resnet50-logits" else LPIPS(kind.removeprefix("lpips-"), weights)
