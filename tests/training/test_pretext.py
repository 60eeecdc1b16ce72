import math

import pytest
import torch
import torch.nn.functional as F

from latentia.data.dataset import TensorDataset
from latentia.errors import InputError
from latentia.metrics.photo_features import PhotoFeatures
from latentia.training.phase import Optim, Phase
from latentia.training.pretext import DAMAGES, DamageObjective, InstanceObjective, damaged, turn_by, view


def small(channels=1):
    torch.manual_seed(0)
    return PhotoFeatures(in_channels=channels, channels=(4, 6, 6), feature_dim=6)


def pictures(count=6, channels=1, side=8):
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_instances_by_hand():
    objective = InstanceObjective(small(), temperature=0.5).eval()
    x = pictures(3)
    torch.manual_seed(2)
    found = objective({"x": x})
    torch.manual_seed(2)
    z = F.normalize(objective.head(objective.network(torch.cat([view(x), view(x)]))), dim=1).detach()
    total = 0.0
    for i in range(6):
        twin = (i + 3) % 6
        others = sum(math.exp(float(z[i] @ z[k]) / 0.5) for k in range(6) if k != i)
        total += -math.log(math.exp(float(z[i] @ z[twin]) / 0.5) / others) / 6
    assert float(found.total.detach()) == pytest.approx(total, rel=1e-5)
    assert 0 <= float(found.parts["accuracy"]) <= 1


def test_a_network_that_sees_nothing_scores_chance():
    objective = InstanceObjective(small())
    for p in objective.head.parameters():
        p.data.zero_()
    torch.nn.init.ones_(objective.head[-1].bias)
    assert float(objective({"x": pictures(4)}).total.detach()) == pytest.approx(math.log(7), rel=1e-5)
    damage = DamageObjective(small(), 3)
    for p in damage.head.parameters():
        p.data.zero_()
    batch = {"x": pictures(4), "label": torch.tensor([0, 1, 2, 0])}
    expected = math.log(len(DAMAGES)) + math.log(4) + math.log(3)
    assert float(damage(batch).total.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_stays_a_picture_of_the_same(channels):
    torch.manual_seed(0)
    x = pictures(64, channels)
    seen = view(x)
    assert seen.shape == x.shape
    assert float(seen.abs().max()) <= 1
    assert not torch.equal(seen, x)
    ramp = torch.arange(8.0).div(8).sub(0.5).expand(64, channels, 8, 8)
    steps = view(ramp * 0.5).diff(dim=3)[..., 2:-2]  # inside, away from the reflected edge
    assert (steps.sign().amin((1, 2, 3)) == steps.sign().amax((1, 2, 3))).all()
    assert 16 < int((steps.mean((1, 2, 3)) < 0).sum()) < 48  # half of them mirrored


def test_turned_by_quarters():
    x = pictures(4)
    turned = turn_by(x, torch.tensor([0, 1, 2, 3]))
    assert torch.equal(turned[0], x[0])
    assert torch.equal(turned[1], torch.rot90(x[1], 1, (1, 2)))
    assert torch.equal(turned[3], torch.rot90(x[3], 3, (1, 2)))


def test_damages():
    torch.manual_seed(0)
    x = pictures(1, 3, 8).mul(0.3).expand(len(DAMAGES), 3, 8, 8)
    found = damaged(x, torch.arange(len(DAMAGES)))
    assert torch.equal(found[0], x[0])
    assert all(not torch.equal(found[i], x[i]) for i in range(1, len(DAMAGES)))
    energy = found.diff(dim=3).square().mean((1, 2, 3))
    assert energy[1] < energy[0]  # blur
    assert energy[2] > energy[0]  # noise
    assert damaged(pictures(2, 1, 10), torch.tensor([3, 3])).shape == (2, 1, 10, 10)  # blocks of an odd size


@pytest.mark.parametrize("kind", ["instances", "damage"])
def test_learns(lab, tmp_path, kind):
    network = small()
    objective = InstanceObjective(network) if kind == "instances" else DamageObjective(network, 2)
    data = TensorDataset({"x": pictures(32), "label": torch.arange(32) % 2})
    phase = Phase("features", objective, data, 40, 32, Optim(lr=1e-2))
    lab.train([("features", lambda: phase)], tmp_path, lab.quiet(log_every=10))
    lines = lab.lines(tmp_path)
    assert lines[-1]["loss"] < 0.94 * lines[0]["loss"]


def test_bad_input():
    with pytest.raises(InputError, match="temperature"):
        InstanceObjective(small(), temperature=0)
    with pytest.raises(InputError, match="num_labels"):
        DamageObjective(small(), -1)
    with pytest.raises(InputError, match="no 'label'"):
        DamageObjective(small(), 2)({"x": pictures()})
