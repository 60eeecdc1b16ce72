"""Parameters as tokens: a transformer over pieces of layers, whose cost grows with D and not with D × width.

The article's autoencoder and the later one's linear layer look at all D parameters at once, and stop at 0.3 M. Here
each tensor is cut into tokens of P numbers that never cross from one tensor into the next, nor, where a row is long,
from one unit into the next; all tokens share their weights, and codes for (tensor, row, column) tell them apart.
Weights number O(P·width + layers·width²) whatever D is; activations O(D/P · width) a network.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentia.core.arguments import check_count
from latentia.core.config import register_to_config
from latentia.core.model import ModelMixin
from latentia.core.outputs import Output
from latentia.denoisers.time_and_class import as_times
from latentia.errors import ConfigError, InputError
from latentia.nn.attention import attend
from latentia.nn.checkpointing import CheckpointedBlock, GradientCheckpointing
from latentia.nn.embeddings import TimestepEmbedding, Timesteps, sinusoidal_embedding
from latentia.nn.transformer import FeedForward

TIME_FEATURES = 128


@dataclass(slots=True)
class TokenOutput(Output):
    """`sample` (B, D): the prediction."""

    sample: Tensor


@dataclass(frozen=True)
class TokenGrid:
    """Where each parameter stands among tokens: (B, D) ↔ (B, T, P).

    A tensor (rows, …) is cut row by row: rows longer than P into several tokens each, shorter ones several whole rows
    into one token. A one-dimensional tensor is a single row. What is left of a token is padding: 0 on the way in,
    dropped on the way out.

    Args:
        shapes: of the tensors, in the order of the vector.
        size: P, numbers a token.
    """

    shapes: tuple[tuple[int, ...], ...]
    size: int

    def __post_init__(self) -> None:
        check_count("token size", self.size)
        if not self.shapes or not all(math.prod(shape) for shape in self.shapes):
            raise ConfigError(f"tokens need tensors that are not empty, got shapes {self.shapes}")

    @cached_property
    def index(self) -> Tensor:
        """(T, P) int64: the parameter at each place, or D for padding."""
        return self._cut[0]

    @cached_property
    def place(self) -> Tensor:
        """(D,) int64: the place t·P + p of each parameter."""
        flat = self.index.flatten()
        real = flat < self.num_parameters
        place = torch.empty(self.num_parameters, dtype=torch.int64, device="cpu")
        return place.scatter_(0, flat[real], real.nonzero().flatten())

    @cached_property
    def codes(self) -> Tensor:
        """(T, 3) int64: number of the tensor, first row in it, first column in that row."""
        return self._cut[1]

    @cached_property
    def num_parameters(self) -> int:
        """D."""
        return sum(map(math.prod, self.shapes))

    def split(self, x: Tensor) -> Tensor:
        """(B, D) → (B, T, P)."""
        if x.ndim != 2 or x.shape[1] != self.num_parameters:
            raise InputError(f"expected networks (B, {self.num_parameters}), got {tuple(x.shape)}")
        return F.pad(x, (0, 1))[:, self.index.to(x.device)]

    def join(self, tokens: Tensor) -> Tensor:
        """(B, T, P) → (B, D)."""
        return tokens.flatten(1)[:, self.place.to(tokens.device)]

    @cached_property
    def _cut(self) -> tuple[Tensor, Tensor]:
        """`index` and `codes`, on the CPU even where the default device is another: they say where things are."""
        rows_of_index, codes, start, end = [], [], 0, self.num_parameters
        for number, shape in enumerate(self.shapes):
            rows = shape[0] if len(shape) > 1 else 1
            columns = math.prod(shape) // rows
            together = max(1, self.size // columns)  # whole rows in one token
            for row in range(0, rows, together):
                begin, stop = start + row * columns, start + min(row + together, rows) * columns
                for first in range(begin, stop, self.size):
                    piece = torch.arange(first, min(first + self.size, stop), device="cpu")
                    rows_of_index.append(F.pad(piece, (0, self.size - len(piece)), value=end))
                    codes.append((number, row, first - begin))
            start += rows * columns
        return torch.stack(rows_of_index), torch.tensor(codes, device="cpu")


class Modulated(nn.Module, ABC):
    """x + g·f(LN x·(1 + s) + b) with s, b, g read off a condition; they start at 0, and so does the branch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 3 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, T, C), condition (B, C) → (B, T, C)."""
        scale, shift, gate = self.modulation(condition).unsqueeze(1).chunk(3, dim=-1)
        return x + gate * self.branch(torch.addcmul(shift, self.norm(x), 1 + scale))

    @abstractmethod
    def branch(self, h: Tensor) -> Tensor:
        """f: (B, T, C) → (B, T, C)."""


class Attention(Modulated):
    """Every token looks at all tokens of its network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def branch(self, h: Tensor) -> Tensor:
        """softmax(QKᵀ/√d)·V."""
        q, k, v = self.qkv(h).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out(attend(q, k, v, None, None).transpose(1, 2).flatten(2))
        return out


