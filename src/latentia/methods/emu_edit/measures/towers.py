"""SceneTowers: pictures and captions of the scenes in one space; what stands in for CLIP where there are no weights."""

import hashlib
import itertools
import math
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from latentia.core.arguments import check_counts
from latentia.core.config import register_to_config
from latentia.core.images import to_uint8
from latentia.core.model import ModelMixin
from latentia.data.decode import to_unit
from latentia.errors import ConfigError, InputError

_WORD = re.compile(r"[a-z]+|\d|[^\sa-z\d]")

LARGEST_SCALE = 100.0
"""Largest factor of the cosines while training, as in CLIP."""


@lru_cache(maxsize=65536)
def word_number(word: str, vocab_size: int) -> int:
    """A number from 1 to `vocab_size` − 1 for any word, the same in every process; 0 is nobody's."""
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % (vocab_size - 1)


class SceneTowers(ModelMixin):
    """Picture → z, caption → z, alike when they belong together (Radford et al. 2021, at the size of the scenes).

    Pictures: strided 3×3 convolutions with batch norm, then mean and greatest value of the last map, then a linear
    map. Captions: words by a hash (so any text can be measured), two convolutions over three neighbouring words (that
    bind a colour to its shape), mean and greatest value, a linear map. Pictures of another size are resized first.

    Args:
        name: names the extractor, `clip_dir[<name>]`.
        size: side of the pictures it sees.
        channels: width of each convolution of the pictures' tower; the first three halve the side.
        feature_dim: length of z.
        vocab_size: table of words; two words may share a row.
        word_dim, text_channels: widths of the captions' tower.
        max_words: longer captions are cut.

    Raises `ConfigError` for sizes that make no network.
    """

    @register_to_config
    def __init__(
        self,
        name: str = "scenes",
        size: int = 64,
        channels: tuple[int, ...] = (24, 48, 96, 128),
        feature_dim: int = 128,
        vocab_size: int = 2048,
        word_dim: int = 64,
        text_channels: int = 128,
        max_words: int = 48,
    ) -> None:
        super().__init__()
        counts = ("size", "channels", "feature_dim", "vocab_size", "word_dim", "text_channels", "max_words")
        check_counts(self.config, counts)
        if len(channels) < HALVINGS or size < 2**HALVINGS or vocab_size < 2:
            raise ConfigError(
                f"towers need {HALVINGS} convolutions, a size of {2**HALVINGS} and a vocabulary of 2 at least, got "
                f"{len(channels)}, {size} and {vocab_size}"
            )
        self.name = name
        self.digest: str | None = None
        blocks = []
        for i, (n_in, n_out) in enumerate(itertools.pairwise((3, *channels))):
            conv = nn.Conv2d(n_in, n_out, 3, 2 if i < HALVINGS else 1, padding=1, bias=False)
            blocks.append(nn.Sequential(conv, nn.BatchNorm2d(n_out), nn.SiLU()))
        self.blocks = nn.Sequential(*blocks)
        self.image_head = nn.Linear(2 * channels[-1], feature_dim)
        self.words = nn.Embedding(vocab_size, word_dim, padding_idx=0)
        self.text_convs = nn.ModuleList(nn.Conv1d(n, text_channels, 3, padding=1) for n in (word_dim, text_channels))
        self.text_head = nn.Linear(2 * text_channels, feature_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))

    @property
    def scale(self) -> torch.Tensor:
        """What cosines are multiplied with while training: learnt, at most `LARGEST_SCALE`."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def trunk(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, 3, size, size) in [-1, 1] → mean and greatest value of the last map, (B, 2·channels)."""
        h = self.blocks(x.contiguous(memory_format=torch.channels_last))
        return torch.cat([h.mean(dim=(2, 3)), h.amax(dim=(2, 3))], dim=1)

    def image_features(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, 3, size, size) in [-1, 1] → z (B, feature_dim)."""
        return self.image_head(self.trunk(x))

    def text_features(self, words: torch.Tensor) -> torch.Tensor:
        """Numbers of words (B, L), 0 where there is none → z (B, feature_dim)."""
        there = (words > 0)[:, None]
        h = self.words(words).transpose(1, 2)
        for i, conv in enumerate(self.text_convs):
            made = F.silu(conv(h)) * there
            h = made if i == 0 else h + made
        mean = h.sum(2) / there.sum(2).clamp(min=1)
        return self.text_head(torch.cat([mean, h.masked_fill(~there, 0).amax(2)], dim=1))

    def word_numbers(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts → (B, max_words) int64, 0 after the last word."""
        size, longest = self.config.vocab_size, self.config.max_words
        rows = [[word_number(word, size) for word in _WORD.findall(text.lower())[:longest]] for text in texts]
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], dtype=torch.int64).view(-1, longest)

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, 3, H, W) in [-1, 1] of any size → z (B, feature_dim). Call `eval()` first when measuring."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise InputError(f"{self.name} measures pictures (B, 3, H, W), got {tuple(x.shape)}")
        return self.image_features(self._sized(x))

    def pictures(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Pictures uint8 (H, W, 3), each of its own size → z (B, feature_dim)."""
        return self.image_features(self._stack(pictures))

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """B texts → z (B, feature_dim)."""
        return self.text_features(self.word_numbers(texts).to(self.device))

    def too_long(self, text: str) -> bool:
        """Whether words of the text are cut off."""
        return len(_WORD.findall(text.lower())) > self.config.max_words

    def forward(self, x: torch.Tensor, words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both towers, each z of length 1."""
        return F.normalize(self.image_features(x), dim=1), F.normalize(self.text_features(words), dim=1)

    def _stack(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        tensors = [to_unit(torch.from_numpy(np.array(p)).movedim(-1, 0))[None] for p in pictures]
        return torch.cat([self._sized(x.to(self.device)) for x in tensors])

    def _sized(self, x: torch.Tensor) -> torch.Tensor:
        side = self.config.size
        if x.shape[-2:] == (side, side):
            return x
        return F.interpolate(x, size=(side, side), mode="bilinear", antialias=True)


class SceneTrunk:
    """The pictures' tower alone, before its last linear map: what stands in for DINO, under the towers' name."""

    def __init__(self, towers: SceneTowers) -> None:
        self.towers, self.name = towers, towers.name
        self.digest: str | None = None

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, 3, H, W) in [-1, 1] → (B, 2·channels)."""
        return self.pictures(list(to_uint8(x)))

    def pictures(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Pictures uint8 (H, W, 3), each of its own size → (B, 2·channels)."""
        return self.towers.trunk(self.towers._stack(pictures))


HALVINGS = 3
"""Convolutions of stride 2."""
