import pytest
import torch
from torch import nn

from latentia.errors import UnknownChoiceError
from latentia.methods.flowmo.weight_norm import ForcedWeightNorm, block_matrices


def grow(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3).add_(torch.randn_like(p))


def test_every_matrix_of_the_blocks_and_nothing_else(tiny):
    """Released: QKV, proj, two MLP layers and the modulation of both streams; 8 + 2·… less what is not built."""
    model = tiny()
    inside = {id(p) for p in block_matrices(model)}
    names = {name for name, p in model.named_parameters() if id(p) in inside}
    assert all(".blocks." in name and name.endswith(".weight") for name in names)
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".blocks." in n}
    assert names == {f"{n}.weight" for n in linear}
    assert len(names) == 2 * 4 * 2 - 3 + 2 * 5 * 2 - 3  # the ended streams have neither projection nor MLP


@pytest.mark.parametrize("mode", ["l2", "channel"])
def test_norms_come_back_and_directions_stay(tiny, mode):
    model = tiny(alive=False)
    before = [w.detach().clone() for w in block_matrices(model)]
    forced = ForcedWeightNorm(model, mode)
    biases = [p for p in model.parameters() if p.ndim == 1]
    grow(model)
    grown, grown_biases = [w.detach().clone() for w in block_matrices(model)], [b.detach().clone() for b in biases]
    forced.apply(model)
    for w, old, big in zip(block_matrices(model), before, grown, strict=True):
        w = w.detach()
        if mode == "l2":
            torch.testing.assert_close(w.norm(), old.norm())
            torch.testing.assert_close(w / w.norm(), big / big.norm())
        else:
            torch.testing.assert_close(w.norm(dim=1), old.norm(dim=1), atol=1e-6, rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(biases, grown_biases))


def test_frozen_matrices_are_left_alone(tiny):
    model = tiny()
    model.encoder.requires_grad_(False)
    forced = ForcedWeightNorm(model)
    grow(model)
    kept = [w.detach().clone() for w in block_matrices(model.encoder)]
    forced.apply(model)
    assert all(torch.equal(a, b) for a, b in zip(block_matrices(model.encoder), kept))


def test_unknown_mode(tiny):
    with pytest.raises(UnknownChoiceError, match="channel, l2"):
        ForcedWeightNorm(tiny(), "row")
