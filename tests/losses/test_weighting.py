import pytest
import torch

from latentia.errors import InputError, UnknownChoiceError
from latentia.losses.weighting import PREDICTIONS, min_snr_weight

SNR = torch.tensor([0.0, 0.5, 5.0, 50.0, float("inf")])


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("epsilon", [1, 1, 1, 0.1, 0]),
        ("sample", [0, 0.5, 5, 5, 5]),
        ("v_prediction", [0, 0.5 / 1.5, 5 / 6, 5 / 51, 0]),
        ("flow_prediction", [0, 0.5 / (1 + 0.5**0.5) ** 2, 5 / (1 + 5**0.5) ** 2, 5 / (1 + 50**0.5) ** 2, 0]),
    ],
)
def test_values_at_all_signal_levels_including_none(prediction, expected):
    assert torch.allclose(min_snr_weight(SNR, 5.0, prediction), torch.tensor(expected), rtol=1e-6)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_always_finite(prediction):
    snr = torch.cat([SNR, torch.logspace(-30, 30, 50)])
    assert torch.isfinite(min_snr_weight(snr, 5.0, prediction)).all()


def test_bad_arguments():
    with pytest.raises(InputError, match="gamma > 0, got 0"):
        min_snr_weight(SNR, 0)
    with pytest.raises(UnknownChoiceError, match="did you mean 'epsilon'"):
        min_snr_weight(SNR, 5.0, "epsilo")
