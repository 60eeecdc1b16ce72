"""Pretext tasks: what a feature network learns from pictures alone, in a minute, to see as a ruler or a loss needs to.

Both judge tiles by what is in them, down to the grain; neither is told which pictures a codec made.
"""

import torch
import torch.nn.functional as F
from torch import nn

from latentia.core.arguments import check_count, check_number
from latentia.core.protocols import Batch
from latentia.metrics.photo_features import PhotoFeatures
from latentia.training.objective import Loss, Objective, take

SHIFT = 1 / 8
"""Largest shift of a view, as a share of the picture's side."""

DAMAGES = ("none", "blur", "noise", "blocks", "few colours")


class InstanceObjective(Objective):
    """Tell pictures apart: two views of one picture are alike, those of all others in the batch are not.

        total = mean_i −ln( exp(s_ij/τ) / Σ_{k≠i} exp(s_ik/τ) ),   s the cosine of the projected features, j i's twin

    (NT-Xent, Chen et al. 2020, SimCLR.) A view is shifted by up to an eighth of the side, mirrored, and changed in
    brightness, contrast and colour, but never blurred: sharpness and grain stay telling.

    Args:
        network: trained.
        temperature: τ > 0.
        projection: width of the head that is thrown away.

    Part: `accuracy`, how often the twin is the nearest. Reads `x` from the batch.
    """

    def __init__(self, network: PhotoFeatures, temperature: float = 0.2, projection: int = 64) -> None:
        super().__init__()
        self.network = network
        self.temperature = check_number("temperature", temperature, low=0, open_low=True)
        width = network.config.feature_dim
        self.head = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, check_count("size", projection)))

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        x = take(batch, "x")
        views = torch.cat([view(x), view(x)])
        z = F.normalize(self.head(self.network.features(views)).float(), dim=1)
        scores = z @ z.T / self.temperature
        scores.fill_diagonal_(float("-inf"))
        twins = torch.arange(len(views), device=x.device).roll(len(x))
        accuracy = (scores.detach().argmax(1) == twins).float().mean()
        return Loss(F.cross_entropy(scores, twins), {"accuracy": accuracy})


class DamageObjective(Objective):
    """Tell of a picture what was done to it, how it is turned, and where it is from: three cross entropies, summed.

    Each picture is shifted, mirrored and recoloured as in `InstanceObjective`, turned by 0, 90, 180 or 270 degrees, and
    left as it is or damaged: blurred, made noisy, made of 4×4 blocks, or reduced to few colours, each more or less.

    Args:
        network: trained.
        num_labels: classes of `label` (photographs, digits); 0 when there are none.

    Parts: `damage`, `turned` and, with labels, `label`: accuracies. Reads `x` (square) and `label` from the batch.
    """

    def __init__(self, network: PhotoFeatures, num_labels: int = 0) -> None:
        super().__init__()
        self.network, self.num_labels = network, check_count("num_labels", num_labels, least=0)
        self.head = nn.Linear(network.config.feature_dim, len(DAMAGES) + 4 + num_labels)

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        x = view(take(batch, "x"))
        count, device = len(x), x.device
        turned = torch.randint(4, (count,), device=device)
        damage = torch.randint(len(DAMAGES), (count,), device=device)
        x = damaged(turn_by(x, turned), damage)
        logits = self.head(self.network.features(x)).float()
        said = logits.split([len(DAMAGES), 4, self.num_labels], dim=1)
        targets = {"damage": damage, "turned": turned}
        if self.num_labels:
            targets["label"] = take(batch, "label")
        total, parts = logits.new_zeros(()), {}
        for (name, target), scores in zip(targets.items(), said):
            total = total + F.cross_entropy(scores, target)
            parts[name] = (scores.detach().argmax(1) == target).float().mean()
        return Loss(total, parts)


def view(x: torch.Tensor) -> torch.Tensor:
    """x (B, C, H, W) in [-1, 1] → the same pictures, each shifted, mirrored and recoloured at random; in [-1, 1]."""
    count, channels, height, width = x.shape
    device = x.device
    reach = max(1, round(min(height, width) * SHIFT))
    padded = F.pad(x, (reach,) * 4, mode="reflect")
    tops, lefts = torch.randint(2 * reach + 1, (2, count), device=device)
    columns = torch.arange(width, device=device).expand(count, width)
    mirrored = torch.rand(count, 1, device=device) < 0.5
    columns = torch.where(mirrored, width - 1 - columns, columns) + lefts[:, None]
    rows = torch.arange(height, device=device) + tops[:, None]
    batch = torch.arange(count, device=device)[:, None, None]
    moved = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    contrast = 0.7 + 0.6 * torch.rand(count, 1, 1, 1, device=device)
    colour = 0.3 * (torch.rand(count, channels, 1, 1, device=device) - 0.5)
    light = 0.4 * (torch.rand(count, 1, 1, 1, device=device) - 0.5)
    return (moved * contrast + light + colour * (channels > 1)).clamp(-1, 1)


def turn_by(x: torch.Tensor, quarters: torch.Tensor) -> torch.Tensor:
    """Square x (B, C, S, S), each turned by its own number of quarters (B,) in 0 … 3."""
    out = x.clone()
    for k in (1, 2, 3):
        rows = quarters == k
        out[rows] = torch.rot90(x[rows], k, (2, 3))
    return out


def damaged(x: torch.Tensor, kind: torch.Tensor) -> torch.Tensor:
    """x (B, C, H, W), each damaged in its own way, an index (B,) into `DAMAGES`, at a random strength."""
    strength = torch.rand(len(x), 1, 1, 1, device=x.device)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)
    blocks = F.interpolate(F.avg_pool2d(x, 4, ceil_mode=True), scale_factor=4.0)[..., : x.shape[2], : x.shape[3]]
    levels = 3 + 5 * (1 - strength)
    few = ((x + 1) / 2 * levels).round() / levels * 2 - 1
    noisy = (x + (0.03 + 0.17 * strength) * torch.randn_like(x)).clamp(-1, 1)
    mix = 0.4 + 0.6 * strength
    choices = (x, torch.lerp(x, blurred, mix), noisy, torch.lerp(x, blocks, mix), few)
    return torch.stack(choices)[kind, torch.arange(len(x), device=x.device)]
