"""What a network may predict, and the straight lines between ε, x₀, v and flow.

With x = α x₀ + σ ε every prediction y gives x̂₀ and ε̂ as linear functions of x and y, so one pair of
numbers per timestep says all:

    ======================  =======================  ==================
    prediction_type         y                        x̂₀
    ======================  =======================  ==================
    epsilon                 ε                        (x − σ y) / α
    sample                  x₀                       y
    v_prediction            α ε − σ x₀               α x − σ y
    flow_prediction         ε − x₀                   (x − σ y) / (α + σ)
    ======================  =======================  ==================

The functions take floats, numpy arrays or tensors alike. v: Salimans & Ho (2022).
"""

from typing import Any

import torch

from latentia.errors import InputError, check_choice, unknown_choice

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction")

FLOATS = (torch.float32, torch.float64)


def x0_coefficients(prediction: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """(p, q) such that x̂₀ = p·x + q·y; α and σ of any one shape."""
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction == "sample":
        return 0 * alpha, 1 + 0 * alpha
    if prediction == "v_prediction":
        return alpha, -sigma
    if prediction == "flow_prediction":
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    raise unknown_choice("prediction_type", prediction, PREDICTIONS)


def eps_coefficients(prediction: str, alpha: Any, sigma: Any) -> tuple[Any, Any]:
    """(p, q) such that ε̂ = p·x + q·y; α and σ of any one shape."""
    if prediction == "epsilon":
        return 0 * alpha, 1 + 0 * alpha
    if prediction == "sample":
        return 1 / sigma, -alpha / sigma
    if prediction == "v_prediction":
        return sigma, alpha
    if prediction == "flow_prediction":
        return 1 / (alpha + sigma), alpha / (alpha + sigma)
    raise unknown_choice("prediction_type", prediction, PREDICTIONS)


def prediction_target(prediction: str, x0: torch.Tensor, noise: torch.Tensor, alpha: Any, sigma: Any) -> torch.Tensor:
    """The y that a perfect network would say: ε, x₀, α ε − σ x₀ or ε − x₀; α and σ broadcast against `x0`."""
    check_choice("prediction_type", prediction, PREDICTIONS)
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return x0
    if prediction == "v_prediction":
        return (alpha * noise - sigma * x0).to(x0.dtype)
    return noise - x0


def direction(p: Any, q: Any) -> tuple[Any, Any]:
    """(s, r) such that p·x + q·y = s·(y + r·x): one operation instead of two where s can wait; q is never zero."""
    return q, p / q


def affine(a: float, x: torch.Tensor, b: float, y: torch.Tensor) -> torch.Tensor:
    """a·x + b·y as one fresh tensor."""
    if a == 1.0:
        return torch.add(x, y, alpha=b)
    if a == 0.0:
        return torch.mul(y, b)
    if b == 0.0:
        return torch.mul(x, a)
    return torch.mul(x, a).add_(y, alpha=b)


def operands(model_output: torch.Tensor, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both tensors in one dtype to compute in: half precision rises to float32, float32 and float64 stay.

    Raises `InputError` when the shapes differ.
    """
    dtype = sample.dtype
    if model_output.shape != sample.shape:
        raise InputError(
            f"model_output has shape {tuple(model_output.shape)} but sample has {tuple(sample.shape)}: "
            "the network must predict one value per element of the sample"
        )
    if model_output.dtype is dtype and dtype in FLOATS:
        return model_output, sample
    dtype = dtype if dtype in FLOATS else torch.float32
    return model_output.to(dtype), sample.to(dtype)


def dynamic_threshold(x0: torch.Tensor, ratio: float, max_value: float) -> torch.Tensor:
    """Clip each sample to its own `ratio`-quantile s of |x₀|, 1 ≤ s ≤ max_value, and divide by s.

    Saharia et al. (2022). For pixels only: latents have no fixed range.
    """
    flat = x0.reshape(len(x0), -1)
    flat = flat if flat.dtype in FLOATS else flat.float()
    limit = torch.quantile(flat.abs(), ratio, dim=1, keepdim=True).clamp(1, max_value)
    return (flat.clamp(-limit, limit) / limit).reshape(x0.shape).to(x0.dtype)
