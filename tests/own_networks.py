"""Functions of a user's own, as tests name them: a module with BatchNorm, tied tensors and an integer buffer."""

import torch
from torch import nn
from torch.nn import functional as F


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.b.weight = self.a.weight
        self.register_buffer("version", torch.tensor(3))

    def forward(self, x):
        h = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.b(torch.relu(self.a(h)))))


def build():
    return Tagger()


def data():
    generator = torch.Generator().manual_seed(0)
    x, way = torch.randn(60, 6, generator=generator), torch.randn(6, 3, generator=generator)
    return x, (x @ way + torch.randn(60, 3, generator=generator)).argmax(1)


def floats():
    x, y = data()
    return x, y.float()


def narrow():
    x, y = data()
    return x[:, :5], y


def squared(output, y):
    return (output[:, 0] - y).square().mean()


def train(seed):
    torch.manual_seed(seed)
    x, y = data()
    network = build()
    optimizer = torch.optim.AdamW(network.parameters(), 5e-3)
    while True:  # the recipe's count ends it
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
        yield network.state_dict()


def dies(seed):
    for number, state in zip(range(5), train(seed)):
        if number == 3:
            raise ValueError("lost the disk")
        yield state


def diverges(seed):
    for number, state in enumerate(train(seed)):
        if number == 3:
            state["head.bias"][1] = torch.nan
        yield state


def interrupted(seed):
    for number, state in enumerate(train(seed)):
        if number == 3:
            raise KeyboardInterrupt
        yield state


def nothing(seed):
    return iter(())


def one_dict(seed):
    return build().state_dict()


def score(network):
    x, y = data()
    return (network(x).argmax(1) == y).float().mean()


def words(network):
    return "good"


def nan_score(network):
    return float("nan")


def listed():
    return [1]


def fails():
    raise RuntimeError("no such disk")


def needs(x):
    return x


number = 3
network = build()
