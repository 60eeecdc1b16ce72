"""What the transformers over tokens share: tables of tokens and places, classes, blocks, logits."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from latentia.core.arguments import check_counts, check_number
from latentia.core.model import ModelMixin
from latentia.core.outputs import Output
from latentia.errors import ConfigError, InputError
from latentia.nn.checkpointing import GradientCheckpointing
from latentia.nn.token_block import TokenStack

INIT_STD = 0.02


@dataclass(slots=True)
class TokenOutput(Output):
    """`sample` (B, *token_shape, K): logits of every token."""

    sample: torch.Tensor


def check_codes(name: str, codes: torch.Tensor, highest: int) -> None:
    """Raise `InputError` unless `codes` are int64 in 0 … `highest`; bounds only where that costs no wait for a GPU."""
    if codes.dtype != torch.int64:
        raise InputError(f"{name} are {codes.dtype}: expected torch.int64")
    if codes.device.type == "cpu" and codes.numel():
        low, high = map(int, codes.aminmax())
        if low < 0 or high > highest:
            raise InputError(f"{name} run from {low} to {high}: expected 0 to {highest}")


class TokenTransformer(GradientCheckpointing, ModelMixin):
    """Abstract base: tokens (B, *token_shape) → logits (B, *token_shape, K), with or without a class.

    The recorded config holds `num_codes` K, `token_shape`, `num_class_embeds` (classes and, if trained with dropped
    labels, a null class behind them; None for none), `width`, `num_layers`, `num_heads`, `mlp_ratio`, `dropout`.
    """

    _repeated_blocks = ("TokenBlock",)

    def _build(self, vocabulary: int, places: int, causal: bool) -> None:
        """Tables for `vocabulary` tokens and `places` positions, and the blocks."""
        c = self.config
        self.tokens = nn.Embedding(vocabulary, c.width)
        self.places = nn.Parameter(torch.empty(places, c.width))
        self.classes = None if c.num_class_embeds is None else nn.Embedding(c.num_class_embeds, c.width)
        self.blocks = TokenStack(c.num_layers, c.width, c.num_heads, c.mlp_ratio, c.dropout, causal)
        self.norm = nn.LayerNorm(c.width)
        self.drop = nn.Dropout(c.dropout)

    def _check_config(self, *more: str) -> None:
        c = self.config
        sizes = ("num_codes", "token_shape", "width", "num_layers", "num_heads", *more)
        check_counts(c, sizes, optional=("num_class_embeds",))
        check_number("dropout", c.dropout, 0.0, 1.0)
        check_number("mlp_ratio", c.mlp_ratio, 0.0, open_low=True)
        if not c.token_shape:
            raise ConfigError("token_shape is empty: give the shape of one picture's tokens, such as (8, 8)")

    def _initialise(self) -> None:
        """N(0, 0.02) everywhere; what is added to the stream is divided by √(2·layers) (Radford et al. 2019)."""
        deep = INIT_STD / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            nn.init.normal_(parameter, std=deep if name.endswith(("proj.weight", "down.weight")) else INIT_STD)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def length(self) -> int:
        """Tokens of one picture."""
        return math.prod(self.config.token_shape)

    def _flat(self, indices: torch.Tensor, highest: int) -> torch.Tensor:
        """(B, *token_shape) → (B, S), checked where that costs no wait for a GPU."""
        shape = tuple(self.config.token_shape)
        if tuple(indices.shape[1:]) != shape:
            expected = ", ".join(map(str, shape))
            raise InputError(f"tokens have shape {tuple(indices.shape)}: expected (batch, {expected})")
        check_codes("tokens", indices, highest)
        return indices.flatten(1)

    def _class(self, class_labels: torch.Tensor | None, batch: int) -> torch.Tensor | None:
        """Embedded classes (B, C), or None for a network without."""
        if (class_labels is None) != (self.classes is None):
            has = "has no classes: leave class_labels out" if self.classes is None else "needs class_labels (B,)"
            raise InputError(f"this network {has}")
        if self.classes is None or class_labels is None:
            return None
        if class_labels.shape != (batch,):
            raise InputError(f"class_labels have shape {tuple(class_labels.shape)}: expected ({batch},)")
        check_codes("class_labels", class_labels, self.classes.num_embeddings - 1)
        embedded: torch.Tensor = self.classes(class_labels)
        return embedded
