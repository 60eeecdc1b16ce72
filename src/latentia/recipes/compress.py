"""Pictures of any size through a codec: cut into tiles, encoded, written as tokens, read, decoded, put together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from latentia.codecs.spatial_codec import SpatialCodec
from latentia.codecs.tiling import ramp, tile_starts
from latentia.core.files import write_atomic
from latentia.core.images import from_pil, to_pil
from latentia.core.protocols import Codec, TokenCodec
from latentia.core.rng import sample_generators
from latentia.core.token_file import TokenFile, fingerprint
from latentia.errors import InputError
from latentia.recipes.sources import load_codec, resolve_device

if TYPE_CHECKING:
    from PIL import Image

TILES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Cut:
    """How a picture of height × width is cut: square tiles, the last of a row flush with the edge.

    Attributes:
        height, width: of the picture.
        tile: side of a tile; 0: one piece, padded to a multiple of `grain` by repeating its edge.
        overlap: pixels that neighbours share, 0 ≤ overlap < tile.
        grain: see `tile`.
    """

    height: int
    width: int
    tile: int
    overlap: int
    grain: int = 1

    def __post_init__(self) -> None:
        if self.tile < 0 or not 0 <= self.overlap < max(self.tile, 1):
            raise InputError(
                f"tile {self.tile} with overlap {self.overlap}: expected 0 ≤ overlap < tile, or 0 and 0 for one piece"
            )

    @property
    def padded(self) -> tuple[int, int]:
        """Height and width of what is cut."""
        if self.tile:
            return max(self.height, self.tile), max(self.width, self.tile)
        return self.height + -self.height % self.grain, self.width + -self.width % self.grain

    @property
    def corners(self) -> list[tuple[int, int]]:
        """(top, left) of every tile, from left to right and top to bottom."""
        if not self.tile:
            return [(0, 0)]
        stride = self.tile - self.overlap
        tops, lefts = (tile_starts(side, self.tile, stride) for side in self.padded)
        return [(top, left) for top in tops for left in lefts]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a tile."""
        return (self.tile, self.tile) if self.tile else self.padded

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """x (C, height, width) → tiles (N, C, h, w)."""
        below, right = (to - side for to, side in zip(self.padded, (self.height, self.width)))
        x = torch.nn.functional.pad(x[None], (0, right, 0, below), mode="replicate")[0]
        h, w = self.shape
        return torch.stack([x[:, top : top + h, left : left + w] for top, left in self.corners])

    def join(self, tiles: torch.Tensor) -> torch.Tensor:
        """Tiles (N, C, h, w) → (C, height, width); where they overlap one fades into the other."""
        (height, width), (h, w), corners = self.padded, self.shape, self.corners
        total = tiles.new_zeros(tiles.shape[1], height, width)
        weights = tiles.new_zeros(height, width)
        last_top, last_left = corners[-1]
        for tile, (top, left) in zip(tiles, corners):
            window = torch.outer(
                ramp(h, self.overlap, tiles.device, top > 0, top < last_top),
                ramp(w, self.overlap, tiles.device, left > 0, left < last_left),
            )
            total[:, top : top + h, left : left + w] += tile * window
            weights[top : top + h, left : left + w] += window
        return (total / weights)[:, : self.height, : self.width]


def plan_cut(codec: Codec, height: int, width: int, tile: int | None = None, overlap: int | None = None) -> Cut:
    """How `codec` takes a picture: in tiles of the size that it was trained on.

    A convolutional codec takes it in one piece while no side is more than twice that size: its norms measure the whole
    picture, and on a much larger one they measure what they never saw, which costs colour.

    Args:
        tile: side of a tile; 0 for one piece; None as above.
        overlap: pixels shared by neighbours; None: none, so that no pixel is paid for twice.

    Raises `InputError` for sizes that the codec does not take.
    """
    own = side_of(codec)
    whole = isinstance(codec, SpatialCodec) and max(height, width) <= 2 * own
    tile = (0 if whole else own) if tile is None else tile
    cut = Cut(height, width, tile, overlap or 0, codec.factor if isinstance(codec, SpatialCodec) else own)
    codec.latent_shape((codec.config.in_channels, *cut.shape))
    return cut


def side_of(codec: Codec) -> int:
    """Side of the pictures that a codec learnt from, in pixels."""
    size = codec.config.get("sample_size") or codec.config.image_size  # FlowMo's name for it
    return int(size if isinstance(size, int) else size[0])


def open_codec(folder: str | os.PathLike[str], device: str = "auto") -> Codec:
    """The codec saved in `folder`, ready to work."""
    loaded: Any = load_codec(folder).to(resolve_device(device)).eval().requires_grad_(False)
    codec: Codec = loaded
    return codec


def open_token_codec(folder: str | os.PathLike[str], device: str = "auto") -> TokenCodec:
    """The codec saved in `folder`; raises `InputError` for one without tokens."""
    codec = open_codec(folder, device)
    if not isinstance(codec, TokenCodec):
        raise InputError(
            f"{folder} holds {type(codec).__name__}, whose latents are continuous: only codecs with tokens (VQModel, "
            "FlowMo) make token files; latentia reconstruct takes any codec"
        )
    return codec


def encode_picture(
    codec: TokenCodec, picture: Image.Image, tile: int | None = None, overlap: int | None = None
) -> TokenFile:
    """A picture → its tokens."""
    x, cut = _read(codec, picture, tile, overlap)
    tokens = _in_batches(lambda part, _: codec.to_tokens(_to(part, codec)), cut.split(x))
    return TokenFile(
        *(tokens, codec.num_codes, cut.height, cut.width, len(x), cut.tile, cut.overlap, fingerprint_of(codec))
    )


