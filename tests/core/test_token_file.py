"""Token files: every bit accounted for, and what is wrong with a file is said."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentia.core.token_file import BLOCK, TokenFile, fingerprint, pack, packed_size, unpack
from latentia.errors import ArtifactError, InputError

CODEC = "0123456789abcdef"


@given(st.integers(1, 2**40), st.integers(0, 700), st.integers(0, 2**31))
def test_tokens_of_any_alphabet_come_back(num_codes, count, seed):
    tokens = np.random.default_rng(seed).integers(0, num_codes, count)
    data = pack(tokens, num_codes)
    assert len(data) == packed_size(count, num_codes)
    assert np.array_equal(unpack(data, count, num_codes), tokens)


@pytest.mark.parametrize(("count", "num_codes"), [(64, 512), (16, 256), (1024, 1000), (10, 3), (BLOCK, 7)])
def test_size_is_the_stated_bits(count, num_codes):
    bits = count * math.log2(num_codes)
    blocks = math.ceil(count / BLOCK)
    assert bits / 8 <= packed_size(count, num_codes) + 1e-9 < bits / 8 + max(blocks, 1)


def test_nine_bits_by_hand():
    assert pack(np.array([1, 511]), 512) == bytes([0b00000001, 0b11111110, 0b00000011])


def file(**changed):
    tokens = torch.arange(24).reshape(2, 3, 4)
    return TokenFile(**({"tokens": tokens, "num_codes": 100, "height": 30, "width": 40, "channels": 3} | {"tile": 20}
                        | {"overlap": 4, "codec": CODEC} | changed))  # fmt: skip


def test_round_trip_through_a_file(tmp_path):
    size = file().save(tmp_path / "a.tokens")
    back = TokenFile.load(tmp_path / "a.tokens")
    assert torch.equal(back.tokens, file().tokens)
    assert (back.height, back.width, back.channels, back.tile, back.overlap) == (30, 40, 3, 20, 4)
    assert back.codec == CODEC
    assert back.num_codes == 100
    assert size == (tmp_path / "a.tokens").stat().st_size == 48 + 2 * 4 + packed_size(24, 100)
    assert back.bits == pytest.approx(24 * math.log2(100))
    assert back.bits_per_pixel == pytest.approx(24 * math.log2(100) / 1200)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"PNG!" + data[4:], "no token file"),
        (lambda data: data[:3], "no token file"),
        (lambda data: data[:20], "ends after 20 bytes, in its header: it was cut short"),
        (lambda data: data[:50], "cut short"),
        (lambda data: data[:-1], "cut short"),
        (lambda data: data + b"x", "added to"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "damaged"),
        (lambda data: data[:4] + b"\x09" + data[5:], "version 9"),
    ],
)
def test_broken_files_say_what_is_wrong(change, says):
    with pytest.raises(ArtifactError, match=says):
        TokenFile.from_bytes(change(file().to_bytes()))


def test_tokens_outside_the_alphabet_are_refused():
    with pytest.raises(InputError, match="0 to 22"):
        file(num_codes=23).to_bytes()


def test_fingerprint_tells_weights_and_configs_apart():
    weights = {"a": torch.arange(1000.0).reshape(10, 100), "b": torch.zeros(3, dtype=torch.int64)}
    own = fingerprint({"x": 1}, weights)
    assert len(bytes.fromhex(own)) == 8
    assert own == fingerprint({"x": 1}, {name: value.clone() for name, value in weights.items()})
    assert own != fingerprint({"x": 2}, weights)
    assert own != fingerprint({"x": 1}, weights | {"a": weights["a"] * 1.01})
    assert own != fingerprint({"x": 1}, weights | {"a": weights["a"].reshape(100, 10)})
