"""Tasks, their networks, and the controls from code to weights."""

import pytest
import torch
import torch.nn.functional as F

from latentia.errors import InputError, UnknownChoiceError
from latentia.methods.pdiff.digit_tasks import (
    TaskMLP,
    all_codes,
    shared_trunk,
    split_codes,
    task_accuracies,
    task_labels,
    train_tasks,
)
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.many import Fit
from latentia.methods.pdiff.scoring import Scorer
from latentia.methods.pdiff.task_controls import (
    cross_validated,
    kernel_regression,
    linear_regression,
    nearest_task,
)

SGD = Fit("sgd", lr=0.1, epochs=2, batch_size=8, momentum=0.0, weight_decay=0.0, schedule="constant")


def data(count=40):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 1, 4, 4, generator=generator), torch.arange(count) % 10


def start(hidden=3):
    torch.manual_seed(0)
    network = TaskMLP(hidden, size=4)
    return network, {name: tensor.clone() for name, tensor in network.state_dict().items()}


# Codes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "least", "count"), [("pair", 2, 90), ("subset", 2, 1002), ("subset", 5, 252)])
def test_every_task_once_with_its_opposite(kind, least, count):
    codes = all_codes(kind, least)
    assert codes.shape == (count, 10)
    rows = set(map(tuple, codes.tolist()))
    assert len(rows) == count
    assert {tuple(row) for row in (-codes).tolist()} == rows
    assert int((codes > 0).sum(1).min()) == (1 if kind == "pair" else least)


@pytest.mark.parametrize("kind", ["pair", "subset"])
def test_a_held_out_task_is_not_trained_in_any_form(kind):
    codes = all_codes(kind)
    trained, held = split_codes(codes, 18, seed=3)
    assert (len(trained), len(held)) == (len(codes) - 18, 18)
    rows = set(map(tuple, trained.tolist()))
    assert not rows & set(map(tuple, held.tolist()))
    assert not rows & set(map(tuple, (-held).tolist()))
    assert torch.equal(held[9:], -held[:9])
    assert torch.equal(split_codes(codes, 18, seed=3)[1], held)
    assert not torch.equal(split_codes(codes, 18, seed=4)[1], held)


def test_bad_tasks():
    for act, words in (
        (lambda: all_codes("subset", 6), "between 1 and 5, got 6"),
        (lambda: split_codes(all_codes("pair"), 3), "even and at most 86"),
        (lambda: split_codes(all_codes("pair"), 88), "even and at most 86"),
        (lambda: task_labels(torch.ones(2, 9), torch.arange(3)), r"\(T, 10\), got \(2, 9\)"),
    ):
        with pytest.raises(InputError, match=words):
            act()
    with pytest.raises(UnknownChoiceError, match="pair"):
        all_codes("pairs")


def test_labels():
    pair = torch.zeros(1, 10)
    pair[0, 3], pair[0, 7] = 1, -1
    assert task_labels(pair, torch.tensor([3, 7, 0]))[0].tolist() == [1, 0, -1]


# Training ------------------------------------------------------------------------------------------------


def test_all_at_once_is_one_by_one():
    """Each row as plain SGD on its own images in the order that a call for all rows draws."""
    network, state = start()
    codes = torch.cat([all_codes("subset")[[5, 300]], all_codes("pair")[[4]]])
    fit = Fit("sgd", lr=0.1, epochs=1, batch_size=4, momentum=0.0, weight_decay=0.0, schedule="constant")
    x, y = data()
    stacked = train_tasks(network, state, codes, (x, y), fit, seed=2)
    from latentia.methods.pdiff.digit_tasks import _orders

    labels = task_labels(codes, y)
    order = _orders(labels >= 0, 2, 0)
    assert sorted(order[2, :8].tolist()) == sorted((labels[2] >= 0).nonzero().flatten().tolist())
    for i in range(3):
        network.load_state_dict(state)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        for at in range(2):  # the pair has 8 images, so all take two steps of 4
            rows = order[i, 4 * at : 4 * at + 4]
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), labels[i, rows]).backward()
            optimizer.step()
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(stacked[name][i], tensor, atol=1e-6, rtol=1e-5)


def test_only_the_named_parameters_move():
    network, state = start()
    stacked = train_tasks(network, state, all_codes("pair")[:4], data(), SGD, patterns=("head",))
    assert torch.equal(stacked["trunk.weight"], state["trunk.weight"].expand(4, -1, -1))
    assert (stacked["head.weight"] - state["head.weight"]).abs().amax((1, 2)).min() > 1e-3


