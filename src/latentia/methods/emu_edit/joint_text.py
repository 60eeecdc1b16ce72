"""Two text encoders as one, side by side: CLIP's and T5's, as in Emu and Emu Edit.

Each reads the instruction by itself; their tokens stand behind one another, the narrower ones filled up with zeros to
the width of the widest: (B, L₁ + L₂, max(D₁, D₂)).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from latentia.conditioners.prompts import encode_prompts, text_width, token_ids, window_length
from latentia.conditioners.text_encoder import TextEncoderOutput
from latentia.errors import InputError

Pair = tuple[Any, Any]
"""(tokenizer, text encoder)."""


def joint_width(encoders: Sequence[Any]) -> int:
    """max(D₁, D₂): `cross_attention_dim` of a network that looks at all of them."""
    return max(text_width(encoder) for encoder in encoders)


def encode_jointly(pairs: Sequence[Pair], texts: Sequence[str]) -> torch.Tensor:
    """Texts → (B, ΣL, max D); each text by itself, so that it does not depend on its neighbours."""
    return side_by_side([encode_prompts(tokenizer, encoder, texts) for tokenizer, encoder in pairs])


def side_by_side(embeds: Sequence[torch.Tensor]) -> torch.Tensor:
    """Encodings (B, Lᵢ, Dᵢ) → (B, ΣL, max D), in the dtype and on the device of the first."""
    width = max(each.shape[-1] for each in embeds)
    return torch.cat([F.pad(each.to(embeds[0]), (0, width - each.shape[-1])) for each in embeds], dim=1)


def joint_ids(pairs: Sequence[Pair], texts: str | Sequence[str]) -> torch.Tensor:
    """Token ids of all tokenizers behind one another, (B, ΣL) int64, as `JointTextEncoder` reads them."""
    ids = [token_ids(tokenizer, texts, 1, window_length(tokenizer, encoder))[:, 0] for tokenizer, encoder in pairs]
    return torch.cat(ids, dim=1)


class JointTextEncoder(nn.Module):
    """For training: `EmuEditObjective(text_encoder=JointTextEncoder(pairs), …)` with `input_ids` from `joint_ids`.

    The pipeline takes the parts themselves: `text_encoder`, `tokenizer`, `text_encoder_2`, `tokenizer_2`.
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(encoder for _, encoder in pairs)
        self.lengths = [window_length(tokenizer, encoder) for tokenizer, encoder in pairs]

    def forward(self, input_ids: torch.Tensor) -> TextEncoderOutput:
        """(B, ΣL) → `last_hidden_state` (B, ΣL, max D). Raises `InputError` for another number of tokens."""
        if input_ids.shape[-1] != sum(self.lengths):
            raise InputError(f"input_ids has {input_ids.shape[-1]} tokens: expected {self.lengths}, as joint_ids makes")
        parts = zip(self.encoders, input_ids.split(self.lengths, dim=1))
        return TextEncoderOutput(side_by_side([encoder(ids).last_hidden_state for encoder, ids in parts]))
