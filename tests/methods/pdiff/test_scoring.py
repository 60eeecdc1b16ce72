import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentia.errors import InputError
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.networks import build
from latentia.methods.pdiff.scoring import Scorer, mistakes
from latentia.methods.pdiff.tail import convolution, max_pool, trace_tail

CASES = [
    ("mlp3", {}, "*"),
    ("mlp3", {}, "linear3"),
    ("convnet3", {}, "*"),
    ("convnet3", {"width": 4}, ["conv2", "linear"]),
    ("resnet", {"width": 4, "blocks": (1, 2)}, ["layer2.1.bn1", "layer2.1.bn2"]),
    ("resnet", {"width": 4, "blocks": (1, 1)}, "*"),
    ("resnet", {"width": 4, "blocks": (1, 1)}, "bn1"),
]


def prepared(name, sizes, patterns, n=6, m=70):
    torch.manual_seed(0)
    network = build(name, **sizes)
    network(torch.randn(64, 1, 8, 8))  # moves the running statistics
    network.eval()
    layout = ParameterLayout.select(network, patterns)
    vectors = layout.flatten(network) + 0.2 * torch.randn(n, layout.size)
    return network, layout, network.state_dict(), torch.randn(m, 1, 8, 8), torch.randint(10, (m,)), vectors


@torch.no_grad()
def plain_logits(network, layout, base, x, vectors):
    rows = []
    base = {name: tensor.clone() for name, tensor in base.items()}
    for vector in vectors:
        network.load_state_dict({**base, **layout.unflatten(vector)})
        rows.append(network(x))
    network.load_state_dict(base)
    return torch.stack(rows)


@pytest.mark.parametrize(("name", "sizes", "patterns"), CASES)
def test_equal_to_load_state_dict_and_forward(name, sizes, patterns):
    network, layout, base, x, y, vectors = prepared(name, sizes, patterns)
    expected = plain_logits(network, layout, base, x, vectors)
    scorer = Scorer(network, layout, base, x, y)
    assert torch.allclose(scorer.logits(vectors), expected, atol=1e-5)
    wrong = expected.argmax(-1) != y
    for chunk in (None, 1, 4, 5):
        assert torch.equal(scorer.wrong(vectors, chunk), wrong)
    assert torch.equal(scorer.accuracies(vectors), 1 - wrong.float().mean(1))
    assert torch.allclose(scorer.probabilities(vectors), expected.softmax(-1), atol=1e-6)
    control = Scorer(network, layout, base, x, y, vectorised=False)
    assert torch.equal(control.logits(vectors), expected)


def test_many_images_in_blocks(monkeypatch):
    network, layout, base, x, y, vectors = prepared("convnet3", {}, "*", m=200)
    monkeypatch.setattr("latentia.methods.pdiff.scoring.CPU_ELEMENTS", 512 * 64)
    scorer = Scorer(network, layout, base, x, y)
    assert torch.allclose(scorer.logits(vectors), plain_logits(network, layout, base, x, vectors), atol=1e-5)
    assert len(scorer._tail(())) == 4


def test_the_frozen_trunk_is_run_once():
    network, layout, base, x, y, vectors = prepared(*CASES[4])
    scorer = Scorer(network, layout, base, x, y)
    scorer.wrong(vectors)
    calls = []
    for module in scorer.network.modules():
        module.register_forward_hook(lambda m, a, out: calls.append(m))
    scorer.wrong(vectors)
    assert calls == []
    graph = scorer._tail(())[0].module.graph
    kernels = [node for node in graph.nodes if node.target is convolution]
    assert len(kernels) == 1  # layer2.1.conv2, the only one behind layer2.1.bn1


def test_the_network_is_left_alone():
    network, layout, base, x, y, vectors = prepared(*CASES[5])
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    Scorer(network, layout, base, x, y, reestimate=x).wrong(vectors)
    Scorer(network, layout, base, x, y, reestimate=x, vectorised=False).wrong(vectors)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("patterns", ["*", "layer2.0.conv1"])
