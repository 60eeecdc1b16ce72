"""What a denoiser is told besides its sample: the time, and a class or another vector."""

import torch
from torch import nn

from latentia.errors import ConfigError, InputError, check_choice
from latentia.nn.activations import get_activation
from latentia.nn.embeddings import TimestepEmbedding

CLASS_EMBEDDINGS = ("identity", "projection", "simple_projection", "timestep")


class ActivatedTimestepEmbedding(TimestepEmbedding):
    """Linear → `act` → Linear: features (B, in) → embedding (B, out)."""

    def __init__(self, in_features: int, out_features: int, act: str) -> None:
        super().__init__(in_features, out_features)
        self.act = get_activation(act, owned=True)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features (B, in) → (B, out)."""
        embedded: torch.Tensor = self.linear_2(self.act(self.linear_1(features)))
        return embedded


def as_times(timestep: torch.Tensor | float | int, sample: torch.Tensor) -> torch.Tensor:
    """One time for the whole batch (1,) or one a sample (B,), on the sample's device; `InputError` otherwise."""
    try:
        t = timestep if isinstance(timestep, torch.Tensor) else torch.tensor(timestep)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"timestep must be a number or a tensor of numbers, got {timestep!r}") from None
    t = t.reshape(1) if t.ndim == 0 else t
    if t.ndim != 1 or t.shape[0] not in (1, sample.shape[0]):
        raise InputError(
            f"timestep has shape {tuple(t.shape)}: expected one number, or one for each of {sample.shape[0]} samples"
        )
    return t.to(sample.device)


class ClassConditioning:
    """How the labels of a model become a vector that is added to its time embedding.

    Args:
        kind: None (a table of `num_classes` rows, or no classes), `timestep` (labels are numbers, embedded like
            time), `identity` (labels are embeddings), `projection` or `simple_projection` (labels are vectors of
            `width`, sent through an MLP or a matrix).
        num_classes: rows of the table, the null class included.
        width: of the vectors that are projected.

    Raises `UnknownChoiceError` for an unknown kind, `ConfigError` for a projection without width.
    """

    def __init__(self, kind: str | None, num_classes: int | None, width: int | None) -> None:
        if kind is not None:
            check_choice("class_embed_type", kind, CLASS_EMBEDDINGS)
        if kind in ("projection", "simple_projection") and width is None:
            raise ConfigError(
                f"class_embed_type {kind!r} needs projection_class_embeddings_input_dim, the width of class_labels"
            )
        self.kind, self.num_classes, self.width = kind, num_classes, width

    def layer(self, time_features: int, emb_channels: int, act: str) -> nn.Module | None:
        """The layer that the labels go through, with activation `act` when they are embedded like time."""
        if self.kind == "timestep":
            return ActivatedTimestepEmbedding(time_features, emb_channels, act)
        if self.kind == "identity":
            return nn.Identity()
        if self.kind == "projection":
            return TimestepEmbedding(self.width or 0, emb_channels)
        if self.kind == "simple_projection":
            return nn.Linear(self.width or 0, emb_channels)
        return None if self.num_classes is None else nn.Embedding(self.num_classes, emb_channels)

    def embed(
        self, layer: nn.Module, labels: torch.Tensor | None, time_proj: nn.Module, batch: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Labels → (B, E); `InputError` when they are missing, of the wrong shape or type, or out of range."""
        if labels is None:
            count = self.num_classes
            raise InputError(
                "this model is class-conditional: give class_labels (B,)"
                + (f" in [0, {count}), {count - 1} for the null class if it was trained with one" if count else "")
            )
        if not isinstance(labels, torch.Tensor):
            raise InputError(f"class_labels must be a tensor, got {labels!r}: torch.tensor(...) makes one")
        vectors = self.kind in ("identity", "projection", "simple_projection")
        if labels.ndim != (2 if vectors else 1) or labels.shape[0] != batch:
            raise InputError(f"class_labels have shape {tuple(labels.shape)}: expected one for each of {batch} samples")
        if self.width is not None and vectors and self.kind != "identity" and labels.shape[1] != self.width:
            raise InputError(f"class_labels have width {labels.shape[1]}: expected {self.width}")
        if self.kind is None:
            return _look_up(layer, labels)
        embedded: torch.Tensor = layer((time_proj(labels) if self.kind == "timestep" else labels).to(dtype))
        return embedded


def _look_up(table: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """Rows of the table; labels out of range raise where the kernel notices (on the CPU: a GPU would stall)."""
    if labels.dtype not in (torch.int64, torch.int32):
        raise InputError(f"class_labels have dtype {labels.dtype}: expected int64")
    try:
        rows: torch.Tensor = table(labels)
    except IndexError:
        last = next(table.parameters()).shape[0] - 1
        raise InputError(f"class_labels {labels.tolist()} out of range: give 0 to {last}") from None
    return rows
