"""CLIPTextModel: the text half of CLIP (Radford et al. 2021), the text encoder of Stable Diffusion.

A causal transformer over tokens, normalised before each branch. Reads and writes the folders of transformers' class of
the same name, without importing it.
"""

from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.nn import functional as F

from latentia.conditioners.text_encoder import TextEncoder, TextEncoderOutput, TokenAttention, check_ids, check_mask
from latentia.core.arguments import check_count, check_counts, check_number
from latentia.core.config import register_to_config
from latentia.errors import ConfigError, check_choice
from latentia.nn.activations import Activation
from latentia.nn.checkpointing import CheckpointedBlock

_OTHER_HALF = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")
"""Keys of whole CLIP models and of those with a projection; the text encoder needs none of them."""

_BARE = ("embeddings.", "encoder.", "final_layer_norm.")
"""First parts of the keys as transformers writes them since 5.6, without `text_model.`."""

LEGACY_EOS = 2
"""`eos_token_id` in configs from before August 2023, whatever the vocabulary: a text ends at its largest id."""


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x·σ(1.702·x), CLIP's own approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Activation] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class CLIPTextModel(TextEncoder):
    """Token ids (B, L) → one vector a token, (B, L, D), and one a text.

    State-dict keys start with `text_model.`, the layout that all stacks read. The defaults are those of transformers
    (CLIP ViT-B/32); Stable Diffusion 1 has 768 channels, 3072 inside, 12 heads.

    Args:
        vocab_size: number of token ids.
        hidden_size: width D.
        intermediate_size: width inside the MLPs.
        num_hidden_layers, num_attention_heads: depth, and heads of each attention.
        max_position_embeddings: longest sequence.
        hidden_act: `quick_gelu` (OpenAI's models), `gelu` (OpenCLIP's, Stable Diffusion 2).
        layer_norm_eps: of all normalisations.
        projection_dim: width of CLIP's common space; recorded, nothing is projected here.
        attention_dropout: of attention weights, while training.
        initializer_range: recorded for transformers; without effect on text encoders.
        initializer_factor: scales the starting weights.
        pad_token_id, bos_token_id: recorded; the tokenizer decides.
        eos_token_id: `pooler_output` is read where this id stands first; 2 means where the largest id stands.
        use_attention_mask: tell pipelines to pass the tokenizer's mask (Stable Diffusion passes none).

    Raises `ConfigError` for sizes that do not fit, `UnknownChoiceError` for an unknown activation.
    """

    model_type: ClassVar[str] = "clip_text_model"
    readable_types: ClassVar[frozenset[str]] = frozenset(("clip_text_model", "clip"))

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 49408,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        projection_dim: int | None = 512,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 1.0,
        pad_token_id: int | None = 1,
        bos_token_id: int | None = 49406,
        eos_token_id: int = 49407,
        use_attention_mask: bool = False,
    ) -> None:
        super().__init__()
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        check_counts(self.config, (*sizes, "max_position_embeddings"))
        check_count("eos_token_id", eos_token_id, 0, ConfigError)
        check_choice("activation", hidden_act, ACTIVATIONS)
        check_number("layer_norm_eps", layer_norm_eps, 0)
        check_number("attention_dropout", attention_dropout, 0, 1)
        if hidden_size % num_attention_heads:
            raise ConfigError(
                f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}"
            )
        self.text_model = _TextTransformer(self.config)
        self._init_weights(initializer_factor)

    @torch.no_grad()
    def _init_weights(self, factor: float) -> None:
        """CLIP's starting deviations: D^-½ for what reads, times (2·layers)^-½ for what ends in the residual stream."""
        width = self.config.hidden_size
        depth = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith("embedding.weight"):
                nn.init.normal_(parameter, std=0.02 * factor)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("out_proj.weight"):
                nn.init.normal_(parameter, std=width**-0.5 * factor)
            elif name.endswith("fc1.weight"):
                nn.init.normal_(parameter, std=(2 * width) ** -0.5 * factor)
            elif name.endswith(("_proj.weight", "fc2.weight")):
                nn.init.normal_(parameter, std=width**-0.5 * depth * factor)

    @classmethod
    def own_config(cls, recorded: dict[str, Any]) -> dict[str, Any]:
        """The text half of a whole CLIP model's config (`text_config`, and its older `text_config_dict`)."""
        if recorded.get("model_type") != "clip":
            return recorded
        return {**(recorded.get("text_config") or {}), **(recorded.get("text_config_dict") or {})}

    @classmethod
    def convert_legacy_keys(cls, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights with or without `text_model.`, of the text encoder or of a whole CLIP, position buffers dropped."""
        return {
            f"text_model.{key}" if key.startswith(_BARE) else key: value
            for key, value in state_dict.items()
            if not key.startswith(_OTHER_HALF) and not key.endswith("embeddings.position_ids")
        }

    def get_input_embeddings(self) -> nn.Embedding:
        """The table of token embeddings, (vocab_size, D)."""
        return self.text_model.embeddings.token_embedding

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
            attention_mask: (B, L), 0 for tokens that no other may see. None: every token sees itself and those before.
            output_hidden_states: also give the embeddings and each layer's output (before the last normalisation).
            return_dict: False gives a tuple.

        Raises `InputError` for ids of the wrong shape, too many, or (on the CPU) outside the vocabulary.
        """
        check_ids(input_ids, self.config.vocab_size, self.config.max_position_embeddings)
        visible = check_mask(attention_mask, input_ids)
        if visible is not None:
            length = input_ids.shape[1]
            visible = visible & torch.ones(length, length, dtype=torch.bool, device=visible.device).tril()
        hidden_states: list[torch.Tensor] | None = [] if output_hidden_states else None
        last = self.text_model(input_ids, visible, hidden_states)
        out = TextEncoderOutput(
            last_hidden_state=last,
            pooler_output=last[torch.arange(last.shape[0], device=last.device), self._ends(input_ids)],
            hidden_states=None if hidden_states is None else tuple(hidden_states),
        )
        return out if return_dict else out.to_tuple()

    def _ends(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, L) → (B,): where each text ends."""
        eos = self.config.eos_token_id
        return (input_ids if eos == LEGACY_EOS else (input_ids == eos).int()).argmax(dim=-1)


class _TextTransformer(nn.Module):
    """Embeddings, layers, normalisation."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config.vocab_size, config.max_position_embeddings, config.hidden_size)
        self.encoder = _Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self, input_ids: torch.Tensor, visible: torch.Tensor | None, hidden_states: list[torch.Tensor] | None
    ) -> torch.Tensor:
        """(B, L) → (B, L, D); what lies between is appended to `hidden_states`."""
        h = self.encoder(self.embeddings(input_ids), visible, hidden_states)
        return cast(torch.Tensor, self.final_layer_norm(h))