def test_reestimated_statistics_are_those_of_a_forward_pass_in_training_mode(patterns):
    network, layout, base, x, y, vectors = prepared("resnet", {"width": 4, "blocks": (1, 1)}, patterns, n=3)
    base = {name: tensor.clone() for name, tensor in base.items()}
    batch = torch.randn(50, 1, 8, 8)
    reached = [
        m
        for n, m in network.named_modules()
        if isinstance(m, nn.BatchNorm2d) and (patterns == "*" or "layer2.0.bn" in n)
    ]
    expected = []
    for vector in vectors:
        network.load_state_dict({**base, **layout.unflatten(vector)})
        for module in reached:
            module.train()
            module.momentum = 1.0
        with torch.no_grad():
            network(batch)
            network.eval()
            expected.append(network(x))
    for vectorised in (True, False):
        scorer = Scorer(network, layout, base, x, y, reestimate=batch, vectorised=vectorised)
        assert torch.allclose(scorer.logits(vectors), torch.stack(expected), atol=1e-4)
    assert len(scorer._measuring()[0]) == 2 * len(reached)


def test_own_statistics():
    network, layout, base, x, y, vectors = prepared("resnet", {"width": 4, "blocks": (1, 1)}, "*", n=3)
    own = {
        "bn1.running_mean": torch.randn(3, 4),
        "bn1.running_var": torch.rand(3, 4) + 0.5,
        "bn1.num_batches_tracked": torch.ones(3, dtype=torch.int64),
    }
    states = [{**base, **layout.unflatten(v), **{k: t[i] for k, t in own.items()}} for i, v in enumerate(vectors)]
    states = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    scorer = Scorer(network, layout, base, x, y)
    expected = []
    with torch.no_grad():
        for state in states:
            network.load_state_dict(state)
            expected.append(network(x))
    assert torch.allclose(scorer.logits(vectors, own=own), torch.stack(expected), atol=1e-5)
    with pytest.raises(InputError, match=r"own tensor 'bn1\.running_mean' has shape \(3, 4\), expected \(2, 4\)"):
        scorer.logits(vectors[:2], own=own)


def test_tied_weights_and_half_precision():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    network[3].weight = network[1].weight
    for model in (network, network.bfloat16()):
        layout = ParameterLayout.select(model, "*")
        base = model.state_dict()
        x = torch.randn(20, 1, 8, 8).to(base["1.weight"].dtype)
        vectors = layout.flatten(model) + 0.1 * torch.randn(2, layout.size)
        scorer = Scorer(model, layout, base, x, torch.zeros(20, dtype=torch.int64))
        expected = plain_logits(model, layout, base, x, vectors)
        assert torch.allclose(scorer.logits(vectors), expected, atol=1e-5 if x.dtype == torch.float32 else 0.05)


def test_a_nan_is_wrong():
    network, layout, base, x, y, vectors = prepared("mlp3", {}, "*", n=2)
    vectors[1, -1] = torch.nan
    assert Scorer(network, layout, base, x, torch.full_like(y, 9)).wrong(vectors)[1].all()


def test_a_diverged_network_spoils_no_other():
    network, layout, base, x, y, vectors = prepared("resnet", {"width": 4, "blocks": (1, 1)}, "*", n=8)
    scorer = Scorer(network, layout, base, x, y)
    expected = scorer.wrong(vectors)
    vectors[1, 40] = torch.nan
    vectors[6] *= 1e30
    found = scorer.wrong(vectors)
    others = torch.tensor([0, 2, 3, 4, 5, 7])
    assert torch.equal(found[others], expected[others])
    assert found[1].all()


def test_mistakes_are_those_of_argmax_even_where_two_classes_tie():
    logits = torch.randn(5, 40, 7).round()  # full of ties
    y = torch.randint(7, (40,))
    assert torch.equal(mistakes(logits, y), logits.argmax(-1) != y)
    distinct = torch.randn(5, 40, 7)
    assert torch.equal(mistakes(distinct, y), distinct.argmax(-1) != y)
    logits[2] = torch.nan
    assert mistakes(logits, y)[2].all()
    assert torch.equal(mistakes(logits, y)[:2], (logits.argmax(-1) != y)[:2])


