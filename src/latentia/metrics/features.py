"""Feature networks, the rulers: wrap any module, or measure on plain pixels; run one over a whole set."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from latentia.core.arguments import check_count
from latentia.core.evaluating import evaluating
from latentia.core.protocols import Dataset, FeatureNetwork
from latentia.errors import InputError, NonFiniteError

Images = torch.Tensor | Dataset
"""Images to measure: a tensor (N, C, H, W) in [-1, 1], or a dataset whose batches hold it under `x`."""


class ModuleFeatures:
    """Any module (B, C, H, W) → (B, D) or (B, D, h, w) as a ruler; a map is averaged over its positions.

    Args:
        name: names the ruler in every metric measured on it.
        module: the network; it is switched to evaluation mode and used without gradients.
        prepare: applied to `x` first (resize, renormalise), or None.
    """

    def __init__(
        self, name: str, module: nn.Module, prepare: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> None:
        self.name = name
        self.module = module.eval()
        self.prepare = prepare

    @torch.no_grad()
    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) in [-1, 1] → features (B, D)."""
        out = self.module(x if self.prepare is None else self.prepare(x))
        if not isinstance(out, torch.Tensor) or out.ndim not in (2, 4):
            shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
            raise InputError(f"feature module {self.name!r} must return (B, D) or (B, D, h, w), got {shape}")
        return out.mean(dim=(2, 3)) if out.ndim == 4 else out


class PixelFeatures:
    """The pixels themselves, flattened: the ruler of the nearest-training-image distance.

    With `size` the images are first resized to size×size (bilinear, antialiased). Named `pixels` or `pixels<size>`.
    """

    def __init__(self, size: int | None = None) -> None:
        if size is not None and size < 1:
            raise InputError(f"size must be at least 1, got {size}")
        self.size = size
        self.name = "pixels" if size is None else f"pixels{size}"

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, H, W) → (B, C·H·W), after resizing."""
        if self.size is not None and x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        return x.flatten(1)


@torch.no_grad()
def extract(
    network: FeatureNetwork, images: Images, batch_size: int = 256, device: torch.device | str | None = None
) -> torch.Tensor:
    """Features (N, D) float32 on the CPU of all `images`, `batch_size` at a time.

    `device` is where the network runs; None: where its parameters are. An `nn.Module` is measured in
    evaluation mode and left in the mode it had.
    Raises `InputError` for no images or features of a wrong shape, `NonFiniteError` for NaN or infinite ones.
    """
    total = len(images)
    check_count("batch_size", batch_size)
    where = device_of(network) if device is None else device
    if total == 0:
        raise InputError(f"no images to measure with {network.name!r}")
    with evaluating([network]):
        rows = [
            network.features(batch_of(images, range(start, min(start + batch_size, total))).to(where)).float().cpu()
            for start in range(0, total, batch_size)
        ]
    features = torch.cat(rows)
    if features.ndim != 2 or len(features) != total:
        raise InputError(
            f"{network.name!r} gave features {tuple(features.shape)} for {total} images: want ({total}, D)"
        )
    if not bool(torch.isfinite(features).all()):
        bad = torch.nonzero(~torch.isfinite(features).all(1)).flatten().tolist()
        raise NonFiniteError(f"{network.name!r} gave NaN or infinity for {len(bad)} of {total} images, first {bad[:5]}")
    return features


def batch_of(images: Images, indices: Sequence[int]) -> torch.Tensor:
    """The images at `indices` of a tensor or a dataset."""
    if isinstance(images, torch.Tensor):
        return images[torch.as_tensor(indices)]
    return images.batch(indices)["x"]


def device_of(network: object) -> torch.device:
    """Device of a network's first parameter; the CPU when it has none."""
    module = network.module if isinstance(network, ModuleFeatures) else network
    first = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    return torch.device("cpu") if first is None else first.device
