"""A run small enough to be repeated hundreds of times: a two-layer denoiser on ten rows."""

import json
import multiprocessing
import os
import signal
import time

import pytest
import torch
from torch import nn

from latentia.data.dataset import TensorDataset
from latentia.training.loop import train
from latentia.training.objective import Loss, Objective
from latentia.training.phase import EMA, Optim, Phase
from latentia.training.settings import Settings


class Net(nn.Module):
    """Two layers with dropout, and a batch norm for its buffers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.1)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


class Denoise(Objective):
    """x + noise → x."""

    def __init__(self, net=None, poison=None):
        super().__init__()
        self.net = net or Net()
        self.poison = poison or (lambda step, total: total)

    def forward(self, batch, turn="main", step=0):
        x = batch["x"]
        mse = (self.net(x + torch.randn_like(x)) - x).square().mean()
        total = self.poison(step, mse)
        return Loss(total, {"mse": total.detach()})


class Duel(Objective):
    """Two turns with an optimizer each."""

    turns = ("generator", "discriminator")

    def __init__(self):
        super().__init__()
        self.generator, self.critic = nn.Linear(4, 4), nn.Linear(4, 1)

    def turn_modules(self, turn):
        return ("generator",) if turn == "generator" else ("critic",)

    def forward(self, batch, turn="main", step=0):
        x = batch["x"]
        fake = self.generator(torch.randn_like(x))
        if turn == "generator":
            total = -self.critic(fake).mean()
        else:
            total = torch.relu(1 - self.critic(x)).mean() + torch.relu(1 + self.critic(fake)).mean()
        return Loss(total, {"adversarial": total.detach()})


def rows(count=10):
    return TensorDataset({"x": torch.linspace(-1, 1, 4 * count).view(count, 4)})


def denoise(steps=20, name="denoise", poison=None, **changes):
    """A (name, builder) pair."""
    given = {
        "batch_size": 8,
        "optim": Optim(lr=1e-2, warmup=3),
        "ema": EMA(0.99),
        **changes,
    }
    return name, lambda: Phase(name, Denoise(poison=poison), given.pop("data", None) or rows(), steps, **given)


def quiet(**changes):
    return Settings(**{"device": "cpu", "progress": False, "tensorboard": False, "save_every": 5, **changes})


def weights(results):
    """Everything a run leaves behind: raw and averaged tensors."""
    return {
        f"{phase}.{kind}.{module}.{key}": value.clone()
        for phase, result in results.items()
        for kind, states in (
            ("raw", {name: m.state_dict() for name, m in result.modules.items()}),
            ("averaged", result.averaged or {}),
        )
        for module, state in states.items()
        for key, value in state.items()
    }


def lines(out):
    """metrics.jsonl without its clock."""
    text = (out / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in text.splitlines()]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def in_child(target, kill_after=None):
    """Run `target` in a forked process, kill -9 it after so many seconds if given; its exit code."""
    child = multiprocessing.get_context("fork").Process(target=target)
    child.start()
    if kill_after is not None:
        time.sleep(kill_after)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
    child.join(60)
    return child.exitcode


@pytest.fixture
def lab():
    """The helpers above, for tests that are imported without a package."""

    class Lab:
        pass

    found = Lab()
    names = (Net, Denoise, Duel, rows, denoise, quiet, weights, lines, assert_same, in_child, train)
    for helper in names:
        setattr(found, helper.__name__, helper)
    return found


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
