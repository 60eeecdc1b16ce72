"""MMDiT over patches and a 1-D code: the transformer that FlowMo uses as encoder and as decoder."""

from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from latentia.errors import ConfigError, check_choice
from latentia.nn.embeddings import TimestepEmbedding, Timesteps
from latentia.nn.mmdit_block import EPS, MMDiTBlock
from latentia.nn.rope import THETA, rope_axes, rope_table

POSITIONS = ("diagonal", "grid")
READS = ("code", "image")
TIME_FEATURES = 256
TIME_SCALE = 1000.0


class MMDiT(nn.Module):
    """Patches (B, N, p) and code tokens (B, S, c) in, one of the two streams out.

    Args:
        patch_dim: p, values of a patch.
        code_dim: c, channels of a code token; None: the tokens bring nothing (one learned vector for all of them,
            which only their positions tell apart), as in an encoder.
        read: the stream that is read out: `image` (p values a patch) or `code` (`out_dim` channels a token).
        out_dim: channels of what is read; None: `patch_dim`.
        width, depth, heads, mlp_ratio: of the blocks.
        timed: AdaLN by a time in [0, 1]; else the blocks are plain pre-norm ones.
        axes: channels of a head for each axis of the positions; None: `rope_axes`.
        theta: slowest period of the positions.
        anchored: the patches nearest to a code token are its own: tokens that bring nothing start from the mean of
            their patches, and patches start with what their token says. Our addition: what a published model learns
            in a hundred thousand steps, which token stands where, is then given.

    Weights that can never get a gradient are not built: the time's without `timed`, and what the stream that is not
    read would do after its last attention. Raises `ConfigError` for widths that do not fit.
    """

    def __init__(
        self,
        patch_dim: int,
        code_dim: int | None,
        read: str,
        out_dim: int | None = None,
        width: int = 768,
        depth: int = 8,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        timed: bool = True,
        axes: tuple[int, ...] | None = None,
        theta: float = THETA,
        anchored: bool = False,
    ) -> None:
        super().__init__()
        check_choice("read", read, READS)
        if width % heads:
            raise ConfigError(f"width {width} does not divide into {heads} heads")
        self.axes = rope_axes(width // heads) if axes is None else tuple(axes)
        if sum(self.axes) != width // heads or any(a % 2 for a in self.axes):
            raise ConfigError(f"rope axes {self.axes} must be even and add up to {width // heads}, a head's width")
        self.read, self.width, self.theta, self.anchored = read, width, theta, anchored
        self.image_in = nn.Linear(patch_dim, width)
        self.code_in = None if code_dim is None else nn.Linear(code_dim, width)
        self.code_start = nn.Parameter(torch.randn(width) * 0.02) if code_dim is None else None
        self.time_features = Timesteps(TIME_FEATURES, flip_sin_to_cos=True, freq_shift=0) if timed else None
        self.time_in = TimestepEmbedding(TIME_FEATURES, width) if timed else None
        other = "code" if read == "image" else "image"
        self.blocks = nn.ModuleList(
            MMDiTBlock(width, heads, mlp_ratio, timed, ends=other if i == depth - 1 else None) for i in range(depth)
        )
        self.out_mod = nn.Linear(width, 2 * width) if timed else None
        self.out = nn.Linear(width, patch_dim if out_dim is None else out_dim)

    def forward(
        self,
        patches: torch.Tensor,
        code: torch.Tensor | None,
        image_positions: torch.Tensor,
        code_positions: torch.Tensor,
        t: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See the class.

        Args:
            patches: (B, N, p).
            code: (B, S, c), None where the tokens bring nothing.
            image_positions, code_positions: (N, axes) and (S, axes).
            t: (B,) in [0, 1], only for a timed one.
        """
        image = self.image_in(patches)
        if self.code_in is None or code is None:
            assert self.code_start is not None
            stream = self.code_start.to(image.dtype).expand(len(patches), len(code_positions), -1)
            if self.anchored:
                stream = stream + mean_of_own(image, nearest_code(image_positions, code_positions), len(code_positions))
        else:
            stream = self.code_in(code)
            if self.anchored:
                image = image + stream[:, nearest_code(image_positions, code_positions)]
        vector = self._time(t, image.dtype)
        table = rope_table(torch.cat((code_positions, image_positions)), self.axes, self.theta)
        for block in self.blocks:
            image, stream = block(image, stream, table, vector)
        return self._read(image if self.read == "image" else stream, vector)

    def _time(self, t: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        if self.time_in is None or self.time_features is None or t is None:
            return None
        vector: torch.Tensor = self.time_in(self.time_features(TIME_SCALE * t).to(dtype))
        return vector

    def _read(self, x: torch.Tensor, vector: torch.Tensor | None) -> torch.Tensor:
        x = F.layer_norm(x, (self.width,), eps=EPS)
        if self.out_mod is not None and vector is not None:
            shift, scale = self.out_mod(F.silu(vector)).unsqueeze(1).chunk(2, dim=-1)
            x = F.layer_norm(torch.addcmul(shift, x, 1 + scale), (self.width,), eps=EPS)  # twice, as released
        read: torch.Tensor = self.out(x)
        return read


def nearest_code(image_positions: torch.Tensor, code_positions: torch.Tensor) -> torch.Tensor:
    """(N, 3), (S, 3) → (N,) int64: the code token nearest to each patch."""
    return torch.cdist(image_positions, code_positions).argmin(1)


def mean_of_own(image: torch.Tensor, owner: torch.Tensor, length: int) -> torch.Tensor:
    """(B, N, D) → (B, length, D): the mean of each code token's patches; zeros for a token without any."""
    share = F.one_hot(owner, length).to(image.dtype)
    return torch.einsum("ns,bnd->bsd", share / share.sum(0).clamp_min(1), image)


@lru_cache(maxsize=32)
def grid_positions(rows: int, columns: int) -> torch.Tensor:
    """(rows·columns, 3) on the CPU: patch (r, c) stands at (0, r, c)."""
    with torch.device("cpu"):  # kept for all, those built on the meta device too
        row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        return torch.stack((torch.zeros_like(row), row, column), dim=-1).flatten(0, 1).float()


@lru_cache(maxsize=32)
def code_positions(length: int, layout: str, rows: int, columns: int) -> torch.Tensor:
    """(length, 3) positions of the code tokens, on the CPU.

    `diagonal`: token i at (i, i, i), as FlowMo does. `grid`: the tokens share the patches' picture: they stand on the
    finest regular grid of at most ⌈√S⌉ rows that holds them, stretched over the patches, token i in reading order.
    """
    check_choice("code_positions", layout, POSITIONS)
    with torch.device("cpu"):
        index = torch.arange(length)
        if layout == "diagonal":
            return index.float()[:, None].expand(-1, 3).contiguous()
        down = max(1, round((length * rows / columns) ** 0.5))
        across = -(-length // down)
        row = (index // across + 0.5) * (rows / down) - 0.5
        column = (index % across + 0.5) * (columns / across) - 0.5
        return torch.stack((torch.zeros(length), row, column), dim=-1)