class Feed(Modulated):
    """Every token by itself."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__(width)
        self.ff = FeedForward(width, expansion)

    def branch(self, h: Tensor) -> Tensor:
        """Linear ∘ GEGLU."""
        out: Tensor = self.ff(h)
        return out


class TokenBlock(CheckpointedBlock):
    """Attention over a network's tokens, then a feed-forward layer, both told the condition.

    Source: adaLN-Zero of W. Peebles, S. Xie, "Scalable Diffusion Models with Transformers", 2023.
    """

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.feed = Feed(width, expansion)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, T, C), condition (B, C) → (B, T, C)."""
        return self.run(self.feed, self.run(self.attention, x, condition), condition)


class ParameterTokenTransformer(GradientCheckpointing, ModelMixin):
    """(θ_t, t, codes) → prediction of the shape of θ_t, a batch of standardised networks (B, D).

    A denoiser of whole networks, or with `num_codes` what turns a network's codes into its weights. The output starts
    at 0: with v-prediction of a variance-preserving scheduler that is the best guess for standardised coordinates
    without any relation, so training starts at the per-coordinate Gaussian.

    Args:
        shapes: of the network's tensors, in the order of its vector (`ParameterLayout.shapes`).
        token_size: P, numbers a token.
        width: C of the transformer.
        num_layers, num_heads: of it.
        expansion: width of the feed-forward layers in units of `width`.
        num_codes: length of the codes (B, num_codes) that it is told; None for none.
        learned_positions: a learned vector for each token besides its sinusoids (T·C more weights, about D).

    Raises `ConfigError` for a width that the heads do not divide, and for empty tensors.
    """

    waves: Tensor
    tensor_number: Tensor

    @register_to_config
    def __init__(
        self,
        shapes: tuple[tuple[int, ...], ...],
        token_size: int = 128,
        width: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        expansion: int = 2,
        num_codes: int | None = None,
        learned_positions: bool = False,
    ) -> None:
        super().__init__()
        if width % num_heads or width % 2:
            raise ConfigError(f"width {width} must be even and divisible by num_heads {num_heads}")
        self.grid = TokenGrid(tuple(tuple(shape) for shape in shapes), token_size)
        tokens = len(self.grid.index)
        self.tensor_code = nn.Embedding(len(shapes), width)
        self.index_code = nn.Linear(2 * TIME_FEATURES, width)
        self.token_code = nn.Parameter(0.02 * torch.randn(tokens, width)) if learned_positions else None
        self.in_proj = nn.Linear(token_size, width)
        self.time_proj = Timesteps(TIME_FEATURES, flip_sin_to_cos=True, freq_shift=0)
        self.time_embedding = TimestepEmbedding(TIME_FEATURES, width)
        self.code_embedding = TimestepEmbedding(num_codes, width) if num_codes else None
        self.blocks = nn.ModuleList(TokenBlock(width, num_heads, expansion) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(width)
        self.out_proj = nn.Linear(width, token_size)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)
        codes = self.grid.codes.to(self.in_proj.weight.device)
        columns = codes[:, 1:].float()
        waves = [sinusoidal_embedding(column, TIME_FEATURES, freq_shift=0.0) for column in columns.unbind(1)]
        self.register_buffer("waves", torch.cat(waves, 1), persistent=False)
        self.register_buffer("tensor_number", codes[:, 0], persistent=False)

    def forward(
        self, sample: Tensor, timestep: Any = 0.0, codes: Tensor | None = None, return_dict: bool = True
    ) -> TokenOutput | tuple[Tensor]:
        """sample (B, D), timestep () or (B,), codes (B, num_codes) → `.sample` (B, D)."""
        t = as_times(timestep, sample)
        condition = self.time_embedding(self.time_proj(t).to(sample.dtype)).expand(len(sample), -1)
        if (codes is None) != (self.code_embedding is None):
            raise InputError("codes must be given exactly when the model has num_codes")
        if self.code_embedding is not None:
            condition = condition + self.code_embedding(codes)
        condition = F.silu(condition)
        h = self.in_proj(self.grid.split(sample)) + self.positions()
        for block in self.blocks:
            h = block(h, condition)
        out = self.grid.join(self.out_proj(self.norm_out(h)))
        return TokenOutput(out) if return_dict else (out,)

    def positions(self) -> Tensor:
        """(T, C): what tells the tokens apart."""
        codes: Tensor = self.tensor_code(self.tensor_number) + self.index_code(self.waves)
        return codes if self.token_code is None else codes + self.token_code


def token_size_for(shapes: Sequence[Sequence[int]], most: int = 1024) -> int:
    """A token size for which about D/P ≈ P/4 tokens come out: a power of two from 16 to `most`."""
    total = sum(math.prod(shape) for shape in shapes)
    return int(min(most, max(16, 2 ** round(math.log2(2 * math.sqrt(max(total, 1)))))))
