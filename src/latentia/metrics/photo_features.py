"""PhotoFeatures: the small network that stands in for Inception and VGG where their weights are not at hand."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from latentia.core.arguments import check_counts
from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.errors import ConfigError, InputError


class PhotoFeatures(ModelMixin):
    """Image → features (a ruler, `frechet_<name>`) and feature maps (what a perceptual distance compares).

    3×3 convolutions with batch norm and SiLU; each but the first and the last halves the resolution. The last map is
    averaged to 2×2, projected to `feature_dim` numbers and passed through a SiLU, so that no feature dies and their
    covariance keeps full rank. It is made to be trained in a minute on the training pictures by a pretext task
    (`latentia.training.pretext`); a ruler and a loss must not be the same trained network, or the loss learns to
    please the ruler.

    Args:
        name: names the ruler: its Fréchet distance is reported as `frechet_<name>`.
        in_channels: channels of `x`.
        channels: width of each convolution, two at least.
        feature_dim: length of the feature vector; keep it well below the number of pictures measured.

    Raises `ConfigError` for sizes that make no network.
    """

    @register_to_config
    def __init__(
        self,
        name: str = "photo_features",
        in_channels: int = 3,
        channels: tuple[int, ...] = (24, 48, 96, 96),
        feature_dim: int = 64,
    ) -> None:
        super().__init__()
        check_counts(self.config, ("in_channels", "channels", "feature_dim"))
        if len(channels) < 2:
            raise ConfigError(f"channels need two convolutions at least, got {tuple(channels)}")
        self.name = name
        blocks = []
        for i, (n_in, n_out) in enumerate(itertools.pairwise((in_channels, *channels))):
            stride = 2 if 0 < i < len(channels) - 1 else 1
            conv = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
            blocks.append(nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.SiLU()))
        self.blocks = nn.ModuleList(blocks)
        self.project = nn.Linear(4 * channels[-1], feature_dim)

    @property
    def factor(self) -> int:
        """How many times smaller the last map's side is."""
        return 2 ** (len(self.blocks) - 2)

    def feature_maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """x (B, C, H, W) in [-1, 1] → one map (B, c_l, h_l, w_l) of each convolution, after its SiLU."""
        if x.ndim != 4 or x.shape[1] != self.config.in_channels or min(x.shape[2:]) < 2 * self.factor:
            raise InputError(
                f"{self.name} measures x of (B, {self.config.in_channels}, H, W) with sides of at least "
                f"{2 * self.factor}, got {tuple(x.shape)}"
            )
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) in [-1, 1] → (B, feature_dim). Call `eval()` first when measuring."""
        return F.silu(self.project(F.adaptive_avg_pool2d(self.feature_maps(x)[-1], 2).flatten(1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The features."""
        return self.features(x)
