import json
from collections import OrderedDict

import pytest
import torch
from torch import nn

from latentia.errors import ArtifactError, InputError, NonFiniteError
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.networks import build


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("table", torch.zeros(4))


@pytest.mark.parametrize("name", ["mlp3", "convnet3", "resnet"])
def test_vectors_and_state_dicts_are_the_same_thing(name):
    network = build(name)
    layout = ParameterLayout.select(network, "*")
    assert layout.size == sum(p.numel() for p in network.parameters())
    assert list(layout.names) == [name for name, _ in network.named_parameters()]
    vector = layout.flatten(network)
    other = build(name)
    other.load_state_dict({**other.state_dict(), **layout.unflatten(vector)})
    assert torch.equal(layout.flatten(other), vector)
    assert torch.equal(vector, torch.cat([p.detach().flatten() for p in network.parameters()]))
    last = layout.slices[-1]
    assert last.stop == layout.size
    assert torch.equal(vector[last], list(network.parameters())[-1].detach().flatten())


def test_many_rows_and_stacked_views():
    networks = [build("mlp3") for _ in range(3)]
    layout = ParameterLayout.select(networks[0], ["linear2"])
    rows = layout.flatten_many(networks)
    assert rows.shape == (3, 50 * 25 + 25)
    stacked = layout.unflatten(rows)
    assert stacked["linear2.weight"].shape == (3, 25, 50)
    assert torch.equal(stacked["linear2.weight"][1], networks[1].linear2.weight)
    assert layout.flatten_many([]).shape == (0, layout.size)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        ("linear3", ["linear3.weight", "linear3.bias"]),
        ("*.bias", ["linear1.bias", "linear2.bias", "linear3.bias"]),
        (r"re:linear[13]\.weight", ["linear1.weight", "linear3.weight"]),
        (["linear3.bias", "linear1.bias"], ["linear1.bias", "linear3.bias"]),
        ("linear1.weight", ["linear1.weight"]),
    ],
)
def test_patterns(patterns, names):
    network = build("mlp3")
    assert list(ParameterLayout.select(network, patterns).names) == names
    assert ParameterLayout.select(network.state_dict(), patterns) == ParameterLayout.select(network, patterns)


def test_statistics_and_integers_stay_outside():
    network = Tied()
    names = ParameterLayout.select(network, "*").names
    assert names == ("embed.weight", "norm.weight", "norm.bias")
    state = network.state_dict()
    assert "table" in ParameterLayout.select(state, "*").names  # nothing tells it from a parameter there
    assert not any("running" in name or "num_batches" in name for name in ParameterLayout.select(state, "*").names)
    with_them = ParameterLayout.select(network, "norm", statistics=True).names
    assert with_them == ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var")
    with pytest.raises(InputError, match="matches none"):
        ParameterLayout.select(network, "norm.num_batches_tracked")


def test_tied_tensors_lie_in_the_vector_once():
    network = Tied()
    for patterns in ("*", "head.weight"):
        layout = ParameterLayout.select(network, patterns)
        assert layout.names[0] == "embed.weight"
        assert layout.ties == {"head.weight": "embed.weight"}
        assert ParameterLayout.select(network.state_dict(), patterns).ties == layout.ties
    tensors = layout.unflatten(torch.arange(15.0))
    assert tensors["head.weight"] is tensors["embed.weight"]
    network.load_state_dict({**network.state_dict(), **tensors})
    assert torch.equal(layout.flatten(network), torch.arange(15.0))
    only_the_other = {name: t for name, t in network.state_dict().items() if name != "embed.weight"}
    assert torch.equal(layout.flatten(only_the_other), torch.arange(15.0))
    with pytest.raises(InputError, match=r"different values in '(head|embed)\.weight' and"):
        layout.flatten({**network.state_dict(), "head.weight": torch.ones(5, 3)})


def test_one_memory_in_two_shapes_is_refused():
    weight = torch.ones(2, 3)
    with pytest.raises(InputError, match="same memory in different shapes"):
        ParameterLayout.select({"a": weight, "b": weight.T}, "*")
    rows = torch.zeros(2, 6)
    assert ParameterLayout.select({"a": rows[0], "b": rows[1]}, "*").size == 12  # one storage, no overlap


