import pytest
import torch
from torch import nn

from latentia.errors import TrainingError
from latentia.training.muon import Muon, matrices_of, orthogonal
from latentia.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from latentia.training.phase import Optim


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 32)
        self.first = nn.Linear(32, 48)
        self.second = nn.Linear(48, 48, bias=False)
        self.conv = nn.Conv2d(16, 24, 3)
        self.thin = nn.Linear(48, 8)


def test_matrices_are_maps_and_convolutions_not_tables_biases_or_thin_ones():
    net = Net()
    assert [id(p) for p in matrices_of([net])] == [
        id(p) for p in (net.first.weight, net.second.weight, net.conv.weight)
    ]


@pytest.mark.parametrize("shape", [(3, 24, 60), (2, 60, 24), (1, 32, 32)])
def test_orthogonal_keeps_directions_and_levels_singular_values(shape):
    torch.manual_seed(0)
    # Well-conditioned: the iterations need more steps for values near 0.
    u, s, vh = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    x = u @ torch.diag_embed(0.2 + s) @ vh
    made = orthogonal(x).float()
    values = torch.linalg.svdvals(made)
    assert 0.6 < values.min() < values.max() < 1.3
    # Its own directions: Uᵀ made V is diagonal.
    inside = u.mT @ made @ vh.mT
    assert (inside - torch.diag_embed(inside.diagonal(dim1=1, dim2=2))).abs().max() < 0.05


def test_like_torchs_muon_on_a_matrix():
    peer = getattr(torch.optim, "Muon", None)
    if peer is None:
        pytest.skip("torch.optim.Muon came with torch 2.9")
    torch.manual_seed(0)
    start = torch.randn(32, 48)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a = Muon([ours], [ours], lr=0.1, weight_decay=0.2)
    b = peer([theirs], lr=0.1, weight_decay=0.2, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradient = torch.randn(32, 48)
        for p, optimizer in ((ours, a), (theirs, b)):
            p.grad = gradient.clone()
            optimizer.step()
    # It iterates in bfloat16.
    assert (ours - theirs).norm() < 0.03 * (ours - start).norm()


def test_what_is_no_matrix_is_adamws():
    torch.manual_seed(0)
    net, other = Net(), Net()
    other.load_state_dict(net.state_dict())
    values = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3}
    ours = build_optimizer(Optim(optimizer="muon", **values), net.parameters(), [net])
    theirs = build_optimizer(Optim(**values), other.parameters())
    for _ in range(3):
        for p, q in zip(net.parameters(), other.parameters()):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    same = {name: torch.equal(p, q) for (name, p), q in zip(net.named_parameters(), other.parameters())}
    assert {name for name, equal in same.items() if not equal} == {"first.weight", "second.weight", "conv.weight"}


def test_steps_are_as_long_as_stated():
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(64, 96))
    optimizer = Muon([p], [p], lr=0.5)
    p.grad = torch.randn(64, 96)
    optimizer.step()
    # ‖o‖² ≈ 64 singular values of 1: rms = 0.2 · 0.5 · √96 · √(64 / (64 · 96)) = 0.1
    assert float(p.detach().square().mean().sqrt()) == pytest.approx(0.1, rel=0.15)


def test_state_travels_and_training_goes_on_equally():
    torch.manual_seed(0)
    net = Net()
    optimizer = build_optimizer(Optim(optimizer="muon"), net.parameters(), [net])
    gradients = [[torch.randn_like(p) for p in net.parameters()] for _ in range(3)]

    def step(net, optimizer, k):
        for p, g in zip(net.parameters(), gradients[k]):
            p.grad = g.clone()
        optimizer.step()

    step(net, optimizer, 0)
    saved = {k: v.clone() for k, v in optimizer_tensors(optimizer, names_of(net)).items()}
    assert {"conv.weight.momentum", "conv.bias.exp_avg_sq"} <= set(saved)
    other = Net()
    other.load_state_dict(net.state_dict())
    resumed = build_optimizer(Optim(optimizer="muon"), other.parameters(), [other])
    load_optimizer_tensors(resumed, names_of(other), saved)
    for k in (1, 2):
        step(net, optimizer, k)
        step(other, resumed, k)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters()))


def names_of(net):
    return {id(p): name for name, p in net.named_parameters()}


def test_parameters_without_gradient_stay():
    torch.manual_seed(0)
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = build_optimizer(Optim(optimizer="muon", weight_decay=0.1), net.parameters(), [net])
    net.first.weight.grad = torch.randn(48, 32)
    optimizer.step()
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"first.weight"}


def test_fsdp_is_refused(monkeypatch):
    from types import SimpleNamespace

    from latentia.training.state import PhaseState

    net = Net()
    state = PhaseState.__new__(PhaseState)
    state.phase = SimpleNamespace(name="p", optim_of=lambda turn: Optim(optimizer="muon"))
    state.objective = SimpleNamespace(turn_modules=lambda turn: ["net"])
    state.modules, state.names = {"net": net}, {}
    state.settings = SimpleNamespace(fsdp=True, precision="no")
    with pytest.raises(TrainingError, match="use adamw, or no fsdp"):
        state._turn("main")
