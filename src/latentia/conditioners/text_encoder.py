"""What our text encoders share: the folder format of transformers, attention between tokens, checks of token ids."""

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from latentia.core.config import FrozenConfig
from latentia.core.model import ModelMixin
from latentia.core.outputs import Output
from latentia.errors import ArtifactError, InputError
from latentia.nn.checkpointing import GradientCheckpointing
from latentia.nn.dot_product_attention import dot_product_attention


@dataclass(slots=True)
class TextEncoderOutput(Output):
    """What a text encoder says about (B, L) tokens.

    Attributes:
        last_hidden_state: (B, L, D), after the last layer and its normalisation.
        pooler_output: (B, D), one vector a text, of encoders that have one.
        hidden_states: the embeddings and every layer's output, (B, L, D) each; only when asked for.
    """

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class TextEncoder(GradientCheckpointing, ModelMixin, ABC):
    """Base of text encoders in transformers' folders: `config.json` with `model_type`, weights in `model.safetensors`.

    Class attributes: `model_type` is written, `readable_types` are read (a config without any is read, too).
    """

    weights_stem: ClassVar[str] = "model"
    extensions: ClassVar[frozenset[str]] = frozenset(("use_attention_mask",))
    model_type: ClassVar[str]
    readable_types: ClassVar[frozenset[str]]

    @classmethod
    def load_config(cls, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """The constructor's arguments in transformers' `config.json`, whose dozens of other entries mean nothing here.

        Raises `ArtifactError` for a broken file, or one of another kind of model.
        """
        recorded = super().load_config(folder)
        kind = recorded.get("model_type")
        if kind is not None and kind not in cls.readable_types:
            raise ArtifactError(
                f"{os.fspath(folder)} holds a model of type {kind!r}, not a {cls.__name__}, which reads the types: "
                + ", ".join(sorted(cls.readable_types))
            )
        recorded = cls.own_config(recorded)
        return {k: v for k, v in recorded.items() if k in cls.config_arguments() or k == "_class_name"}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **options: Any) -> Any:
        """See `ConfigMixin.from_config`; what `config_to_save` adds for transformers is no argument."""
        if not isinstance(config, FrozenConfig):
            config = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
        return super().from_config(config, **options)

    @classmethod
    def own_config(cls, recorded: dict[str, Any]) -> dict[str, Any]:
        """The part of a config that speaks of this encoder; the base class takes all of it."""
        return recorded

    def config_to_save(self) -> dict[str, Any]:
        """What transformers writes: the class as architecture, the type of model, every argument."""
        arguments = {k: v for k, v in super().config_to_save().items() if not k.startswith("_")}
        return {"architectures": [type(self).__name__], "model_type": self.model_type, **arguments}

    @abstractmethod
    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings."""


class TokenAttention(nn.Module):
    """W_o·softmax(QKᵀ/√d)·V between tokens; W_o has a bias.

    Args:
        channels: width D of the tokens.
        heads, head_dim: number of heads and width d of each; heads·d need not be D.
        bias: of the projections to Q, K and V.
        causal: without a mask, a token sees itself and those before it.
        dropout: of the attention's weights while training.
    """

    def __init__(
        self, channels: int, heads: int, head_dim: int, bias: bool = True, causal: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.heads, self.head_dim, self.causal, self.dropout = heads, head_dim, causal, dropout
        inner = heads * head_dim
        self.k_proj = nn.Linear(channels, inner, bias=bias)
        self.v_proj = nn.Linear(channels, inner, bias=bias)
        self.q_proj = nn.Linear(channels, inner, bias=bias)
        self.out_proj = nn.Linear(inner, channels)

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """x (B, L, D), `visible` bool broadcastable to (B, heads, L, L) → (B, L, D)."""
        split = (*x.shape[:2], self.heads, self.head_dim)
        q = self.q_proj(x).view(split).transpose(1, 2)  # (B, heads, L, d)
        k = self.k_proj(x).view(split).transpose(1, 2)
        v = self.v_proj(x).view(split).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        h = dot_product_attention(q, k, v, visible, dropout, self.causal and visible is None)
        out: torch.Tensor = self.out_proj(h.transpose(1, 2).flatten(2))
        return out


def check_ids(input_ids: torch.Tensor, vocab_size: int, max_length: int) -> None:
    """Raise `InputError` unless `input_ids` is (B, L), whole numbers in [0, vocab_size), L at most `max_length`.

    The values are looked at on the CPU alone: elsewhere that would make the host wait for the device.
    """
    if (
        not isinstance(input_ids, torch.Tensor)
        or input_ids.ndim != 2
        or input_ids.dtype not in (torch.int64, torch.int32)
    ):
        given = (
            f"{tuple(input_ids.shape)} {input_ids.dtype}"
            if isinstance(input_ids, torch.Tensor)
            else type(input_ids).__name__
        )
        raise InputError(f"expected input_ids as an integer tensor (batch, length), got {given}")
    if input_ids.shape[1] > max_length:
        raise InputError(
            f"{input_ids.shape[1]} tokens are more than the {max_length} positions of this text encoder: "
            "cut the text, or encode it in windows (latentia.conditioners.prompts.encode_prompts)"
        )
    if input_ids.device.type == "cpu" and input_ids.numel() and not torch.compiler.is_compiling():
        low, high = (int(v) for v in input_ids.aminmax())
        if low < 0 or high >= vocab_size:
            raise InputError(
                f"token ids from {low} to {high} do not fit the {vocab_size} entries of this encoder's vocabulary: "
                "is this the tokenizer that belongs to it?"
            )


def check_mask(attention_mask: torch.Tensor | None, input_ids: torch.Tensor) -> torch.Tensor | None:
    """Mask (B, L), 1 keep and 0 leave out → bool (B, 1, 1, L) over the keys; `InputError` for another shape."""
    if attention_mask is None:
        return None
    if attention_mask.shape != input_ids.shape:
        raise InputError(
            f"expected attention_mask of the shape of input_ids, {tuple(input_ids.shape)}, "
            f"got {tuple(attention_mask.shape)}"
        )
    return (attention_mask != 0)[:, None, None, :]
