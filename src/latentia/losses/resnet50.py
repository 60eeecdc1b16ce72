"""ResNet-50 under torchvision's names: what FlowMo and MaskBit compare the logits of."""

import torch
from torch import nn

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
"""Blocks and inner width of each stage; a block's output is four times as wide."""


class Bottleneck(nn.Module):
    """1×1, 3×3 (with the stride, as torchvision's version 1.5), 1×1, each with batch norm, beside a shortcut."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after)
        shortcut = (nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        self.downsample = nn.Sequential(*shortcut) if stride != 1 or before != after else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, before, h, w) → (B, 4·width, h/stride, w/stride)."""
        h = torch.relu(self.bn1(self.conv1(x)))
        h = torch.relu(self.bn2(self.conv2(h)))
        return torch.relu(self.bn3(self.conv3(h)) + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """x (B, 3, 224, 224), normalised as ImageNet is, → logits (B, num_classes) (He et al. 2016); 25,557,032 weights."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        before = 64
        for number, (blocks, width) in enumerate(STAGES, start=1):
            stride = 1 if number == 1 else 2
            stage = [Bottleneck(before if i == 0 else 4 * width, width, stride if i == 0 else 1) for i in range(blocks)]
            self.add_module(f"layer{number}", nn.Sequential(*stage))
            before = 4 * width
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        h = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for number in range(1, len(STAGES) + 1):
            h = self.get_submodule(f"layer{number}")(h)
        return self.fc(h.mean((2, 3)))
