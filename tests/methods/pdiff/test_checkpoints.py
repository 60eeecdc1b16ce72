import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latentia.errors import ArtifactError, InputError, NonFiniteError
from latentia.methods.pdiff.checkpoints import Checkpoints
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.methods.pdiff.networks import build


def small():
    return build("resnet", width=2, blocks=(1,))


def collected(k=3, patterns="layer1"):
    networks = [small() for _ in range(k)]
    layout = ParameterLayout.select(networks[0], patterns)
    return networks, Checkpoints(layout, layout.flatten_many(networks), networks[0].state_dict(), {"seed": 3})


def test_saved_and_read_back_exactly(tmp_path):
    networks, checkpoints = collected()
    checkpoints.save(tmp_path)
    again = Checkpoints.load(tmp_path)
    assert torch.equal(again.vectors, checkpoints.vectors)
    assert again.layout == checkpoints.layout
    assert again.meta == {"seed": 3}
    state = again.state_dict(2)
    assert set(state) == set(networks[0].state_dict())
    assert torch.equal(state["layer1.0.conv1.weight"], networks[2].layer1[0].conv1.weight)
    assert torch.equal(state["conv1.weight"], networks[0].conv1.weight)
    assert state["bn1.num_batches_tracked"].dtype == torch.int64
    small().load_state_dict(state)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints.safetensors", "layout.json", "meta.json"]


def test_a_state_dict_owns_its_tensors():
    _, checkpoints = collected()
    state = checkpoints.state_dict(1)
    for tensor in state.values():
        tensor.zero_()
    assert checkpoints.vectors[1].abs().sum() > 0
    assert checkpoints.base["conv1.weight"].abs().sum() > 0


def test_own_tensors_belong_to_their_network(tmp_path):
    _, checkpoints = collected()
    own = {"bn1.running_mean": torch.arange(6.0).view(3, 2)}
    full = Checkpoints(checkpoints.layout, checkpoints.vectors, checkpoints.base, {}, own)
    full.save(tmp_path)
    again = Checkpoints.load(tmp_path).select([2, 0])
    assert again.state_dict(0)["bn1.running_mean"].tolist() == [4.0, 5.0]
    assert again.overlay(again.vectors[0])["bn1.running_mean"].tolist() == [0.0, 0.0]
    with pytest.raises(InputError, match=r"must have shape \(3, 2\)"):
        Checkpoints(checkpoints.layout, checkpoints.vectors, checkpoints.base, {}, {"bn1.running_mean": torch.ones(2)})
    with pytest.raises(InputError, match="outside of the layout"):
        Checkpoints(checkpoints.layout, checkpoints.vectors, checkpoints.base, {}, {"nothing": torch.ones(3)})


def test_tied_tensors_stay_tied(tmp_path):
    network = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    network["b"].weight = network["a"].weight
    layout = ParameterLayout.select(network, "*")
    Checkpoints(layout, torch.tensor([[1.0, 2, 3, 4]]), network.state_dict()).save(tmp_path)
    state = Checkpoints.load(tmp_path).state_dict(0)
    assert state["a.weight"] is state["b.weight"]
    assert state["b.weight"].tolist() == [[1, 2], [3, 4]]


def test_selecting_rows():
    _, checkpoints = collected(4)
    assert len(checkpoints.select([0])) == 1
    assert torch.equal(checkpoints.select(slice(1, 3)).vectors, checkpoints.vectors[1:3])
    assert torch.equal(checkpoints.select(torch.tensor([3, -4])).vectors, checkpoints.vectors[[3, 0]])
    assert len(checkpoints.select(torch.tensor([True, False, True, False]))) == 2
    with pytest.raises(InputError, match="no checkpoint 4: there are 4"):
        checkpoints.select([0, 4])


def test_vectors_that_do_not_fit():
    _, good = collected()
    for vectors in (good.vectors[:, 1:], good.vectors[0], good.vectors[:0], good.vectors.double()):
        with pytest.raises(InputError, match="vectors must be"):
            Checkpoints(good.layout, vectors, good.base)
    bad = good.vectors.clone()
    bad[1, 5] = torch.nan
    with pytest.raises(NonFiniteError, match="row 1 of the checkpoints"):
        Checkpoints(good.layout, bad, good.base)


