"""What the conditional prior of p-diff learns: latents of parameters, told what the networks are for."""

from typing import Any

import torch
from torch import nn

from latentia.core.arguments import check_number
from latentia.core.protocols import Batch
from latentia.errors import InputError
from latentia.methods.pdiff.condition import condition_of
from latentia.methods.pdiff.objectives import LatentPriorObjective
from latentia.schedulers.scheduler import SchedulerMixin
from latentia.training.objective import take


class ConditionalLatentPriorObjective(LatentPriorObjective):
    """Learn to denoise latents (B, c, L), told a condition (B, width) each: ε̂(z_t, t, c) instead of ε̂(z_t, t).

    Args:
        denoiser: with `class_embed_type="projection"`, of the condition's width.
        scheduler: as of `LatentPriorObjective`.
        condition_dropout: probability, for each sample by itself, that its condition becomes the null condition,
            zeros, so that generation can be guided (Ho & Salimans 2022). Conditions that are themselves zeros then
            mean nothing.
        options: of `LatentPriorObjective`.

    Reads `x` and `condition` from the batch. Raises `InputError` for a denoiser that takes no vectors, and for a
    probability out of range.
    """

    def __init__(
        self, denoiser: nn.Module, scheduler: SchedulerMixin, condition_dropout: float = 0.0, **options: Any
    ) -> None:
        super().__init__(denoiser, scheduler, **options)
        config: Any = denoiser.config
        if condition_of(config, None) is None:
            raise InputError(
                "a conditional prior needs a denoiser that is told numbers: set class_embed_type='projection' and "
                "projection_class_embeddings_input_dim to the condition's width"
            )
        self.condition_dropout = check_number("condition_dropout", condition_dropout, 0, 1)

    def settings(self) -> dict[str, Any]:
        """Everything but the module."""
        return {**super().settings(), "condition_dropout": self.condition_dropout}

    def conditions(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The conditions, some of them dropped."""
        condition = take(batch, "condition")
        if self.condition_dropout:
            kept = torch.rand(len(condition), 1, device=condition.device) >= self.condition_dropout
            condition = condition * kept
        return {"class_labels": condition}
