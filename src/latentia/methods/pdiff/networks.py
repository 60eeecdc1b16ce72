"""The small networks whose weights are generated: plain modules from (B, C, S, S) images to class logits."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import nn

from latentia.core.arguments import check_count
from latentia.errors import InputError, check_choice


class MLP3(nn.Module):
    """Three linear layers with ReLU between: (B, C, S, S) → logits (B, classes).

    The article's MLP-3 is `size=32, channels=3`: 3072-50-25-10, 155,185 parameters; the default, for 8×8 digits, has
    4,785.
    """

    def __init__(self, size: int = 8, channels: int = 1, hidden: tuple[int, int] = (50, 25), classes: int = 10) -> None:
        super().__init__()
        first, second = _counts(hidden=hidden)
        size, channels, classes = _counts(sizes=(size, channels, classes))
        self.linear1 = nn.Linear(channels * size * size, first)
        self.linear2 = nn.Linear(first, second)
        self.linear3 = nn.Linear(second, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, S, S) → logits (B, classes)."""
        h = F.relu(self.linear1(x.flatten(1)))
        return self.linear3(F.relu(self.linear2(h)))


class ConvNet3(nn.Module):
    """Three 3×3 convolutions with ReLU, 2×2 max pooling after the first two, and one linear layer.

    The article's ConvNet-3 is `size=32, channels=3, width=32`: linear layer 2048→10, 39,882 parameters; the default,
    for 8×8 digits, has 1,578.
    """

    def __init__(self, size: int = 8, channels: int = 1, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        size, channels, width, classes = _counts(sizes=(size, channels, width, classes))
        if size % 4:
            raise InputError(f"ConvNet3 halves the image twice: size must be a multiple of 4, got {size}")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.linear = nn.Linear(width * (size // 4) ** 2, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, S, S) → logits (B, classes)."""
        h = F.max_pool2d(F.relu(self.conv1(x)), 2)
        h = F.max_pool2d(F.relu(self.conv2(h)), 2)
        return self.linear(F.relu(self.conv3(h)).flatten(1))


class ResNetDigits(nn.Module):
    """A ResNet with BatchNorm in the style for small images: 3×3 stem, basic blocks, stages that halve and widen.

    Names are torchvision's (`conv1`, `bn1`, `layer1.0.conv1`, …, `layer3.1.bn2`, `fc`). The paper's CIFAR ResNet-18 is
    `width=64, blocks=(2, 2, 2, 2), channels=3`; the default, for digits, has 174,970 parameters, of which the last two
    BatchNorm layers (`layer3.1.bn1`, `layer3.1.bn2`) hold 256. `width=4, blocks=(1, 1)` has 1,382 in all.

    Args:
        channels: of the image.
        width: channels of the first stage; each later stage has twice as many.
        blocks: basic blocks in each stage.
        classes: length of the logits.

    Source: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2.
    """

    def __init__(
        self, channels: int = 1, width: int = 16, blocks: tuple[int, ...] = (2, 2, 2), classes: int = 10
    ) -> None:
        super().__init__()
        channels, width, classes = _counts(sizes=(channels, width, classes))
        blocks = _counts(blocks=blocks)
        if not blocks:
            raise InputError("ResNetDigits needs at least one stage: give blocks such as (2, 2, 2)")
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.stages = len(blocks)
        planes = width
        for stage, count in enumerate(blocks):
            wide = width * 2**stage
            first = BasicBlock(planes, wide, stride=2 if stage else 1)
            self.add_module(
                f"layer{stage + 1}", nn.Sequential(first, *(BasicBlock(wide, wide) for _ in range(count - 1)))
            )
            planes = wide
        self.fc = nn.Linear(planes, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C, S, S) → logits (B, classes)."""
        h = F.relu(self.bn1(self.conv1(x)))
        for stage in range(self.stages):
            h = self.get_submodule(f"layer{stage + 1}")(h)
        return self.fc(h.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and the identity around them, or a 1×1 convolution to another shape."""

    def __init__(self, planes: int, wide: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes, wide, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or planes != wide:
            self.downsample = nn.Sequential(nn.Conv2d(planes, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, planes, H, W) → (B, wide, H / stride, W / stride)."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.downsample(x))


NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"mlp3": MLP3, "convnet3": ConvNet3, "resnet": ResNetDigits}
)
"""Name → class, for recipes."""


def build(name: str, **sizes: object) -> nn.Module:
    """A new network by its name in `NETWORKS`, initialised from torch's global generator.

    Raises `UnknownChoiceError` for another name, `InputError` for sizes that are not whole numbers above 0.
    """
    check_choice("network", name, NETWORKS)
    return NETWORKS[name](**sizes)


def norm_layers(network: nn.Module) -> list[str]:
    """Paths of the affine normalisation layers in the order of the module tree: patterns for `ParameterLayout.select`.

    `norm_layers(network)[-2:]` are the article's "last two BN layers"; norms of downsample paths are left out.
    """
    kinds = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
    return [
        path
        for path, module in network.named_modules()
        if isinstance(module, kinds) and "downsample" not in path.split(".")
    ]


def _counts(**named: Sequence[int]) -> tuple[int, ...]:
    ((name, values),) = named.items()
    return tuple(check_count(name, value) for value in values)
