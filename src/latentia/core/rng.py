"""Randomness: one generator per sample, derived from (seed, sample index).

Picture 17 of seed 3 starts from the same noise alone, in a batch of 64, or on the second of two
processes. Noise is drawn on the generator's own device (the CPU by default) and then moved.
"""

import hashlib
import operator
from collections.abc import Iterable, Sequence

import torch

from latentia.errors import InputError

Generators = torch.Generator | Sequence[torch.Generator] | None
"""None (torch's global generator), one generator for the whole batch, or one per sample."""


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any number of integers and strings; equal parts give equal seeds, in every process.

    Integers of numpy and torch count as Python's. Raises `InputError` for any other part.
    """
    try:
        plain = tuple(part if isinstance(part, str) else operator.index(part) for part in parts)
    except TypeError:
        raise InputError(f"a seed is derived from integers and strings, got {parts!r}") from None
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def sample_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """One CPU generator for each sample index of a seed."""
    return [torch.Generator().manual_seed(derive_seed("sample", seed, index)) for index in indices]


def randn(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Standard normal noise of `shape` (batch first) on `device`.

    With a list of generators sample i is drawn from generator i, so it does not depend on its batch.
    Half precisions are drawn in float32 and rounded. Raises `InputError` when the list's length is not the batch size.
    """
    draw = dtype if dtype in (torch.float32, torch.float64) else torch.float32
    if generator is None:
        return torch.randn(tuple(shape), device=device, dtype=draw).to(dtype)
    if isinstance(generator, torch.Generator):
        return torch.randn(tuple(shape), generator=generator, device=generator.device, dtype=draw).to(device, dtype)
    if len(generator) != shape[0]:
        raise InputError(
            f"got {len(generator)} generators for a batch of {shape[0]}: give one generator per sample, or a single one"
        )
    if not generator:
        return torch.empty(tuple(shape), device=device, dtype=dtype)
    rows = [torch.randn(tuple(shape[1:]), generator=g, device=g.device, dtype=draw) for g in generator]
    return torch.stack([row.to(device) for row in rows]).to(dtype)