def test_a_layout_file_of_another_network(tmp_path):
    _, checkpoints = collected()
    checkpoints.save(tmp_path)
    (tmp_path / "layout.json").write_text(ParameterLayout.select(build("mlp3"), "*").to_json())
    with pytest.raises(ArtifactError, match=r"do not belong together: vectors must be \(K, 4785\)"):
        Checkpoints.load(tmp_path)
    other = build("resnet", width=2, blocks=(1,), classes=5)
    layout = ParameterLayout.select(other, "fc")
    with pytest.raises(InputError, match=r"the base network differs first at .*'fc\.weight' \(5, 2\), which has shape"):
        Checkpoints(layout, torch.zeros(1, layout.size), checkpoints.base)


def test_folders_that_are_none(tmp_path):
    for read in (Checkpoints.load, lambda folder: Checkpoints.from_folder(folder, "*")):
        with pytest.raises(ArtifactError):
            read(tmp_path)
    with pytest.raises(ArtifactError, match="not a folder"):
        Checkpoints.from_folder(tmp_path / "nowhere", "*")


def test_a_folder_of_state_dicts_in_natural_order(tmp_path):
    networks = [small() for _ in range(3)]
    for network in networks[1:]:
        network.load_state_dict({**network.state_dict(), "conv1.weight": networks[0].conv1.weight})
        network.bn1.running_mean.fill_(7)
        network.bn1.num_batches_tracked += 1
    for step, network in zip((2, 10), networks):
        save_file(network.state_dict(), tmp_path / f"step{step}.safetensors")
    torch.save(networks[2].state_dict(), tmp_path / "step9.pt")
    checkpoints = Checkpoints.from_folder(tmp_path, ["layer1", "bn1", "fc"])
    assert checkpoints.meta["files"] == ["step2.safetensors", "step9.pt", "step10.safetensors"]
    for i, network in enumerate((networks[0], networks[2], networks[1])):
        assert torch.equal(checkpoints.vectors[i], checkpoints.layout.flatten(network))
        state = checkpoints.state_dict(i)
        assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_states_of_a_network_that_goes_on_training():
    network = build("mlp3")

    def trained():
        for _ in range(3):
            with torch.no_grad():
                network.linear3.bias += 1
            yield network

    start = network.linear3.bias.detach().clone()
    checkpoints = Checkpoints.from_states(trained(), "linear3.bias", meta={"by": "hand"})
    assert torch.allclose(checkpoints.vectors, start + torch.arange(1.0, 4.0)[:, None])
    assert torch.equal(checkpoints.base["linear3.bias"], checkpoints.vectors[0])
    assert checkpoints.meta == {"by": "hand", "differ": []}
    with pytest.raises(InputError, match="no states"):
        Checkpoints.from_states([], "*")


def test_unselected_parameters_that_differ_are_told(tmp_path):
    for i in range(2):
        save_file(small().state_dict(), tmp_path / f"{i}.safetensors")
    with pytest.warns(UserWarning, match=r"parameters outside of the selection differ .*first 'conv1\.weight'"):
        checkpoints = Checkpoints.from_folder(tmp_path, "fc")
    assert "layer1.0.conv1.weight" in checkpoints.meta["differ"]


def test_files_of_different_networks(tmp_path):
    save_file(small().state_dict(), tmp_path / "a.safetensors")
    save_file(build("resnet", width=2, blocks=(1,), classes=7).state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(
        InputError, match=r"b\.safetensors differs from a.* first at 'fc\.bias': \(7,\) against \(10,\)"
    ):
        Checkpoints.from_folder(tmp_path, "*")
    more = {**small().state_dict(), "extra": torch.ones(1)}
    save_file(more, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"first at 'extra', which a\.safetensors lacks"):
        Checkpoints.from_folder(tmp_path, "*")
    fewer = {name.replace("fc", "fq"): t for name, t in small().state_dict().items()}
    save_file(fewer, tmp_path / "b.safetensors")
    with pytest.raises(InputError, match=r"first at 'fc\.bias' \(10,\): it lacks it; the nearest there is 'fq\.bias'"):
        Checkpoints.from_folder(tmp_path, "*")


def test_a_file_with_a_nan(tmp_path):
    state = small().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    state["fc.bias"][0] = torch.nan
    save_file(state, tmp_path / "b.safetensors")
    with pytest.raises(NonFiniteError, match=r"b\.safetensors has a NaN or infinity in 'fc\.bias'"):
        Checkpoints.from_folder(tmp_path, "fc")
