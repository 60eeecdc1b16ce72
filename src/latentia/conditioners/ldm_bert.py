"""LDMBertModel: the text encoder of latent diffusion's text-to-image model (Rombach et al. 2022), learnt with it.

A transformer over tokens that see each other in both directions, normalised before each branch.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from latentia.conditioners.text_encoder import TextEncoder, TextEncoderOutput, TokenAttention, check_ids, check_mask
from latentia.core.arguments import check_counts, check_number
from latentia.core.config import register_to_config
from latentia.nn.activations import get_activation
from latentia.nn.checkpointing import CheckpointedBlock


class LDMBertModel(TextEncoder):
    """Token ids (B, L) → one vector a token, (B, L, D).

    Arguments, state-dict keys and outputs are those of Diffusers' class of the same name; the defaults are the 1.4
    billion parameter model's. `to_logits`, a left-over of the published weights, is carried along frozen and unused.

    Args:
        vocab_size: number of token ids (BERT's word pieces: 30522).
        max_position_embeddings: longest sequence.
        encoder_layers: depth.
        encoder_ffn_dim: width inside the MLPs.
        encoder_attention_heads, head_dim: number of heads and width of each; their product need not be D.
        activation_function: `gelu`, or another name of `latentia.nn.activations`.
        d_model: width D.
        dropout: of the embeddings and of every branch, while training.
        attention_dropout, activation_dropout: of the attention weights, and inside the MLPs, while training.
        init_std: deviation of the starting weights.
        pad_token_id: recorded; the tokenizer decides.
        use_attention_mask: tell pipelines to pass the tokenizer's mask (latent diffusion passes none).

    Raises `ConfigError` or `InputError` for numbers out of range, `UnknownChoiceError` for an unknown activation.
    """

    model_type: ClassVar[str] = "ldmbert"
    readable_types: ClassVar[frozenset[str]] = frozenset(("ldmbert",))

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 30522,
        max_position_embeddings: int = 77,
        encoder_layers: int = 32,
        encoder_ffn_dim: int = 5120,
        encoder_attention_heads: int = 8,
        head_dim: int = 64,
        activation_function: str = "gelu",
        d_model: int = 1280,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        init_std: float = 0.02,
        pad_token_id: int | None = 0,
        use_attention_mask: bool = False,
    ) -> None:
        super().__init__()
        sizes = ("vocab_size", "max_position_embeddings", "encoder_layers", "encoder_ffn_dim", "d_model")
        check_counts(self.config, (*sizes, "encoder_attention_heads", "head_dim"))
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            check_number(name, self.config[name], 0, 1)
        check_number("init_std", init_std, 0)
        self.model = _Encoder(self.config)
        self.to_logits = nn.Linear(d_model, vocab_size)
        self._init_weights(init_std)
        self.to_logits.requires_grad_(False)

    @torch.no_grad()
    def _init_weights(self, std: float) -> None:
        """N(0, std²) for matrices and tables, zero for biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings, (vocab_size, D)."""
        return self.model.embed_tokens

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> TextEncoderOutput | tuple[Any, ...]:
        """Encode token ids.

        Args:
            input_ids: (B, L) integers, L at most `max_position_embeddings`.
            attention_mask: (B, L), 0 for tokens that no other may see. None: all see all, padding included.
            output_hidden_states: also give what enters each layer, and the result.
            return_dict: False gives a tuple.

        Raises `InputError` for ids of the wrong shape, too many, or (on the CPU) outside the vocabulary.
        """
        check_ids(input_ids, self.config.vocab_size, self.config.max_position_embeddings)
        hidden_states: list[torch.Tensor] | None = [] if output_hidden_states else None
        last = self.model(input_ids, check_mask(attention_mask, input_ids), hidden_states)
        out = TextEncoderOutput(last, hidden_states=None if hidden_states is None else tuple(hidden_states))
        return out if return_dict else out.to_tuple()


class _Encoder(CheckpointedBlock):
    """Embeddings, layers, normalisation."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.d_model)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self, input_ids: torch.Tensor, visible: torch.Tensor | None, hidden_states: list[torch.Tensor] | None
    ) -> torch.Tensor:
        """(B, L) → (B, L, D); what enters each layer, and the result, are appended to `hidden_states`."""
        h = self.embed_tokens(input_ids) + self.embed_positions.weight[: input_ids.shape[1]]
        h = F.dropout(h, self.dropout, self.training)
        for layer in self.layers:
            if hidden_states is not None:
                hidden_states.append(h)
            h = self.run(layer, h, visible)
        h = self.layer_norm(h)
        if hidden_states is not None:
            hidden_states.append(h)
        return h


class _Layer(nn.Module):
    """x + attention(LN x), then + MLP(LN x)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width = config.d_model
        self.dropout, self.activation_dropout = config.dropout, config.activation_dropout
        self.self_attn = TokenAttention(
            width, config.encoder_attention_heads, config.head_dim, bias=False, dropout=config.attention_dropout
        )
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.activation = get_activation(config.activation_function, owned=True)
        self.fc1 = nn.Linear(width, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        """x (B, L, D) → (B, L, D)."""
        h = self.self_attn(self.self_attn_layer_norm(x), visible)
        x = x + F.dropout(h, self.dropout, self.training)
        h = self.activation(self.fc1(self.final_layer_norm(x)))
        h = self.fc2(F.dropout(h, self.activation_dropout, self.training))
        return x + F.dropout(h, self.dropout, self.training)
