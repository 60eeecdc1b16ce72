"""TextDiffusionObjective: denoise what a caption describes."""

from typing import Any

import torch
from torch import nn

from latentia.core.protocols import Batch
from latentia.errors import InputError
from latentia.schedulers.scheduler import SchedulerMixin
from latentia.training.objective import take
from latentia.training.objectives import DiffusionObjective


class TextDiffusionObjective(DiffusionObjective):
    """Learn to denoise x_t from its caption c, and, now and then, from the empty one.

        total = mean_b w(t_b) · mean_elements error(network(x_t, t, τ(c)), target),   c ← "" with `caption_dropout`

    (Rombach et al. 2022, §3.3; dropping captions is what classifier-free guidance needs, Ho & Salimans 2022.) Noise,
    times, targets and weights are `DiffusionObjective`'s. Padding is attended to, as in Stable Diffusion.

    Args:
        denoiser: `denoiser(x_t, t, encoder_hidden_states=τ(c)).sample`; trained.
        scheduler: see `DiffusionObjective`.
        text_encoder: τ, `text_encoder(input_ids).last_hidden_state` (B, L, D): ours, or any of transformers.
        empty_ids: (L,) int64, the tokens of "", padded as captions are.
        caption_dropout: probability, for each sample by itself, that its caption becomes the empty one.
        train_text_encoder: train τ along (LDM); otherwise it is frozen: in eval mode, without gradients (SD).
        options: the other arguments of `DiffusionObjective`.

    Reads `input_ids` (B, L) int64 from the batch, beside what `DiffusionObjective` reads.
    Raises `InputError` for values out of range and for tokens of another shape or type.
    """

    empty_ids: torch.Tensor

    def __init__(
        self,
        denoiser: nn.Module,
        scheduler: SchedulerMixin,
        text_encoder: nn.Module,
        empty_ids: torch.Tensor,
        caption_dropout: float = 0.1,
        train_text_encoder: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, scheduler, **options)
        if not 0 <= caption_dropout <= 1:
            raise InputError(f"caption_dropout is a probability in [0, 1], got {caption_dropout}")
        if empty_ids.ndim != 1 or empty_ids.dtype != torch.int64:
            raise InputError(
                f"empty_ids must be (L,) int64, the tokens of one empty caption, got {tuple(empty_ids.shape)} "
                f"of {empty_ids.dtype}"
            )
        self.text_encoder = text_encoder
        self.register_buffer("empty_ids", empty_ids, persistent=False)
        self.caption_dropout, self.train_text_encoder = caption_dropout, train_text_encoder
        if not train_text_encoder:
            self.frozen = (*self.frozen, "text_encoder")
            text_encoder.eval()

    def settings(self) -> dict[str, Any]:
        """Everything but the modules and tokens."""
        own = {"caption_dropout": self.caption_dropout, "train_text_encoder": self.train_text_encoder}
        return super().settings() | own

    def conditions(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The encoded captions, and labels if the network has classes."""
        return super().conditions(batch) | {"encoder_hidden_states": self.encode(self.captions(batch))}

    def captions(self, batch: Batch) -> torch.Tensor:
        """(B, L) tokens, each row replaced by `empty_ids` with probability `caption_dropout`."""
        ids = take(batch, "input_ids")
        if ids.ndim != 2 or ids.shape[1] != len(self.empty_ids) or ids.dtype != torch.int64:
            raise InputError(
                f"input_ids must be (B, {len(self.empty_ids)}) int64, as long as empty_ids, got {tuple(ids.shape)} "
                f"of {ids.dtype}: tokenize captions and the empty one with the same padding and max_length"
            )
        if not self.caption_dropout:
            return ids
        dropped = torch.rand(len(ids), 1, device=ids.device) < self.caption_dropout
        return torch.where(dropped, self.empty_ids, ids)

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """τ(c) (B, L, D); without a graph when the text encoder is not trained."""
        with torch.set_grad_enabled(self.train_text_encoder and torch.is_grad_enabled()):
            encoded: torch.Tensor = self.text_encoder(ids).last_hidden_state
        return encoded
