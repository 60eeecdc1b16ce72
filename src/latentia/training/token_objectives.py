"""The objectives of priors over tokens: predict the next one, or the masked ones."""

import math
from collections.abc import Callable
from typing import Any

import torch

from latentia.core.arguments import check_number
from latentia.core.evaluating import evaluating
from latentia.core.protocols import Batch, Dataset, TokenCodec
from latentia.data.dataset import TensorDataset
from latentia.denoisers.autoregressive import AutoregressiveTransformer
from latentia.denoisers.masked import MaskedTransformer
from latentia.denoisers.token_transformer import TokenTransformer
from latentia.errors import InputError
from latentia.schedulers.masked import MaskedScheduler
from latentia.training.objective import Loss, Objective, take


class TokenObjective(Objective):
    """Abstract: cross entropy of a transformer's logits; labels are dropped for guidance.

    Reads `tokens` (B, *token_shape) int64 and, for networks with classes, `label` (B,) from the batch.
    """

    def __init__(self, transformer: TokenTransformer, label_dropout: float, label_smoothing: float) -> None:
        super().__init__()
        self.transformer = transformer
        self.label_dropout = check_number("label_dropout", label_dropout, 0.0, 1.0)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, 0.0, 1.0)
        if label_dropout and transformer.config.num_class_embeds is None:
            raise InputError(f"label_dropout={label_dropout}, but the network has no classes: use 0")

    def settings(self) -> dict[str, Any]:
        """What changes the loss."""
        return {"label_dropout": self.label_dropout, "label_smoothing": self.label_smoothing}

    def labels(self, batch: Batch) -> torch.Tensor | None:
        """Classes (B,), each the null class with probability `label_dropout`; None for a network without."""
        embeds = self.transformer.config.num_class_embeds
        if embeds is None:
            return None
        labels = take(batch, "label")
        dropped = torch.rand(len(labels), device=labels.device) < self.label_dropout
        return labels.masked_fill(dropped, embeds - 1)

    def nats(self, logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is minimised, and −log p, of every token: two tensors of the shape of `tokens`, the second detached.

        They differ by label smoothing, (1 − ε)(−log p) + ε·mean over codes of (−log p), Szegedy et al. 2016.
        """
        log_p = logits.float().log_softmax(-1)
        plain = -log_p.gather(-1, tokens[..., None])[..., 0]
        if not self.label_smoothing:
            return plain, plain.detach()
        return torch.lerp(plain, -log_p.mean(-1), self.label_smoothing), plain.detach()


class AutoregressiveObjective(TokenObjective):
    """−Σ_i log p(k_i | k_<i, condition) (Esser et al. 2021), a mean over tokens.

    Args:
        transformer: an `AutoregressiveTransformer`; trained.
        label_dropout: probability of the null class, the last of the embeddings.
        label_smoothing: share of the target that is spread over all codes.
        corruption: probability that a token the network is shown is replaced by a random one (1 − `pkeep` of
            taming-transformers), against what it makes of its own mistakes.

    Reads `condition` (B, condition_length) too where the network takes it. Parts: `bits`, per token, and `hits`, the
    share of tokens that the likeliest code meets.
    """

    def __init__(
        self,
        transformer: AutoregressiveTransformer,
        label_dropout: float = 0.0,
        label_smoothing: float = 0.0,
        corruption: float = 0.0,
    ) -> None:
        super().__init__(transformer, label_dropout, label_smoothing)
        self.corruption = check_number("corruption", corruption, 0.0, 1.0)

    def settings(self) -> dict[str, Any]:
        """What changes the loss."""
        return super().settings() | {"corruption": self.corruption}

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        tokens = shown = take(batch, "tokens")
        if self.corruption:
            other = torch.randint_like(tokens, self.transformer.config.num_codes)
            shown = torch.where(torch.rand(tokens.shape, device=tokens.device) < self.corruption, other, tokens)
        condition = take(batch, "condition") if self.transformer.config.condition_length else None
        logits = self.transformer(shown, self.labels(batch), condition).sample
        minimised, nats = self.nats(logits, tokens)
        hits = (logits.detach().argmax(-1) == tokens).float().mean()
        return Loss(minimised.mean(), {"bits": nats.mean() / math.log(2), "hits": hits})


class MaskedObjective(TokenObjective):
    """−log p of masked tokens given the others, a mean over all of a batch (Chang et al. 2022).

    Args:
        transformer: a `MaskedTransformer`; trained.
        scheduler: whose masking the network will meet; r is drawn from U[0, 1) for each picture.
        label_dropout: probability of the null class.
        label_smoothing: 0.1 in MaskGIT.
        unmasked_weight: weight of tokens that are shown (0 in MaskGIT, 0.1 in TiTok, 1 in MaskBit).

    Parts: `bits`, per masked token, and `hits` among these.
    """

    def __init__(
        self,
        transformer: MaskedTransformer,
        scheduler: MaskedScheduler,
        label_dropout: float = 0.0,
        label_smoothing: float = 0.1,
        unmasked_weight: float = 0.0,
    ) -> None:
        super().__init__(transformer, label_dropout, label_smoothing)
        self.scheduler = scheduler
        self.unmasked_weight = check_number("unmasked_weight", unmasked_weight, 0.0)
        if scheduler.config.mask_token_id != transformer.mask_token:
            raise InputError(
                f"the scheduler masks with token {scheduler.config.mask_token_id}, the network knows "
                f"{transformer.mask_token}: build MaskedScheduler(mask_token_id={transformer.mask_token})"
            )

    def settings(self) -> dict[str, Any]:
        """What changes the loss."""
        schedule = {"masking": self.scheduler.config.masking_schedule}
        return super().settings() | schedule | {"unmasked_weight": self.unmasked_weight}

    def forward(self, batch: Batch, turn: str = "main", step: int = 0) -> Loss:
        """See the class."""
        tokens = take(batch, "tokens")
        times = (1 - torch.rand(len(tokens), device=tokens.device)) * self.scheduler.config.num_train_timesteps
        shown = self.scheduler.add_noise(tokens, torch.rand(tokens.shape, device=tokens.device), times)
        logits = self.transformer(shown, self.labels(batch)).sample
        minimised, nats = self.nats(logits, tokens)
        masked = (shown != tokens).to(nats.dtype)
        weight = masked + self.unmasked_weight * (1 - masked)
        total = (minimised * weight).sum() / weight.sum()
        bits = (nats * masked).sum() / masked.sum() / math.log(2)
        hits = ((logits.detach().argmax(-1) == tokens).to(nats.dtype) * masked).sum() / masked.sum()
        return Loss(total, {"bits": bits, "hits": hits})


@torch.no_grad()
def token_cache(
    codec: TokenCodec,
    images: Dataset,
    batch_size: int = 64,
    condition: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> TensorDataset:
    """Every picture of a data set as `tokens`, encoded once, in evaluation mode; all else is kept, on the CPU.

    Args:
        codec: on its own device.
        images: batches with `x` (B, C, H, W) in [-1, 1].
        batch_size: pictures encoded at once; changes nothing but speed and memory.
        condition: makes `condition` (B, ...) int64 → (B, condition_length) of the batches' `condition`: `to_tokens`
            of a codec of segmentation maps, or a function on `label_map_tokens`.

    Raises `InputError` for a codec without parameters and an empty data set.
    """
    if not isinstance(codec, torch.nn.Module) or not len(images):
        raise InputError(f"needs a codec and pictures, got a {type(codec).__name__} and {len(images)} pictures")
    like = next(codec.parameters())
    columns: dict[str, list[torch.Tensor]] = {}
    with evaluating([codec]):
        for start in range(0, len(images), batch_size):
            batch = dict(images.batch(range(start, min(start + batch_size, len(images)))))
            batch["tokens"] = codec.to_tokens(batch.pop("x").to(like.device, like.dtype))
            if condition is not None:
                batch["condition"] = condition(take(batch, "condition")).flatten(1)
            for name, column in batch.items():
                columns.setdefault(name, []).append(column.cpu())
    return TensorDataset({name: torch.cat(parts) for name, parts in columns.items()})


def label_map_tokens(maps: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """Segmentation maps (B, H, W) int64 → (B, rows·columns): the label that fills most of each cell.

    The least of several that fill as much. Raises `InputError` unless rows divide H and columns divide W.
    """
    if maps.ndim != 3 or maps.dtype != torch.int64:
        raise InputError(f"maps are {maps.dtype} {tuple(maps.shape)}: expected int64 (batch, height, width)")
    batch, height, width = maps.shape
    if rows < 1 or columns < 1 or height % rows or width % columns:
        raise InputError(f"maps of {height}×{width} do not divide into {rows}×{columns} cells: resize them first")
    cells = maps.view(batch, rows, height // rows, columns, width // columns)
    flat = cells.transpose(2, 3).reshape(batch, rows * columns, -1)
    return flat.mode(-1).values
