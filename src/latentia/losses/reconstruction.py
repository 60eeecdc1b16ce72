"""How far x̂ is from x: elementwise errors, and what "sum" and "mean" mean here."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from latentia.errors import InputError, check_choice

Elementwise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def squared_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(a − b)², elementwise."""
    return F.mse_loss(a, b, reduction="none")


def absolute_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """|a − b|, elementwise."""
    return F.l1_loss(a, b, reduction="none")


def huber_error(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """½(a − b)² where |a − b| ≤ 1, |a − b| − ½ beyond, elementwise (P. J. Huber, 1964, δ = 1)."""
    return F.huber_loss(a, b, reduction="none", delta=1.0)


ERRORS: dict[str, Elementwise] = {
    "mse": squared_error,
    "l2": squared_error,
    "l1": absolute_error,
    "huber": huber_error,
}
"""Elementwise errors by name; `l2` and `mse` are the same function."""

REDUCTIONS = ("sum", "mean")


def per_sample(values: torch.Tensor, reduction: str) -> torch.Tensor:
    """(B, ...) → (B,): the sum or the mean over everything but the batch.

    Raises `UnknownChoiceError` for another reduction.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    flat = values.flatten(1) if values.ndim > 1 else values.unsqueeze(1)
    return flat.sum(1) if reduction == "sum" else flat.mean(1)


def weighted_error(
    prediction: torch.Tensor, target: torch.Tensor, loss: str = "mse", weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean over the batch of w_b · mean_elements error(prediction_b, target_b), in float32; a scalar.

    Args:
        prediction: (B, ...), any float dtype.
        target: the same shape.
        loss: `mse` (= `l2`), `l1` or `huber`.
        weight: (B,), or None for ones.

    Raises `InputError` when the shapes differ (PyTorch would broadcast in silence).
    """
    check_choice("loss", loss, ERRORS)
    if prediction.shape != target.shape:
        raise InputError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    errors = ERRORS[loss](prediction.float(), target.float())
    return errors.mean() if weight is None else (per_sample(errors, "mean") * weight).mean()