def test_a_pattern_without_match_names_the_nearest():
    with pytest.raises(
        InputError, match=r"'liner3\.weight' matches none of the 6 parameters; nearest: linear3\.weight"
    ):
        ParameterLayout.select(build("mlp3"), ["linear1", "liner3.weight"])
    with pytest.raises(InputError, match="not a regular expression"):
        ParameterLayout.select(build("mlp3"), "re:(")
    with pytest.raises(InputError, match="at least one pattern"):
        ParameterLayout.select(build("mlp3"), [])
    with pytest.raises(InputError, match="no floating-point parameters"):
        ParameterLayout.select({"n": torch.zeros(2, dtype=torch.int64)}, "*")


def test_a_layout_of_another_network_says_where_they_differ_first():
    layout = ParameterLayout.select(build("mlp3"), "*")
    with pytest.raises(
        InputError, match=r"first at tensor 3 of 6 .*'linear2\.weight' \(25, 50\), which has shape \(20"
    ):
        layout.check(build("mlp3", hidden=(50, 20)).state_dict())
    renamed = OrderedDict((name.replace("linear1", "linear_1"), t) for name, t in build("mlp3").state_dict().items())
    with pytest.raises(
        InputError, match=r"network 0 differs first at tensor 1 .*nearest: 'linear_1\.weight' \(50, 64\)"
    ):
        layout.flatten_many([renamed])
    whole = {name: t.to(torch.int64) for name, t in build("mlp3").state_dict().items()}
    with pytest.raises(InputError, match=r"holds torch\.int64"):
        layout.check(whole)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_weights_are_named(bad):
    networks = [build("mlp3") for _ in range(2)]
    with torch.no_grad():
        networks[1].linear2.bias[3] = bad
    layout = ParameterLayout.select(networks[0], "*")
    with pytest.raises(NonFiniteError, match=r"network 1 has a NaN or infinity in 'linear2\.bias' \(1 of 25"):
        layout.flatten_many(networks)
    huge = torch.full((2, layout.size), 3e38)
    layout.check_finite(huge)  # finite, though its sum is not
    huge[1, -1] = bad
    with pytest.raises(NonFiniteError, match=r"row 1 of the vectors .*'linear3\.bias'"):
        layout.check_finite(huge)


def test_wrong_vectors():
    layout = ParameterLayout.select(build("mlp3"), "linear3")
    for shape in [(259,), (2, 261), (1, 2, 260)]:
        with pytest.raises(InputError, match=r"holds 260 numbers in 2 tensors"):
            layout.unflatten(torch.zeros(shape))


def test_half_precision_is_widened():
    network = build("mlp3").half()
    layout = ParameterLayout.select(network, "*")
    vector = layout.flatten(network)
    assert vector.dtype == torch.float32
    assert torch.equal(vector[layout.slices[0]].half(), network.linear1.weight.flatten())


def test_json_and_hash():
    layout = ParameterLayout.select(Tied(), "*")
    again = ParameterLayout.from_json(layout.to_json())
    assert again == layout
    assert hash(again) == hash(layout)
    record = json.loads(layout.to_json())
    for broken in ("no json", "[]", json.dumps({**record, "size": 3}), json.dumps({**record, "_class_name": "Other"})):
        with pytest.raises(ArtifactError, match=r"layout\.json is not a parameter layout"):
            ParameterLayout.from_json(broken, "layout.json")
    record["tensors"][0]["shape"] = [-1]
    with pytest.raises(ArtifactError, match="not a size"):
        ParameterLayout.from_json(json.dumps(record))


@pytest.mark.parametrize(
    "values",
    [((), ()), (("a",), ()), (("a", "a"), ((1,), (1,))), (("a",), ((1,),), {"a": "a"}), (("a",), ((1,),), {"b": "c"})],
)
def test_a_layout_that_contradicts_itself_is_refused(values):
    with pytest.raises(InputError):
        ParameterLayout(*values)


def test_scalars_and_empty_tensors():
    state = {"scale": torch.tensor(2.0), "none": torch.zeros(0, 3), "w": torch.ones(2)}
    layout = ParameterLayout.select(state, "*")
    assert torch.equal(layout.flatten(state), torch.tensor([2.0, 1.0, 1.0]))
    assert layout.unflatten(torch.zeros(3))["scale"].shape == ()