class _Embeddings(nn.Module):
    """A vector for the token plus one for its position."""

    def __init__(self, vocab_size: int, positions: int, channels: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocab_size, channels)
        self.position_embedding = nn.Embedding(positions, channels)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """(B, L) → (B, L, D)."""
        return cast(
            torch.Tensor, self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[1]]
        )


class _Encoder(CheckpointedBlock):
    """The layers in order."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self, h: torch.Tensor, visible: torch.Tensor | None, hidden_states: list[torch.Tensor] | None
    ) -> torch.Tensor:
        """(B, L, D) → (B, L, D); input and every layer's output are appended to `hidden_states`."""
        if hidden_states is not None:
            hidden_states.append(h)
        for layer in self.layers:
            h = self.run(layer, h, visible)
            if hidden_states is not None:
                hidden_states.append(h)
        return h


class _Layer(nn.Module):
    """x + attention(LN x), then + MLP(LN x)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.num_attention_heads
        self.self_attn = TokenAttention(width, heads, width // heads, causal=True, dropout=config.attention_dropout)
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = _MLP(width, config.intermediate_size, config.hidden_act)
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
        """x (B, L, D) → (B, L, D)."""
        x = x + self.self_attn(self.layer_norm1(x), visible)
        return cast(torch.Tensor, x + self.mlp(self.layer_norm2(x)))


class _MLP(nn.Module):
    """Linear ∘ activation ∘ linear."""

    def __init__(self, channels: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D) → (B, L, D)."""
        return cast(torch.Tensor, self.fc2(self.activation(self.fc1(x))))
