import pytest
import torch
from torch import nn

from latentia.errors import TrainingError
from latentia.training.optim import (
    build_optimizer,
    clip_gradients,
    gradient_norm,
    learning_rate,
    load_optimizer_tensors,
    optimizer_tensors,
)
from latentia.training.phase import Optim


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        (Optim(lr=1.0), [1, 1, 1, 1, 1, 1]),
        (Optim(lr=1.0, warmup=4), [0.25, 0.5, 0.75, 1, 1, 1]),
        (Optim(lr=2.0, warmup=2, schedule="linear"), [1, 2, 2, 1.5, 1, 0.5]),
        (Optim(lr=2.0, schedule="linear", final_lr=0.5), [2, 11 / 6, 10 / 6, 9 / 6, 8 / 6, 7 / 6]),
        (Optim(lr=1.0, schedule="cosine"), [1, 0.9330127, 0.75, 0.5, 0.25, 0.0669873]),
        (Optim(lr=1.0, schedule="cosine", final_lr=0.2), [1, 0.9464102, 0.8, 0.6, 0.4, 0.2535898]),
    ],
)
def test_learning_rates(optim, expected):
    assert [learning_rate(optim, k, 6) for k in range(6)] == pytest.approx(expected)


def test_learning_rate_beyond_the_end_and_all_warmup():
    assert learning_rate(Optim(lr=1.0, schedule="linear", final_lr=0.1), 99, 6) == pytest.approx(0.1)
    assert learning_rate(Optim(lr=1.0, schedule="cosine", warmup=10), 5, 6) == pytest.approx(0.6)


@pytest.mark.parametrize(("kind", "peer"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_fused_and_plain_agree(kind, peer):
    values = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3}
    ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    a, b = build_optimizer(Optim(optimizer=kind, **values), [ours]), peer([theirs], **values)
    for k in range(5):
        for p, optimizer in ((ours, a), (theirs, b)):
            p.grad = torch.linspace(0, k, 7)
            optimizer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_norm_and_clipping():
    p, q, unused = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(3))
    p.grad, q.grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    norm = float(gradient_norm([p, q, unused]))
    assert norm == pytest.approx(7)
    clip_gradients([p, q, unused], 14.0, norm)
    assert p.grad.tolist() == [2, 3]
    clip_gradients([p, q, unused], None, norm)
    assert p.grad.tolist() == [2, 3]
    clip_gradients([p, q, unused], 3.5, norm)
    assert (p.grad.tolist(), q.grad.tolist()) == ([1, 1.5], [3])


def test_state_travels_by_name():
    def stepped():
        net = nn.Linear(3, 2)
        optimizer = build_optimizer(Optim(), net.parameters())
        return net, optimizer, {id(p): n for n, p in net.named_parameters()}

    net, optimizer, names = stepped()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    saved = {k: v.clone() for k, v in optimizer_tensors(optimizer, names).items()}
    assert saved.keys() == {f"{p}.{e}" for p in ("weight", "bias") for e in ("step", "exp_avg", "exp_avg_sq")}
    _, other, other_names = stepped()
    load_optimizer_tensors(other, other_names, saved)
    loaded = optimizer_tensors(other, other_names)
    assert all(torch.equal(loaded[k], saved[k]) for k in saved)
    with pytest.raises(TrainingError, match=r"knows other parameters: extra"):
        load_optimizer_tensors(other, other_names, {**saved, "extra.step": torch.zeros(())})