def test_tasks_without_images_are_refused():
    network, state = start()
    x, y = data()
    with pytest.raises(InputError, match="no image to train on"):
        train_tasks(network, state, all_codes("pair")[-1:], (x[y < 5], y[y < 5]), SGD)


def test_a_shared_trunk_learns_all_tasks():
    network, state = start(8)
    x, y = data(60)
    codes = all_codes("subset", 5)[::10]
    fit = Fit(lr=3e-2, epochs=15, batch_size=20)
    base = shared_trunk(network, state, codes, (x, y), fit)
    assert (base["trunk.weight"] - state["trunk.weight"]).abs().max() > 1e-2
    assert torch.equal(base["head.weight"], state["head.weight"])
    heads = [train_tasks(network, b, codes, (x, y), fit, patterns=("head",)) for b in (base, state)]
    layout = ParameterLayout.select(network, "*")
    scorer = Scorer(network, layout, state, x, y)
    vectors = [torch.cat([h[name].flatten(1) for name in layout.names], 1) for h in heads]
    learnt, random = (float(task_accuracies(scorer, v, codes).mean()) for v in vectors)
    assert learnt > random + 0.05


def test_accuracy_counts_the_images_that_are_asked_about():
    network, state = start()
    layout = ParameterLayout.select(network, "*")
    x, y = data(40)
    always = layout.flatten({**state, "head.weight": torch.zeros(2, 3), "head.bias": torch.tensor([0.0, 1.0])})
    codes = torch.stack([all_codes("pair")[0], 2 * (torch.arange(10) < 3).float() - 1])
    found = task_accuracies(Scorer(network, layout, state, x, y), always.expand(2, -1), codes)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.3], dtype=torch.float64))
    with pytest.raises(InputError, match="a code for each network"):
        task_accuracies(Scorer(network, layout, state, x, y), always[None], codes)


# Controls ------------------------------------------------------------------------------------------------


def test_linear_regression_is_exact_where_weights_are_linear():
    codes, new = split_codes(all_codes(), 40)
    weights = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(linear_regression(codes, codes @ weights + 2, new), new @ weights + 2, atol=1e-4, rtol=0)
    shrunk = linear_regression(codes, codes @ weights + 2, new, ridge=1e9)
    torch.testing.assert_close(shrunk, (codes @ weights + 2).mean(0).expand(40, -1), atol=1e-3, rtol=0)


def test_kernel_regression_sees_products():
    codes, new = split_codes(all_codes(), 40)
    product = lambda c: c[:, :1] * c[:, 1:2]  # noqa: E731
    smooth = kernel_regression(codes, product(codes), new, ridge=1e-3, width=0.2)
    assert (smooth - product(new)).abs().max() < 0.1
    assert (linear_regression(codes, product(codes), new) - product(new)).abs().mean() > 0.9


def test_cross_validation_chooses_what_holds_for_other_tasks():
    codes, _ = split_codes(all_codes(least=5), 40)
    v = codes[:, :3] + 0.01 * torch.randn(len(codes), 3, generator=torch.Generator().manual_seed(0))
    ridges = [{"ridge": 1e6}, {"ridge": 1.0}]
    assert cross_validated(linear_regression, ridges, codes, v) == {"ridge": 1.0}
    noise = torch.randn(len(codes), 3, generator=torch.Generator().manual_seed(0))
    assert cross_validated(linear_regression, ridges, codes, noise) == {"ridge": 1e6}


def test_the_nearest_task():
    codes, new = split_codes(all_codes(), 20)
    rows = nearest_task(codes, new)
    assert bool(((codes[rows] != new).sum(1) == 1).all())  # one digit of ten differs
    assert torch.equal(nearest_task(codes, codes[:7]), torch.arange(7))


def test_codes_that_do_not_fit():
    for arguments, words in (
        ((torch.ones(3, 10), torch.ones(2, 4), torch.ones(1, 10)), "as many vectors"),
        ((torch.ones(3, 10), torch.ones(3, 4), torch.ones(1, 9)), r"\(N, 10\)"),
    ):
        for regress in (linear_regression, kernel_regression):
            with pytest.raises(InputError, match=words):
                regress(*arguments)
