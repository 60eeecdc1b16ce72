"""MaskedTransformer: MaskGIT's bidirectional transformer (Chang et al. 2022)."""

import torch
from torch import nn
from torch.nn import functional as F

from latentia.core.config import register_to_config
from latentia.denoisers.token_transformer import TokenOutput, TokenTransformer
from latentia.errors import ConfigError


class MaskedTransformer(TokenTransformer):
    """p(k_i | the tokens that are not masked, class) for all i at once; the mask is token K.

    Where a position holds q tokens (groups of bits of a large codebook, MaskBit), they enter as the sum of q
    embeddings, may be masked one by one, and leave through q heads, so that the sequence stays h·w long. In the same
    way p×p neighbouring tokens may share a position, which makes it p² times shorter.

    Args:
        num_codes: K; `mask_token` is K.
        token_shape: of one picture: (h, w) or (S,); or (h, w, q), (S, q) with `groups` = q.
        groups: q, tokens a position; 1 where `token_shape` has no axis for them.
        patch_size: p, for maps (h, w) whose sides it divides; 1 for a position for each place.
        num_class_embeds: classes, plus one for a null class if labels are dropped in training; None for none.
        width, num_layers, num_heads, mlp_ratio, dropout: of the blocks. The class is a token in front.
    """

    @register_to_config
    def __init__(
        self,
        num_codes: int = 1024,
        token_shape: tuple[int, ...] = (16, 16),
        groups: int = 1,
        patch_size: int = 1,
        num_class_embeds: int | None = None,
        width: int = 768,
        num_layers: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self._check_config("groups", "patch_size")
        if groups > 1 and (len(token_shape) < 2 or token_shape[-1] != groups):
            raise ConfigError(f"groups={groups}, but token_shape {tuple(token_shape)} does not end with it")
        sides = token_shape[:-1] if groups > 1 else token_shape
        if patch_size > 1 and (len(sides) != 2 or any(side % patch_size for side in sides)):
            raise ConfigError(f"patch_size={patch_size} does not divide a map of {tuple(sides)} into patches")
        self.each = groups * patch_size**2
        front = int(num_class_embeds is not None)
        self._build(self.each * (num_codes + 1), front + self.length // self.each, causal=False)
        self.embedded = nn.LayerNorm(width)
        self.transform, self.transformed = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(self.each * num_codes))
        self._initialise()

    @property
    def mask_token(self) -> int:
        """K, the token that means "not known yet"."""
        return int(self.config.num_codes)

    def forward(
        self, sample: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> TokenOutput | tuple[torch.Tensor]:
        """Tokens (B, *token_shape) in 0 … K, K for masked ones → logits (B, *token_shape, K).

        `class_labels` (B,) int64 for networks with classes; `return_dict=False` returns `(sample,)`.
        Raises `InputError` for shapes and labels that do not fit.
        """
        self._flat(sample, self.mask_token)
        x = self.tokens(self._gathered(sample)).sum(2)  # (B, N, C)
        label, count = self._class(class_labels, len(sample)), x.shape[1]
        if label is not None:
            x = torch.cat([label[:, None], x], 1)
        x = self.blocks(self.drop(self.embedded(x + self.places)))
        x = self.transformed(F.gelu(self.transform(self.norm(x[:, x.shape[1] - count :]))))
        logits = self._spread(F.linear(x, self._codes(), self.bias), sample.shape)
        return TokenOutput(logits) if return_dict else (logits,)

    def _gathered(self, sample: torch.Tensor) -> torch.Tensor:
        """Tokens (B, *token_shape) → (B, N, q·p²), those of one position together, each in a table of its own."""
        c, p = self.config, self.config.patch_size
        if p > 1:
            h, w = c.token_shape[:2]
            sample = sample.view(len(sample), h // p, p, w // p, p, c.groups).transpose(2, 3)
        flat = sample.reshape(len(sample), -1, self.each)
        if self.each > 1:
            flat = flat + torch.arange(self.each, device=flat.device) * (c.num_codes + 1)
        return flat

    def _codes(self) -> torch.Tensor:
        """The tables (q·p²·K, C) without the embeddings of masks: the weights of the heads."""
        c = self.config
        return self.tokens.weight.view(self.each, c.num_codes + 1, c.width)[:, :-1].flatten(0, 1)

    def _spread(self, logits: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Logits (B, N, q·p²·K) → (*shape, K), each where its token is."""
        c, p = self.config, self.config.patch_size
        if p > 1:
            h, w = c.token_shape[:2]
            logits = logits.view(len(logits), h // p, w // p, p, p, -1).transpose(2, 3)
        return logits.reshape(*shape, c.num_codes)
