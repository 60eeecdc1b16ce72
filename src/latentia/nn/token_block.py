"""Transformer blocks over sequences of tokens, with a memory of past keys and values."""

import torch
from torch import nn
from torch.nn import functional as F

from latentia.errors import ConfigError
from latentia.nn.checkpointing import CheckpointedBlock


class KeyValueMemory:
    """Keys and values of the positions seen so far, one pair of buffers a block; written in place, read as views.

    Args:
        blocks: how many blocks there are.
        capacity: most positions that it holds.

    Attributes:
        length: positions held.
    """

    def __init__(self, blocks: int, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.buffers: list[torch.Tensor | None] = [None] * blocks

    def extend(self, block: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append k, v (B, heads, n, d) of a block; all that it holds now. `advance` makes them count."""
        batch, heads, count, width = k.shape
        buffer = self.buffers[block]
        if buffer is None:  # only now dtype and device are known, under autocast too
            buffer = self.buffers[block] = k.new_empty(2, batch, heads, self.capacity, width)
        end = self.length + count
        buffer[0, :, :, self.length : end] = k
        buffer[1, :, :, self.length : end] = v
        return buffer[0, :, :, :end], buffer[1, :, :, :end]

    def advance(self, count: int) -> None:
        """`count` more positions have passed all blocks."""
        self.length += count


class TokenBlock(nn.Module):
    """x + attention(LN x), then + MLP(LN x): a pre-norm transformer block (B, N, C) → (B, N, C).

    Args:
        width: C.
        heads: attention heads, a divisor of C.
        mlp_ratio: width of the MLP's inside over C.
        dropout: of both branches and of the attention's weights.
        causal: position i sees positions up to i only.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, dropout: float = 0.0, causal: bool = False
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"{heads} heads do not divide a width of {width}: give a divisor")
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = int(width * mlp_ratio)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor, memory: KeyValueMemory | None = None, index: int = 0) -> torch.Tensor:
        """x (B, N, C) → (B, N, C).

        Args:
            x: the tokens; with `memory` those that follow the remembered ones.
            memory: past keys and values; the new ones are written to it.
            index: number of this block in `memory`.
        """
        batch, count, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        fresh = memory is None or memory.length == 0
        if memory is not None:
            k, v = memory.extend(index, k, v)
        mask = None
        if self.causal and not fresh and count > 1:
            mask = torch.ones(count, k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - count)
        drop = self.dropout if self.training else 0.0
        h = F.scaled_dot_product_attention(q, k, v, mask, drop, is_causal=self.causal and fresh and count > 1)
        x = x + _dropped(self.proj(h.transpose(1, 2).reshape(batch, count, width)), drop)
        return x + _dropped(self.down(F.gelu(self.up(self.norm2(x)))), drop)


def _dropped(h: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout; single tokens are small enough for a call that does nothing to show."""
    return F.dropout(h, p) if p else h


class TokenStack(CheckpointedBlock):
    """`TokenBlock`s one after another, causal or not."""

    def __init__(self, layers: int, width: int, heads: int, mlp_ratio: float, dropout: float, causal: bool) -> None:
        super().__init__()
        blocks = (TokenBlock(width, heads, mlp_ratio, dropout, causal) for _ in range(layers))
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor, memory: KeyValueMemory | None = None) -> torch.Tensor:
        """x (B, N, C) → (B, N, C); with `memory` x follows what it holds, and is remembered."""
        for i, layer in enumerate(self.layers):
            x = self.run(layer, x) if memory is None else layer(x, memory, i)
        if memory is not None:
            memory.advance(x.shape[1])
        return x
