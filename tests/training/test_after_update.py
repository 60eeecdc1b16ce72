"""`Objective.after_update`: after every optimizer step of every turn, before the average."""

import pytest
import torch

from latentia.training.phase import EMA, Phase


class Constrained:
    """Mixin: unit norm of one matrix, and a note of every call."""

    def after_update(self, turn):
        self.calls.append(turn)
        with torch.no_grad():
            for weight in self.constrained():
                weight.div_(weight.norm())


@pytest.fixture
def unit(lab):
    """A (name, builder) pair that keeps `first.weight` on the unit sphere, and the objectives that were built."""
    built = []

    class Unit(Constrained, lab.Denoise):
        def __init__(self, poison=None):
            super().__init__(poison=poison)
            self.calls = []

        def constrained(self):
            return [self.net.first.weight]

    def pair(steps=20, poison=None):
        name, build = lab.denoise(steps)

        def make():
            like = build()
            objective = Unit(poison)
            built.append(objective)
            return Phase(name, objective, like.data, steps, like.batch_size, like.optim, ema=EMA(0.5))

        return name, make

    return pair, built


def test_the_constraint_holds_and_is_averaged(lab, tmp_path, unit):
    pair, built = unit
    results = lab.train([pair(7)], tmp_path / "run", lab.quiet())
    (objective,) = built
    assert objective.calls == ["main"] * 7
    assert float(objective.net.first.weight.detach().norm()) == pytest.approx(1, abs=1e-6)
    averaged = results["denoise"].averaged["net"]["first.weight"]
    assert 0.9 < float(averaged.norm()) <= 1 + 1e-6  # of unit vectors: had it seen others, it would be longer


def test_every_turn_is_named(lab, tmp_path):
    class Noted(Constrained, lab.Duel):
        def __init__(self):
            super().__init__()
            self.calls = []

        def constrained(self):
            return []

    objective = Noted()
    phase = Phase("duel", objective, lab.rows(), 3, 4)
    lab.train([("duel", lambda: phase)], tmp_path / "run", lab.quiet())
    assert objective.calls == ["generator", "discriminator"] * 3


class Stop(Exception):
    pass


def test_a_resumed_run_is_bit_equal(lab, tmp_path, unit):
    def poison(step, total):
        if step == 13:
            raise Stop
        return total

    pair, _ = unit
    whole = lab.train([pair()], tmp_path / "whole", lab.quiet())
    with pytest.raises(Stop):
        lab.train([pair(poison=poison)], tmp_path / "cut", lab.quiet())
    resumed = lab.train([pair()], tmp_path / "cut", lab.quiet(), resume=True)
    lab.assert_same(lab.weights(resumed), lab.weights(whole))