@pytest.mark.parametrize(("name", "faster"), [("mlp3", 2.5), ("convnet3", 3.5)])
def test_whole_networks_are_scored_faster_than_by_a_loop(name, faster):
    network, layout, base, x, y, vectors = prepared(name, {}, "*", n=32, m=256)
    scorer = Scorer(network, layout, base, x, y)

    @torch.no_grad()
    def loop():
        for vector in vectors:
            network.load_state_dict({**base, **layout.unflatten(vector)})
            for some in x.split(64):
                network(some).argmax(-1)

    scorer.wrong(vectors)
    best = [float("inf")] * 2
    for _ in range(4):
        for i, run in enumerate((lambda: scorer.wrong(vectors), loop)):
            start = time.process_time()
            run()
            best[i] = min(best[i], time.process_time() - start)
    assert best[1] > faster * best[0]


def test_last_layers_of_many_networks_cost_a_fifth_of_a_loop():
    network, layout, base, x, y, vectors = prepared("resnet", {}, ["layer3.1.bn1", "layer3.1.bn2"], n=20, m=270)
    scorer = Scorer(network, layout, base, x, y)
    scorer.wrong(vectors)
    best = [float("inf")] * 2
    for _ in range(3):
        for i, run in enumerate(
            (lambda: scorer.wrong(vectors), lambda: plain_logits(network, layout, base, x, vectors))
        ):
            start = time.process_time()
            run()
            best[i] = min(best[i], time.process_time() - start)
    assert best[1] > 5 * best[0]


@pytest.mark.parametrize(
    ("stride", "padding", "kernel"), [(1, 1, 3), (2, 1, 3), (1, 0, 1), (2, 0, 1), (1, 2, 5), (1, 0, 3)]
)
@pytest.mark.parametrize("size", [4, 5])
def test_convolution_as_a_product(stride, padding, kernel, size):
    x, w, b = torch.randn(3, 2, size, size + 1), torch.randn(4, 2, kernel, kernel), torch.randn(4)
    args = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
    for bias in (b, None):
        expected = F.conv2d(x, w, bias, stride, padding)
        assert torch.allclose(convolution(x, w, bias, *args), expected, atol=1e-5)
    grouped = torch.randn(4, 1, kernel, kernel)
    expected = F.conv2d(x, grouped, None, stride, padding, 1, 2)
    assert torch.allclose(convolution(x, grouped, None, *args[:-1], 2), expected, atol=1e-5)


@pytest.mark.parametrize("options", [(2,), (3,), (2, 1), (2, 2, 1), (2, 2, 0, 2)])
@pytest.mark.parametrize("size", [6, 7])
def test_pooling(options, size):
    x = torch.randn(2, 3, size, size)
    kernel, stride, padding, dilation = (*options, *(options[0], 0, 1)[len(options) - 1 :])
    args = [[kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2, False]
    assert torch.equal(max_pool(x, *args)[0], F.max_pool2d(x, kernel, stride, padding, dilation))


def test_a_tail_keeps_only_what_depends_on_its_arguments():
    x = torch.randn(5, 3)
    weight = torch.randn(3, 3)
    tail = trace_tail(lambda shift: (x @ weight).relu() + shift, [torch.zeros(3)])
    assert sum(node.op == "call_function" for node in tail.module.graph.nodes) == 1
    shift = torch.randn(3)
    assert torch.equal(tail(shift), (x @ weight).relu() + shift)


def test_bad_input():
    network, layout, base, x, y, vectors = prepared("mlp3", {}, "linear3")
    scorer = Scorer(network, layout, base, x, y)
    for bad in (vectors[:, 1:], vectors[0], vectors[:0]):
        with pytest.raises(InputError, match="260"):
            scorer.wrong(bad)
    with pytest.raises(InputError, match="chunk must be"):
        scorer.wrong(vectors, 0)
    with pytest.raises(InputError, match="as many integer labels"):
        Scorer(network, layout, base, x, y[1:])
    with pytest.raises(InputError, match="not of this network"):
        Scorer(build("mlp3", hidden=(40, 25)), layout, base, x, y)
    other = ParameterLayout.select(build("convnet3"), "*")
    with pytest.raises(InputError, match="the base network differs first at tensor 1"):
        Scorer(network, other, base, x, y)
