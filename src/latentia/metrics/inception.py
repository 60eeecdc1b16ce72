"""The Inception network behind `fid`, as our own module.

Szegedy et al. 2015, arXiv:1512.00567, as Heusel et al. 2017 used it for FID. It differs from the usual
Inception v3 in three ways: 1008 classes, average pools that do not count their padding, and a maximum pool in
the last block. Names of parameters are those of the published PyTorch conversion of the weights.

Verified by tests: the number of parameters against the published 23,834,568 of Inception v3 (1000 classes, no
auxiliary head); the wiring of blocks C and E against a second transcription; blocks A, B and D by their shapes.
Not verified: values with the standard weights, which are not shipped.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from latentia.errors import check_choice

Chain = Sequence[str | tuple[str, str]]
POOLS = ("average", "maximum")


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm (eps 1e-3), ReLU; `padded` keeps the size at stride 1."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int | tuple[int, int], stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(n_in, n_out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(n_out, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n_in, H, W) → (B, n_out, H', W')."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Branches(nn.Module):
    """Parallel chains of convolutions and one pooled branch, concatenated over channels.

    `paths` name the convolutions of each chain in order; a tuple of names at a chain's end forks it, both
    ends are kept. `pool` is `average`, `maximum` or, at stride 2, a maximum pool without a convolution after it.
    """

    def __init__(
        self,
        convolutions: dict[str, ConvNorm],
        paths: Sequence[Chain],
        pool: str = "average",
        pool_stride: int = 1,
    ) -> None:
        super().__init__()
        check_choice("pool", pool, POOLS)
        self.paths, self.pool_kind, self.pool_stride = paths, pool, pool_stride
        for name, convolution in convolutions.items():
            self.add_module(name, convolution)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) → (B, C', H', W')."""
        outputs = []
        for path in self.paths:
            h = x
            for step in path:
                if isinstance(step, tuple):
                    h = torch.cat([self.get_submodule(name)(h) for name in step], dim=1)
                else:
                    h = self.get_submodule(step)(h)
            outputs.append(h)
        return torch.cat([*outputs, self._pooled(x)], dim=1)

    def _pooled(self, x: torch.Tensor) -> torch.Tensor:
        if self.pool_stride == 2:
            return F.max_pool2d(x, 3, stride=2)
        if self.pool_kind == "maximum":
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        return self.get_submodule("branch_pool")(pooled)


def block_a(n_in: int, n_pool: int) -> Branches:
    """35×35: 1×1, 5×5 and double 3×3 branches."""
    convolutions = {
        "branch1x1": ConvNorm(n_in, 64, 1),
        "branch5x5_1": ConvNorm(n_in, 48, 1),
        "branch5x5_2": ConvNorm(48, 64, 5),
        "branch3x3dbl_1": ConvNorm(n_in, 64, 1),
        "branch3x3dbl_2": ConvNorm(64, 96, 3),
        "branch3x3dbl_3": ConvNorm(96, 96, 3),
        "branch_pool": ConvNorm(n_in, n_pool, 1),
    }
    paths = (["branch1x1"], ["branch5x5_1", "branch5x5_2"], [f"branch3x3dbl_{i}" for i in (1, 2, 3)])
    return Branches(convolutions, paths)


def block_b(n_in: int) -> Branches:
    """35×35 → 17×17."""
    convolutions = {
        "branch3x3": ConvNorm(n_in, 384, 3, stride=2, padded=False),
        "branch3x3dbl_1": ConvNorm(n_in, 64, 1),
        "branch3x3dbl_2": ConvNorm(64, 96, 3),
        "branch3x3dbl_3": ConvNorm(96, 96, 3, stride=2, padded=False),
    }
    return Branches(convolutions, (["branch3x3"], [f"branch3x3dbl_{i}" for i in (1, 2, 3)]), pool_stride=2)


def block_c(n_in: int, n_mid: int) -> Branches:
    """17×17: 7×7 convolutions factorised into 1×7 and 7×1."""
    row, column = (1, 7), (7, 1)
    convolutions = {
        "branch1x1": ConvNorm(n_in, 192, 1),
        "branch7x7_1": ConvNorm(n_in, n_mid, 1),
        "branch7x7_2": ConvNorm(n_mid, n_mid, row),
        "branch7x7_3": ConvNorm(n_mid, 192, column),
        "branch7x7dbl_1": ConvNorm(n_in, n_mid, 1),
        "branch7x7dbl_2": ConvNorm(n_mid, n_mid, column),
        "branch7x7dbl_3": ConvNorm(n_mid, n_mid, row),
        "branch7x7dbl_4": ConvNorm(n_mid, n_mid, column),
        "branch7x7dbl_5": ConvNorm(n_mid, 192, row),
        "branch_pool": ConvNorm(n_in, 192, 1),
    }
    double = [f"branch7x7dbl_{i}" for i in range(1, 6)]
    return Branches(convolutions, (["branch1x1"], [f"branch7x7_{i}" for i in (1, 2, 3)], double))


def block_d(n_in: int) -> Branches:
    """17×17 → 8×8."""
    convolutions = {
        "branch3x3_1": ConvNorm(n_in, 192, 1),
        "branch3x3_2": ConvNorm(192, 320, 3, stride=2, padded=False),
        "branch7x7x3_1": ConvNorm(n_in, 192, 1),
        "branch7x7x3_2": ConvNorm(192, 192, (1, 7)),
        "branch7x7x3_3": ConvNorm(192, 192, (7, 1)),
        "branch7x7x3_4": ConvNorm(192, 192, 3, stride=2, padded=False),
    }
    paths = (["branch3x3_1", "branch3x3_2"], [f"branch7x7x3_{i}" for i in (1, 2, 3, 4)])
    return Branches(convolutions, paths, pool_stride=2)


def block_e(n_in: int, pool: str) -> Branches:
    """8×8: branches that end in a fork of 1×3 and 3×1."""
    convolutions = {
        "branch1x1": ConvNorm(n_in, 320, 1),
        "branch3x3_1": ConvNorm(n_in, 384, 1),
        "branch3x3_2a": ConvNorm(384, 384, (1, 3)),
        "branch3x3_2b": ConvNorm(384, 384, (3, 1)),
        "branch3x3dbl_1": ConvNorm(n_in, 448, 1),
        "branch3x3dbl_2": ConvNorm(448, 384, 3),
        "branch3x3dbl_3a": ConvNorm(384, 384, (1, 3)),
        "branch3x3dbl_3b": ConvNorm(384, 384, (3, 1)),
        "branch_pool": ConvNorm(n_in, 192, 1),
    }
    forked: Chain = ["branch3x3_1", ("branch3x3_2a", "branch3x3_2b")]
    double: Chain = ["branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")]
    return Branches(convolutions, (["branch1x1"], forked, double), pool)


class InceptionV3(nn.Module):
    """FID's Inception: x (B, 3, 299, 299) in [-1, 1] → 2048 pooled features; `fc` gives 1008 logits."""

    def __init__(self, num_classes: int = 1008) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_a(192, 32), block_a(256, 64), block_a(288, 64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b, self.Mixed_6c = block_c(768, 128), block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = block_c(768, 160), block_c(768, 192)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b, self.Mixed_7c = block_e(1280, "average"), block_e(2048, "maximum")
        self.fc = nn.Linear(2048, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, 3, H, W) in [-1, 1], H and W at least 75 → (B, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean(dim=(2, 3))
