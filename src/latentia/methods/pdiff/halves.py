"""The encoders and decoders of `ParameterAutoencoder`: vectors (B, D) ↔ latents (B, c, L), three ways.

An encoder pads its input with zeros, a decoder crops its output, so any D fits.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import nn
from torch.nn import functional as F

from latentia.errors import ConfigError

# v1: instance normalisation ------------------------------------------------------------------------------


def instance_lengths(size: int, kernel: int, depth: int) -> list[int]:
    """Lengths along the encoder of `InstanceEncoder`: the padded one, then that after each block.

    The padded length is the least multiple of kernel^depth that holds `size` and leaves two latent positions.
    """
    grain = kernel**depth
    padded = grain * max(1, -(-size // grain))
    while True:
        lengths = [padded]
        for _ in range(depth):
            lengths.append((lengths[-1] + 2 - kernel + 1 - kernel) // kernel + 1)
        if lengths[-1] >= 2:  # normalising over one position would leave nothing
            return lengths
        padded += grain


class InstanceEncoder(nn.Module):
    """The first edition's encoder: blocks of (act, norm, conv of padding 1, act, norm, conv of stride k), then tanh.

    The first block begins with the normalisation, so that the encoder cannot see a vector's mean and spread.
    """

    def __init__(self, size: int, channels: Sequence[int], kernel: int) -> None:
        super().__init__()
        self.padding = instance_lengths(size, kernel, len(channels))[0] - size
        layers: list[nn.Module] = []
        for before, after in zip([1, *channels], channels):
            layers += [nn.LeakyReLU()] if layers else []
            layers += [nn.InstanceNorm1d(before), nn.Conv1d(before, after, kernel, padding=1)]
            layers += [nn.LeakyReLU(), nn.InstanceNorm1d(after), nn.Conv1d(after, after, kernel, stride=kernel)]
        self.layers = nn.Sequential(*layers, nn.Tanh())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, D) → z (B, c, L) in (−1, 1)."""
        z: torch.Tensor = self.layers(F.pad(x, (0, self.padding)).unsqueeze(1))
        return z


