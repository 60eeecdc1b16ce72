"""Weights over noise levels: how much the loss at signal-to-noise ratio SNR = α²/σ² counts."""

import torch

from latentia.errors import InputError, check_choice

PREDICTIONS = ("epsilon", "flow_prediction", "sample", "v_prediction")


def min_snr_weight(snr: torch.Tensor, gamma: float = 5.0, prediction_type: str = "epsilon") -> torch.Tensor:
    """Min-SNR-γ: an x₀ error counts min(SNR, γ), whatever the network predicts.

        x₀: min(SNR, γ)        ε: min(SNR, γ)/SNR
        v (where α² + σ² = 1): min(SNR, γ)/(SNR + 1)
        flow (u = ε − x₀, α = 1 − σ): min(SNR, γ)/(1 + √SNR)²

    by ‖Δε‖² = SNR ‖Δx₀‖², ‖Δv‖² = (SNR + 1) ‖Δx₀‖², ‖Δu‖² = ‖Δx₀‖²/σ² (Hang et al. 2023, arXiv:2303.09556).
    The ε weight is computed as min(1, γ/SNR), so that it is 1, not 0/0, at zero terminal SNR.

    Args:
        snr: any shape, in [0, ∞].
        gamma: > 0.
        prediction_type: `epsilon`, `sample`, `v_prediction` or `flow_prediction`.

    Returns weights of `snr`'s shape, finite everywhere. Raises `InputError` for γ ≤ 0 and for an unknown prediction.
    """
    check_choice("prediction_type", prediction_type, PREDICTIONS)
    if not gamma > 0:
        raise InputError(f"min-SNR needs gamma > 0, got {gamma}")
    epsilon_weight = (gamma / snr).clamp(max=1.0)
    if prediction_type == "epsilon":
        return epsilon_weight
    if prediction_type == "sample":
        return snr.clamp(max=gamma)
    # snr/(snr + 1) and snr/(1 + √snr)² as reciprocals: finite at SNR = 0 and at SNR = ∞
    if prediction_type == "v_prediction":
        return epsilon_weight / (1 + 1 / snr)
    return epsilon_weight / (1 + snr.rsqrt()).square()
