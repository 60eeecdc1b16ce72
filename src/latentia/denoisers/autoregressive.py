"""AutoregressiveTransformer: VQGAN's second stage, one token after another (Esser et al. 2021)."""

import torch
from torch import nn

from latentia.core.arguments import check_count
from latentia.core.config import register_to_config
from latentia.denoisers.token_transformer import TokenOutput, TokenTransformer, check_codes
from latentia.errors import ConfigError, InputError
from latentia.nn.token_block import KeyValueMemory


class AutoregressiveTransformer(TokenTransformer):
    """p(k) = Π_i p(k_i | k_<i, condition) over the tokens of a picture, row by row; several of a position in a row.

    The sequence begins with what the tokens depend on: the class, or a start token, then the tokens of a condition
    such as a segmentation map (Esser et al. 2021, §3.2).

    Args:
        num_codes: K.
        token_shape: of one picture: (h, w), (S,), or with a last axis of q tokens a position.
        num_class_embeds: classes, plus one for a null class if labels are dropped in training; None for none.
        condition_codes: alphabet of a condition's tokens; None for none.
        condition_length: how many of these there are.
        width, num_layers, num_heads, mlp_ratio, dropout: of the blocks.

    Raises `ConfigError` for sizes that make no sense.
    """

    @register_to_config
    def __init__(
        self,
        num_codes: int = 1024,
        token_shape: tuple[int, ...] = (16, 16),
        num_class_embeds: int | None = None,
        condition_codes: int | None = None,
        condition_length: int = 0,
        width: int = 1024,
        num_layers: int = 24,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self._check_config()
        check_count("condition_length", condition_length, least=0, error=ConfigError)
        if condition_codes is not None:
            check_count("condition_codes", condition_codes, error=ConfigError)
        if (condition_codes is None) != (condition_length == 0):
            raise ConfigError(
                f"condition_codes={condition_codes} and condition_length={condition_length} belong together: give both "
                "or neither"
            )
        self._build(num_codes, condition_length + self.length, causal=True)  # nothing follows the last token
        self.start = nn.Parameter(torch.zeros(width)) if num_class_embeds is None else None
        self.conditions = None if condition_codes is None else nn.Embedding(condition_codes, width)
        self.head = nn.Linear(width, num_codes, bias=False)
        self._initialise()

    @property
    def prefix_length(self) -> int:
        """Positions before the first token."""
        return 1 + int(self.config.condition_length)

    def forward(
        self,
        sample: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        condition: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> TokenOutput | tuple[torch.Tensor]:
        """Tokens (B, *token_shape) → logits (B, *token_shape, K), each from the tokens before it (teacher forcing).

        Args:
            sample: int64 tokens.
            class_labels: (B,) int64, for networks with classes.
            condition: (B, condition_length) int64, for networks with conditions.
            return_dict: False returns `(sample,)`.

        Raises `InputError` for shapes and conditions that do not fit.
        """
        flat = self._flat(sample, self.config.num_codes - 1)
        prefix = self.prefix(len(flat), class_labels, condition)
        x = torch.cat([prefix, self.tokens(flat[:, :-1])], 1) + self.places[: self.prefix_length + flat.shape[1] - 1]
        logits = self._logits(self.blocks(self.drop(x))[:, self.prefix_length - 1 :])
        logits = logits.view(*sample.shape, -1)
        return TokenOutput(logits) if return_dict else (logits,)

    def prefix(
        self, batch: int, class_labels: torch.Tensor | None = None, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What stands before the tokens, embedded, without places: (B, prefix_length, C)."""
        label = self._class(class_labels, batch)
        first = self.start.expand(batch, -1) if label is None and self.start is not None else label
        assert first is not None
        if (condition is None) != (self.conditions is None):
            has = "no conditions: leave condition out" if self.conditions is None else "conditions: give condition"
            raise InputError(f"this network has {has}")
        if condition is None or self.conditions is None:
            return first[:, None]
        if condition.shape != (batch, self.config.condition_length):
            raise InputError(
                f"condition has shape {tuple(condition.shape)}: expected ({batch}, {self.config.condition_length})"
            )
        check_codes("condition", condition, self.config.condition_codes - 1)
        return torch.cat([first[:, None], self.conditions(condition)], 1)

    def memory(self) -> KeyValueMemory:
        """An empty memory for as many sequences as will be given first."""
        return KeyValueMemory(self.config.num_layers, len(self.places))

    def next_logits(self, embedded: torch.Tensor, memory: KeyValueMemory) -> torch.Tensor:
        """Logits (B, K) of the token after `embedded` (B, n, C), which follows what `memory` holds.

        `embedded` is the `prefix` at first, then `embed` of each token.
        """
        begin = memory.length
        x = embedded + self.places[begin : begin + embedded.shape[1]]
        return self._logits(self.blocks(self.drop(x), memory)[:, -1])

    def embed(self, token: torch.Tensor) -> torch.Tensor:
        """Tokens (B,) → (B, 1, C)."""
        embedded: torch.Tensor = self.tokens(token)[:, None]
        return embedded

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(x))
        return logits