def decode_tokens(codec: TokenCodec, file: TokenFile, seed: int = 0, name: str = "the token file") -> Image.Image:
    """Tokens → the picture; tile i of a decoder that samples draws from (seed, i).

    Raises `InputError` for tokens of another codec.
    """
    mine = fingerprint_of(codec)
    if file.codec != mine or file.num_codes != codec.num_codes:
        raise InputError(
            f"{name} was made by another codec (fingerprint {file.codec}, {file.num_codes} codes), this one is {mine} "
            f"with {codec.num_codes} codes: decode it with the codec that encoded it"
        )
    cut = plan_cut(codec, file.height, file.width, file.tile, file.overlap)
    rows = sample_generators(seed, range(len(file.tokens)))
    expected = (len(cut.corners), *codec.token_shape((codec.config.in_channels, *cut.shape)))
    if tuple(file.tokens.shape) != expected:
        raise InputError(f"{name} holds tokens of shape {tuple(file.tokens.shape)} where {expected} belong")

    def decode(part: torch.Tensor, at: slice) -> torch.Tensor:
        return codec.from_tokens(part.to(_device(codec)), generator=rows[at]).float().clamp(-1, 1)

    return to_pil(cut.join(_in_batches(decode, file.tokens))[None])[0]


def reconstruct_picture(
    codec: Codec, picture: Image.Image, tile: int | None = None, overlap: int | None = None, seed: int = 0
) -> Image.Image:
    """A picture there and back, in tiles that overlap by a quarter unless said otherwise; any codec."""
    cut = plan_cut(codec, picture.height, picture.width, tile, 0)
    overlap = cut.tile // 4 if overlap is None else overlap
    x, cut = _read(codec, picture, tile, overlap)
    tiles = cut.split(x)
    rows = sample_generators(seed, range(len(tiles)))

    def both(part: torch.Tensor, at: slice) -> torch.Tensor:
        part = _to(part, codec)
        if isinstance(codec, TokenCodec):
            return codec.from_tokens(codec.to_tokens(part), generator=rows[at]).float().clamp(-1, 1)
        there: torch.Tensor = codec(part).sample  # type: ignore[operator]
        return there.float().clamp(-1, 1)

    return to_pil(cut.join(_in_batches(both, tiles))[None])[0]


def fingerprint_of(codec: Codec) -> str:
    """What tells this codec's tokens from another's."""
    assert isinstance(codec, torch.nn.Module)
    config = {name: value for name, value in dict(codec.config).items() if not name.startswith("_")}
    return fingerprint(config, codec.state_dict())


def write_tokens(codec: str, image: Path, out: Path, tile: int | None, overlap: int | None, device: str) -> str:
    """`latentia encode`: returns what to tell."""
    from latentia.recipes.sampling import read_picture

    picture = read_picture(image)
    file = encode_picture(open_token_codec(codec, device), picture, tile, overlap)
    size = file.save(out)
    return (
        f"saved {out}: {size:,} bytes, {file.tokens.numel():,} tokens of {np.log2(file.num_codes):.4g} bits = "
        f"{file.bits:,.0f} bits, {file.bits_per_pixel:.4g} bits a pixel"
    )


def write_decoded(codec: str, tokens: Path, out: Path, seed: int, device: str) -> None:
    """`latentia decode`."""
    file = TokenFile.load(tokens)
    picture = decode_tokens(open_token_codec(codec, device), file, seed, str(tokens))
    _save(picture, out)


def write_reconstruction(
    codec: str, image: Path, out: Path, tile: int | None, overlap: int | None, seed: int, device: str
) -> str:
    """`latentia reconstruct`: returns what to tell."""
    from latentia.metrics.psnr import psnr
    from latentia.recipes.sampling import read_picture

    picture, opened = read_picture(image), open_codec(codec, device)
    back = reconstruct_picture(opened, picture, tile, overlap, seed)
    _save(back, out)
    channels = opened.config.in_channels
    value = float(psnr(from_pil([picture], channels), from_pil([back], channels)))
    told = f"saved {out}: PSNR {value:.2f} dB"
    if isinstance(opened, TokenCodec):
        cut = plan_cut(opened, picture.height, picture.width, tile, 0)
        bits = len(cut.corners) * opened.bits((channels, *cut.shape))
        told += f", {bits / (picture.height * picture.width):.4g} bits a pixel without overlap"
    return told


def _save(picture: Image.Image, out: Path) -> None:
    write_atomic(out, lambda beside: picture.save(beside, format="PNG"))


def _read(codec: Codec, picture: Image.Image, tile: int | None, overlap: int | None) -> tuple[torch.Tensor, Cut]:
    x = from_pil([picture], codec.config.in_channels)[0]
    return x, plan_cut(codec, picture.height, picture.width, tile, overlap)


@torch.no_grad()
def _in_batches(function: Callable[[torch.Tensor, slice], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    parts = [slice(i, i + TILES_AT_ONCE) for i in range(0, len(rows), TILES_AT_ONCE)]
    return torch.cat([function(rows[part], part).cpu() for part in parts])


def _device(codec: Codec) -> torch.device:
    assert isinstance(codec, torch.nn.Module)
    return next(codec.parameters()).device


def _to(x: torch.Tensor, codec: Codec) -> torch.Tensor:
    assert isinstance(codec, torch.nn.Module)
    like = next(codec.parameters())
    return x.to(like.device, like.dtype)