class InstanceDecoder(nn.Module):
    """The first edition's decoder: blocks of (act, norm, transposed conv of stride k, act, norm, conv).

    Each block's last padding is the one that leads back to the encoder's length there (4, 4, 4, 5 at D = 2048).
    """

    def __init__(self, size: int, channels: Sequence[int], kernel: int) -> None:
        super().__init__()
        self.size = size
        lengths = instance_lengths(size, kernel, len(channels) - 1)[::-1]
        layers: list[nn.Module] = []
        length = lengths[0]
        for before, after, wanted in zip(channels, channels[1:], lengths[1:]):
            padding = -(-(wanted - kernel * length + kernel - 1) // 2)
            length = kernel * length + 2 * padding - kernel + 1
            layers += [nn.LeakyReLU(), nn.InstanceNorm1d(before), nn.ConvTranspose1d(before, before, kernel, kernel)]
            layers += [nn.LeakyReLU(), nn.InstanceNorm1d(before), nn.Conv1d(before, after, kernel, padding=padding)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, c, L) → x̂ (B, D)."""
        x: torch.Tensor = self.layers(z)[:, 0, : self.size]
        return x


# v2: batch normalisation and linear layers ---------------------------------------------------------------


class BatchEncoder(nn.Module):
    """The later edition's encoder: blocks of (strided conv, batch norm, leaky ReLU), then two linear layers."""

    def __init__(
        self,
        size: int,
        channels: Sequence[int],
        kernel: int,
        strides: Sequence[int],
        latent_shape: Sequence[int],
        statistics: bool,
    ) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        length = positions(size, strides)
        self.padding = length * prod(strides) - size
        layers: list[nn.Module] = []
        for before, after, stride in zip([1, *channels], channels, strides):
            layers += [nn.Conv1d(before, after, kernel, stride, kernel // 2), _batch_norm(after, statistics)]
            layers += [nn.LeakyReLU()]
        self.layers = nn.Sequential(*layers)
        latent = prod(latent_shape)
        self.linear = nn.Sequential(nn.Linear(channels[-1] * length, latent), nn.Linear(latent, latent))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, D) → z (B, c, L)."""
        h = self.layers(F.pad(x, (0, self.padding)).unsqueeze(1)).flatten(1)
        z: torch.Tensor = self.linear(h).unflatten(1, self.latent_shape)
        return z


class BatchDecoder(nn.Module):
    """The later edition's decoder: a linear layer, blocks of (transposed conv, batch norm, ELU), one conv."""

    def __init__(
        self,
        size: int,
        channels: Sequence[int],
        kernel: int,
        strides: Sequence[int],
        latent_shape: Sequence[int],
        statistics: bool,
    ) -> None:
        super().__init__()
        self.size, self.start = size, (channels[0], positions(size, strides))
        self.linear = nn.Linear(prod(latent_shape), prod(self.start))
        layers: list[nn.Module] = []
        for before, after, stride in zip(channels, [*channels[1:], channels[-1]], strides):
            up = nn.ConvTranspose1d(before, after, kernel, stride, kernel // 2, output_padding=stride - 1)
            layers += [up, _batch_norm(after, statistics), nn.ELU()]
        self.layers = nn.Sequential(*layers, nn.Conv1d(channels[-1], 1, kernel, padding=kernel // 2))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, c, L) → x̂ (B, D)."""
        h = self.linear(z.flatten(1)).unflatten(1, self.start)
        x: torch.Tensor = self.layers(h)[:, 0, : self.size]
        return x


def positions(size: int, strides: Sequence[int]) -> int:
    """Positions left of a vector of `size` after convolutions of these strides, an even number (multiples of 64)."""
    grain = 2 * prod(strides)
    return 2 * -(-size // grain)


def _batch_norm(channels: int, statistics: bool) -> nn.Module:
    return nn.BatchNorm1d(channels, track_running_stats=statistics)


# digits: a straight way beside the convolutions ----------------------------------------------------------


class StraightEncoder(nn.Module):
    """z = Wx + conv(x): one matrix, and beside it strided convolutions whose last layer starts at zero.

    What tells checkpoints of one run apart are a few directions of the whole vector, which a matrix finds in
    seconds, and which convolutions over neighbouring coordinates have no way to see.
    """

    def __init__(
        self, size: int, channels: Sequence[int], kernel: int, strides: Sequence[int], latent_shape: Sequence[int]
    ) -> None:
        super().__init__()
        self.latent_shape = tuple(latent_shape)
        latent = prod(latent_shape)
        self.straight = nn.Linear(size, latent)
        nn.init.normal_(self.straight.weight, std=size**-0.5)  # rows of length 1, almost orthogonal
        length = positions(size, strides)
        self.padding = length * prod(strides) - size
        layers: list[nn.Module] = []
        for before, after, stride in zip([1, *channels], channels, strides):
            layers += [nn.Conv1d(before, after, kernel, stride, kernel // 2), nn.GroupNorm(1, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), _zero(nn.Linear(channels[-1] * length, latent)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, D) → z (B, c, L)."""
        h = self.layers(F.pad(x, (0, self.padding)).unsqueeze(1))
        z: torch.Tensor = self.straight(x).add_(h).unflatten(1, self.latent_shape)
        return z


class StraightDecoder(nn.Module):
    """x̂ = Wz + conv(z): one matrix, and beside it transposed convolutions of which the last starts at zero."""

    def __init__(
        self, size: int, channels: Sequence[int], kernel: int, strides: Sequence[int], latent_shape: Sequence[int]
    ) -> None:
        super().__init__()
        self.size = size
        latent, start = prod(latent_shape), (channels[0], positions(size, strides))
        self.straight = nn.Linear(latent, size)
        nn.init.normal_(self.straight.weight, std=size**-0.5)
        layers: list[nn.Module] = [nn.Linear(latent, prod(start)), nn.Unflatten(1, start)]
        for before, after, stride in zip(channels, [*channels[1:], 1], strides):
            layers.append(nn.ConvTranspose1d(before, after, kernel, stride, kernel // 2, output_padding=stride - 1))
            layers += [nn.GroupNorm(1, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers[:-2])  # nothing follows the last convolution
        _zero(self.layers[-1])

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, c, L) → x̂ (B, D)."""
        flat = z.flatten(1)
        x: torch.Tensor = self.straight(flat).add_(self.layers(flat)[:, 0, : self.size])
        return x


def _zero(layer: nn.Module) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def check_stacks(encoder: Sequence[int], decoder: Sequence[int], strides: Sequence[int], kernel: int) -> None:
    """Raise `ConfigError` for widths and strides that do not make an encoder and a decoder of one depth."""
    if kernel % 2 == 0:
        raise ConfigError(f"kernel_size must be odd, so that lengths divide by the strides, got {kernel}")
    if not len(encoder) == len(decoder) == len(strides) or not encoder:
        raise ConfigError(
            "encoder_channels, decoder_channels and strides must be equally long, "
            f"got {len(encoder)}, {len(decoder)} and {len(strides)} entries"
        )
