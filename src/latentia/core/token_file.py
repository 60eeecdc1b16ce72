"""Token files: the tokens of one picture, packed to the bit, with a small header that says whose they are.

Layout, little-endian: a header of 48 bytes and 4 for each axis of a tile's tokens, then the packed tokens. Tokens of an
alphabet of K = 2^b take b bits each; of any other alphabet a block of tokens is one number in base K, so that n
tokens take n·log2 K bits, rounded up to bytes once a block.
"""

import hashlib
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from latentia.core.config import to_json
from latentia.core.files import write_atomic
from latentia.errors import ArtifactError, InputError

MAGIC, VERSION = b"LTOK", 1
_HEADER = struct.Struct("<4sBBBx8sIIIIIQI")
BLOCK = 256
"""Tokens that share one number where K is no power of two."""


@dataclass(frozen=True, slots=True)
class TokenFile:
    """The tokens of one picture and what is needed to turn them back.

    Attributes:
        tokens: (N, *token_shape) int64, one row a tile, tiles from left to right and top to bottom.
        num_codes: K, tokens are in 0 … K − 1.
        height, width, channels: of the picture.
        tile: side of a tile in pixels; 0: the picture is one piece.
        overlap: pixels that neighbouring tiles share.
        codec: fingerprint of the codec that made them, 16 hexadecimal digits; see `fingerprint`.
    """

    tokens: torch.Tensor
    num_codes: int
    height: int
    width: int
    channels: int
    tile: int
    overlap: int
    codec: str

    @property
    def bits(self) -> float:
        """n·log2 K: what the tokens cost without header and rounding."""
        return self.tokens.numel() * math.log2(self.num_codes)

    @property
    def bits_per_pixel(self) -> float:
        """`bits` over height·width."""
        return self.bits / (self.height * self.width)

    def to_bytes(self) -> bytes:
        """The file. Raises `InputError` for tokens outside 0 … K − 1."""
        flat = self.tokens.reshape(-1).cpu().numpy().astype(np.int64)
        if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < self.num_codes:
            raise InputError(f"tokens run from {flat.min()} to {flat.max()}: expected 0 to {self.num_codes - 1}")
        payload, shape = pack(flat, self.num_codes), self.tokens.shape[1:]
        header = _HEADER.pack(
            *(MAGIC, VERSION, len(shape), self.channels, bytes.fromhex(self.codec)),
            *(self.height, self.width, self.tile, self.overlap, len(self.tokens), self.num_codes, zlib.crc32(payload)),
        )
        return header + struct.pack(f"<{len(shape)}I", *shape) + payload

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "the data") -> "TokenFile":
        """Read what `to_bytes` wrote. Raises `ArtifactError` for what is no token file, cut short or damaged."""
        if data[:4] != MAGIC:
            raise ArtifactError(
                f"{name} is no token file (it does not begin with {MAGIC!r}): latentia encode makes them"
            )
        if len(data) < _HEADER.size:
            raise ArtifactError(
                f"{name} ends after {len(data)} bytes, in its header: it was cut short; encode the picture again"
            )
        fields = _HEADER.unpack_from(data)
        _, version, axes, channels, codec, height, width, tile, overlap, count, num_codes, check = fields
        if version != VERSION:
            raise ArtifactError(f"{name} has version {version} of the token format, this Latentia reads {VERSION}")
        start = _HEADER.size + 4 * axes
        shape = struct.unpack_from(f"<{axes}I", data, _HEADER.size) if len(data) >= start else ()
        total, payload = count * math.prod(shape), data[start:]
        if len(payload) != packed_size(total, num_codes):
            raise ArtifactError(
                f"{name} holds {len(payload)} bytes of tokens where {packed_size(total, num_codes)} belong: "
                "it was cut short or added to"
            )
        if zlib.crc32(payload) != check:
            raise ArtifactError(f"{name} is damaged: its checksum does not fit its tokens")
        tokens = torch.from_numpy(unpack(payload, total, num_codes)).reshape(count, *shape)
        return cls(tokens, num_codes, height, width, channels, tile, overlap, codec.hex())

    def save(self, path: Path) -> int:
        """Write the file; returns its size in bytes."""
        data = self.to_bytes()

        def write(beside: Path) -> None:
            beside.write_bytes(data)

        write_atomic(Path(path), write)
        return len(data)

    @classmethod
    def load(cls, path: Path) -> "TokenFile":
        """Read a file that `save` wrote; raises as `from_bytes`."""
        return cls.from_bytes(Path(path).read_bytes(), str(path))


def pack(tokens: np.ndarray, num_codes: int) -> bytes:
    """Tokens (n,) in 0 … K − 1 → `packed_size(n, K)` bytes."""
    width = _bits(num_codes)
    if width is not None:
        bits = (tokens[:, None] >> np.arange(width)) & 1
        return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()
    blocks = (tokens[i : i + BLOCK].tolist() for i in range(0, len(tokens), BLOCK))
    return b"".join(
        _number(block, num_codes).to_bytes(packed_size(len(block), num_codes), "little") for block in blocks
    )


def unpack(data: bytes, count: int, num_codes: int) -> np.ndarray:
    """The `count` tokens that `pack` packed, int64."""
    width = _bits(num_codes)
    if width is not None:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width, bitorder="little")
        weights = np.int64(1) << np.arange(width, dtype=np.int64)
        return (bits.reshape(count, width).astype(np.int64) * weights).sum(1)
    tokens: list[int] = []
    at = 0
    while len(tokens) < count:
        size = min(BLOCK, count - len(tokens))
        length = packed_size(size, num_codes)
        number = int.from_bytes(data[at : at + length], "little")
        at += length
        for _ in range(size):
            number, digit = divmod(number, num_codes)
            tokens.append(digit)
    return np.array(tokens, dtype=np.int64)


def packed_size(count: int, num_codes: int) -> int:
    """Bytes that `count` tokens take: ⌈n·log2 K / 8⌉, rounded up once a block where K is no power of two."""
    width = _bits(num_codes)
    if width is not None:
        return (count * width + 7) // 8
    whole, rest = divmod(count, BLOCK)
    return whole * _bytes(BLOCK, num_codes) + _bytes(rest, num_codes)


def fingerprint(config: Mapping[str, object], weights: Mapping[str, torch.Tensor]) -> str:
    """16 hexadecimal digits that tell codecs apart: a hash of the config and of a few numbers of every tensor."""
    digest = hashlib.sha256(to_json(dict(config)).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().flatten()
        some = tensor[torch.linspace(0, len(tensor) - 1, min(len(tensor), 64)).long()].double().cpu()
        digest.update(f"{name}{tuple(weights[name].shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


def _bits(num_codes: int) -> int | None:
    """b where K = 2^b, else None."""
    if num_codes < 1:
        raise ArtifactError(f"an alphabet of {num_codes} codes: a token file needs at least 1")
    return num_codes.bit_length() - 1 if num_codes & (num_codes - 1) == 0 else None


def _bytes(count: int, num_codes: int) -> int:
    return ((num_codes**count - 1).bit_length() + 7) // 8


def _number(block: list[int], num_codes: int) -> int:
    number = 0
    for token in reversed(block):
        number = number * num_codes + token
    return number
