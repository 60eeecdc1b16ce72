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
    embeddings, may be masked one by one, and leave through q heads, so that the sequence stays h·w long.

    Args:
        num_codes: K; `mask_token` is K.
        token_shape: of one picture: (h, w) or (S,); or (h, w, q), (S, q) with `groups` = q.
        groups: q, tokens a position; 1 where `token_shape` has no axis for them.
        num_class_embeds: classes, plus one for a null class if labels are dropped in training; None for none.
        width, num_layers, num_heads, mlp_ratio, dropout: of the blocks. The class is a token in front.
    """

    @register_to_config
    def __init__(
        self,
        num_codes: int = 1024,
        token_shape: tuple[int, ...] = (16, 16),
        groups: int = 1,
        num_class_embeds: int | None = None,
        width: int = 768,
        num_layers: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self._check_config("groups")
        if groups > 1 and (len(token_shape) < 2 or token_shape[-1] != groups):
            raise ConfigError(f"groups={groups}, but token_shape {tuple(token_shape)} does not end with it")
        front = int(num_class_embeds is not None)
        self._build(groups * (num_codes + 1), front + self.length // groups, causal=False)
        self.embedded = nn.LayerNorm(width)
        self.transform, self.transformed = nn.Linear(width, width), nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(groups * num_codes))
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
        c = self.config
        flat = self._flat(sample, self.mask_token).view(len(sample), -1, c.groups)
        if c.groups > 1:  # each of the q tokens has a table of its own
            flat = flat + torch.arange(c.groups, device=flat.device) * (c.num_codes + 1)
        x = self.tokens(flat).sum(2)  # (B, N, C)
        label = self._class(class_labels, len(sample))
        if label is not None:
            x = torch.cat([label[:, None], x], 1)
        x = self.blocks(self.drop(self.embedded(x + self.places)))
        x = self.norm(x[:, x.shape[1] - flat.shape[1] :])
        x = self.transformed(F.gelu(self.transform(x)))
        codes = self.tokens.weight.view(c.groups, c.num_codes + 1, -1)[:, :-1].flatten(0, 1)  # (q·K, C), without masks
        logits = F.linear(x, codes, self.bias).view(*sample.shape, c.num_codes)
        return TokenOutput(logits) if return_dict else (logits,)
