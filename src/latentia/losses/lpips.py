"""LPIPS: how differently a network trained to recognise objects sees two pictures, calibrated on human judgements.

    d(x, x̂) = Σ_l mean_hw Σ_c w_lc (f̂_lc(x) − f̂_lc(x̂))²,   f̂ the maps after a layer's ReLU, of length 1 at each position

Zhang et al. 2018 (arXiv:1801.03924). Without its weights it is not LPIPS, so nothing is built without.
"""

import torch
from torch import nn

from latentia.errors import InputError, check_choice
from latentia.losses.perceptual_weights import Weights, check_same, lpips_tensors, read_weights

VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
TAPS = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
"""Network → places in torchvision's `features` after which maps are taken: relu1_2 … relu5_3, and relu1 … relu5."""

WIDTHS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}
EPS = 1e-10

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and deviation, (2·0.485 − 1, …) and (2·0.229, …), for x in [-1, 1]; rounded as in the package."""


class LPIPS(nn.Module):
    """x, x̂ (B, 3 or 1, H, W) in [-1, 1] → distances (B,) ≥ 0. Frozen: gradients reach the pictures alone.

    There is no dropout in it (the published heads have one that a parent's `.train()` switches on by mistake), so it is
    the same in training and evaluation.

    Args:
        net: `vgg` (VGG16, for losses) or `alex` (AlexNet, for reporting), as the weights are.
        weights: the trunk (torchvision's file) and the heads (`lpips`' `vgg.pth` or `alex.pth`), or one whole state
            dict; see `losses.perceptual_weights`.

    Raises `UnknownChoiceError` for another net, `ArtifactError` for weights that are missing, incomplete, or of another
    architecture.
    """

    def __init__(self, net: str, weights: Weights) -> None:
        super().__init__()
        check_choice("LPIPS network", net, TAPS)
        self.name = f"lpips-{net}"
        self.taps = TAPS[net]
        with torch.device("meta"):
            self.features = trunk(net)
            self.heads = nn.ParameterList(nn.Parameter(torch.empty(width)) for width in WIDTHS[net])
        given = lpips_tensors(read_weights(weights))
        wanted = self.state_dict()
        check_same(wanted, given, f"LPIPS with net={net!r}", _advice(net))
        self.load_state_dict({name: given[name].float() for name in wanted}, assign=True)
        self.shift: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor, x_hat: torch.Tensor) -> torch.Tensor:
        """Distances (B,) in float32 at least. Raises `InputError` for shapes that differ or pictures too small."""
        check_pictures(x, x_hat, (1, 3), 16 if len(self.features) > 15 else 63)
        total = torch.zeros(len(x), device=x.device)
        for i, (a, b) in enumerate(zip(self._maps(x), self._maps(x_hat), strict=True)):
            total = total + (unit(a) - unit(b)).square().mean((2, 3)) @ self.heads[i]
        return total

    def _maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        h = (x.expand(-1, 3, -1, -1) - self.shift) / self.scale
        maps = []
        for i, layer in enumerate(self.features):
            h = layer(h)
            if i in self.taps:
                maps.append(h)
        return maps


def unit(maps: torch.Tensor) -> torch.Tensor:
    """Maps (B, C, h, w) scaled to length 1 at each position, float32 at least; zeros stay zeros, gradients finite."""
    wide = maps if maps.dtype == torch.float64 else maps.float()
    return wide / (torch.linalg.vector_norm(wide, dim=1, keepdim=True) + EPS)


def check_pictures(x: torch.Tensor, x_hat: torch.Tensor, channels: tuple[int, ...], least: int) -> None:
    """Raise `InputError` unless both are (B, C, H, W) of one shape, these channels, and sides of at least `least`."""
    if x.ndim != 4 or x.shape != x_hat.shape or x.shape[1] not in channels or min(x.shape[2:]) < least:
        wanted = " or ".join(map(str, channels))
        raise InputError(
            f"a perceptual distance needs two tensors (B, {wanted}, H, W) of one shape and sides of at least {least}, "
            f"got {tuple(x.shape)} and {tuple(x_hat.shape)}"
        )


def trunk(net: str) -> nn.Sequential:
    """The convolutions of `vgg` or `alex` under torchvision's numbers, at their random start."""
    return _vgg16() if net == "vgg" else _alexnet()


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    before = 3
    for entry in VGG16:
        if entry == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(before, int(entry), 3, padding=1), nn.ReLU()]
        before = int(entry)
    return nn.Sequential(*layers)


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


def _advice(net: str) -> str:
    trunk = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}[net]
    other = "alex" if net == "vgg" else "vgg"
    return (
        f"net={net!r} needs torchvision's trunk ({trunk}) and the lpips package's heads ({net}.pth), both: "
        f"weights=[TRUNK, HEADS]; for the other architecture say net={other!r}"
    )
