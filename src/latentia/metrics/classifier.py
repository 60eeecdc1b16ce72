"""ConvClassifier: a small CNN that judges generated images by class and by its dense features."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from latentia.core.arguments import check_counts
from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.errors import InputError


class ConvClassifier(ModelMixin):
    """Image → class logits, and penultimate features for `frechet_<name>`.

    Each entry of `channels` is one 3×3 convolution, batch norm and SiLU; all but the last halve the
    resolution. The map is averaged to `pool`×`pool`, flattened, projected to `feature_dim` and passed
    through a SiLU: smooth, so that no feature dies and the features' covariance keeps full rank.

    Args:
        name: names the ruler: its Fréchet distance is reported as `frechet_<name>`.
        num_classes: number of classes, at least 2.
        in_channels: channels of `x`.
        feature_dim: length of the feature vector.
        channels: width of each convolution.
        pool: side of the map that is flattened.
        dropout: probability on the features, while training.
    """

    @register_to_config
    def __init__(
        self,
        name: str = "digits",
        num_classes: int = 10,
        in_channels: int = 1,
        feature_dim: int = 32,
        channels: tuple[int, ...] = (16, 32, 64),
        pool: int = 4,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        check_counts(self.config, ("num_classes", "in_channels", "feature_dim", "channels", "pool"))
        if num_classes < 2 or not channels:
            raise InputError(f"need at least 2 classes and one convolution, got {num_classes} and {tuple(channels)}")
        self.name = name
        widths = (in_channels, *channels)
        layers: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            stride = 2 if i + 1 < len(channels) else 1
            layers += [nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.project = nn.Linear(channels[-1] * pool * pool, feature_dim)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(feature_dim, num_classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) in [-1, 1] → (B, feature_dim). Call `eval()` first when measuring."""
        if x.ndim != 4 or x.shape[1] != self.config.in_channels:
            raise InputError(f"{self.name} judges x of (B, {self.config.in_channels}, H, W), got {tuple(x.shape)}")
        return F.silu(self.project(self.pool(self.trunk(x)).flatten(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) in [-1, 1] → class logits (B, num_classes)."""
        return self.head(self.drop(self.features(x)))
