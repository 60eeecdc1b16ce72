"""The double-stream block of MMDiT (Esser et al. 2024): two streams with their own weights, one joint attention.

    h = (1 + scale)·LN(x) + shift;   q, k, v = W_qkv h;   q, k ← RMSNorm, RoPE
    a = softmax(8/d · QKᵀ) V over [code, image]
    x ← x + gate·W_o a;   x ← x + gate·MLP((1 + scale)·LN(x) + shift)

shift, scale and gate come from the time vector, or are 0, 0 and 1 without one.
"""

import torch
from torch import nn
from torch.nn import functional as F

from latentia.nn.dot_product_attention import dot_product_attention
from latentia.nn.rope import rotate

Modulations = tuple[torch.Tensor, ...]
EPS = 1e-6


class Modulation(nn.Module):
    """SiLU → Linear: a time vector (B, D) to (shift, scale, gate) of attention and of the MLP, each (B, 1, D).

    Only what makes the gates starts at zero (the block is then the identity); shift and scale start as any layer.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin = nn.Linear(width, 6 * width)
        with torch.no_grad():
            for gate in (2, 5):
                self.lin.weight[gate * width : (gate + 1) * width] = 0
                self.lin.bias[gate * width : (gate + 1) * width] = 0

    def forward(self, vector: torch.Tensor) -> Modulations:
        """(B, D) → six tensors (B, 1, D)."""
        out: torch.Tensor = self.lin(F.silu(vector))
        return out.unsqueeze(1).chunk(6, dim=-1)


class HeadNorm(nn.Module):
    """x / √(mean x² + 10⁻⁶) · scale over the channels of a head, in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., d) → (..., d) float32."""
        return F.rms_norm(x.float(), self.scale.shape, self.scale.float(), EPS)


class Stream(nn.Module):
    """One stream's half of a block.

    Args:
        width: D; `heads` divide it.
        mlp_ratio: hidden width of the MLP over D.
        modulated: shift, scale and gate come from a time vector.
        ends: the stream is only looked at and not carried on: it has neither output projection nor MLP.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, modulated: bool, ends: bool = False) -> None:
        super().__init__()
        self.heads, self.width, self.ends = heads, width, ends
        self.mod = Modulation(width) if modulated else None
        self.qkv = nn.Linear(width, 3 * width)
        self.key_norm = HeadNorm(width // heads)
        if not ends:
            self.query_norm = HeadNorm(width // heads)
            hidden = int(width * mlp_ratio)
            self.proj = nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def modulation(self, vector: torch.Tensor | None) -> Modulations | None:
        """The six modulations of this block, None without a time vector."""
        return None if self.mod is None or vector is None else self.mod(vector)

    def look(self, x: torch.Tensor, mod: Modulations | None) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """x (B, N, D) → queries (None where the stream ends), keys and values, each (B, heads, N, d)."""
        h = modulate(F.layer_norm(x, (self.width,), eps=EPS), mod, 0)
        if self.ends:  # nobody asks for its queries
            k, v = self._split(F.linear(h, self.qkv.weight[self.width :], self.qkv.bias[self.width :]), 2)
            return None, self.key_norm(k), v
        q, k, v = self._split(self.qkv(h), 3)
        return self.query_norm(q), self.key_norm(k), v

    def _split(self, h: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        return h.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def carry_on(self, x: torch.Tensor, attended: torch.Tensor, mod: Modulations | None) -> torch.Tensor:
        """x (B, N, D) and what its queries found (B, N, D) → the stream after the block."""
        x = gated(x, self.proj(attended), mod, 2)
        h = modulate(F.layer_norm(x, (self.width,), eps=EPS), mod, 3)
        return gated(x, self.mlp(h), mod, 5)


class MMDiTBlock(nn.Module):
    """Image and code tokens look at each other and at themselves.

    Args:
        width, heads, mlp_ratio: of both streams.
        modulated: see `Stream`.
        ends: `image` or `code` stream that is not read after this block, or None.
    """

    def __init__(
        self, width: int, heads: int, mlp_ratio: float = 4.0, modulated: bool = True, ends: str | None = None
    ) -> None:
        super().__init__()
        self.scale = 8 * heads / width
        self.image = Stream(width, heads, mlp_ratio, modulated, ends == "image")
        self.code = Stream(width, heads, mlp_ratio, modulated, ends == "code")

    def forward(
        self, image: torch.Tensor, code: torch.Tensor, table: torch.Tensor, vector: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """image (B, N, D), code (B, S, D), `rope_table` of the S + N positions, time (B, D) → both streams.

        A stream that ends comes back as it was.
        """
        image_mod, code_mod = self.image.modulation(vector), self.code.modulation(vector)
        image_q, image_k, image_v = self.image.look(image, image_mod)
        code_q, code_k, code_v = self.code.look(code, code_mod)
        k, v = torch.cat((code_k, image_k), 2), torch.cat((code_v, image_v), 2)
        asked, length = table, code.shape[1]
        if code_q is None:
            q, asked = image_q, table[:, length:]
        elif image_q is None:
            q, asked = code_q, table[:, :length]
        else:
            q = torch.cat((code_q, image_q), 2)
        assert q is not None  # at most one stream ends
        q, k = rotate(q, asked).to(v.dtype), rotate(k, table).to(v.dtype)
        found = dot_product_attention(q, k, v, scale=self.scale)
        found = found.transpose(1, 2).flatten(2)  # (B, S + N, D), or only what was asked for
        if code_q is not None:
            code = self.code.carry_on(code, found[:, :length], code_mod)
        if image_q is not None:
            image = self.image.carry_on(image, found[:, -image.shape[1] :], image_mod)
        return image, code


def modulate(h: torch.Tensor, mod: Modulations | None, first: int) -> torch.Tensor:
    """(1 + scale)·h + shift, with shift and scale at `first` and `first` + 1."""
    return h if mod is None else torch.addcmul(mod[first], h, 1 + mod[first + 1])


def gated(x: torch.Tensor, change: torch.Tensor, mod: Modulations | None, gate: int) -> torch.Tensor:
    """x + gate·change."""
    return x + change if mod is None else torch.addcmul(x, mod[gate], change)
