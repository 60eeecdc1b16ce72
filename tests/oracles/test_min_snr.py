"""Whatever the network predicts, min-SNR weighs the x₀ error by min(SNR, γ): the identities of arXiv:2303.09556."""

import pytest
import torch

from latentia.losses.weighting import min_snr_weight
from latentia.schedulers.prediction import prediction_target, x0_coefficients

GAMMA = 5.0


VARIANCE_PRESERVING = [("epsilon", False), ("sample", False), ("v_prediction", False)]
RECTIFIED = [("epsilon", True), ("sample", True), ("flow_prediction", True)]


@pytest.mark.parametrize(("prediction", "flow"), VARIANCE_PRESERVING + RECTIFIED)
def test_weighted_error_is_the_clamped_x0_error(prediction, flow):
    generator = torch.Generator().manual_seed(0)
    x0, noise, wrong = torch.randn(3, 64, 8, generator=generator, dtype=torch.float64)
    sigma = torch.linspace(0.02, 0.98, 64, dtype=torch.float64).view(-1, 1)
    alpha = 1 - sigma if flow else (1 - sigma**2).sqrt()
    noisy = alpha * x0 + sigma * noise
    target = prediction_target(prediction, x0, noise, alpha, sigma)
    p, q = x0_coefficients(prediction, alpha, sigma)
    x0_error = (p * noisy + q * (target + wrong) - x0).square().sum(1)
    snr = (alpha / sigma).square().flatten()
    weighted = min_snr_weight(snr, GAMMA, prediction) * wrong.square().sum(1)
    assert torch.allclose(weighted, snr.clamp(max=GAMMA) * x0_error, rtol=1e-9)
