import pytest
import torch
from torch import nn

from latentia.errors import InputError, UnknownChoiceError
from latentia.losses.adversarial import LeCam, adaptive_weight, discriminator_loss, generator_loss


def test_unknown_kind():
    with pytest.raises(UnknownChoiceError, match="did you mean 'hinge'"):
        discriminator_loss(torch.zeros(1), torch.zeros(1), "hing")
    with pytest.raises(UnknownChoiceError, match="vanilla"):
        generator_loss(torch.zeros(1), "wgan")


def test_no_weight_where_nothing_is_learned():
    w = nn.Parameter(torch.ones(2))
    with torch.no_grad():
        assert float(adaptive_weight(w.sum(), w.sum(), w)) == 0


@pytest.mark.parametrize(("rec", "gan", "name"), [(False, True, "reconstruction"), (True, False, "adversarial")])
def test_a_loss_that_misses_the_last_layer(rec, gan, name):
    w, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    losses = [(w if reaches else other).sum() for reaches in (rec, gan)]
    with pytest.raises(InputError, match=f"the {name} loss does not depend on the last layer"):
        adaptive_weight(*losses, w)
    with pytest.raises(InputError, match="adversarial"):
        adaptive_weight(w.sum(), torch.zeros(()), w)


def test_half_precision_logits_are_measured_in_float32():
    loss = discriminator_loss(torch.full((3,), 300.0).half(), torch.full((3,), 300.0).half())
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(150.5)


def test_lecam_decay():
    with pytest.raises(InputError, match=r"\[0, 1\)"):
        LeCam(1.0)
