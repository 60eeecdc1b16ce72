"""Generated networks in files: every name of a tied tensor, integer buffers, and the pipeline that made them."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from latentia.errors import InputError
from latentia.methods.pdiff.checkpoints import Checkpoints
from latentia.methods.pdiff.layout import ParameterLayout
from latentia.recipes.overrides import override
from latentia.recipes.parameters import open_parameters, write_networks
from latentia.recipes.pdiff_digits import pdiff_digits

TINY = ["steps=2", "batch_size=2", "codec.steps=2", "codec.batch_size=2", "unet.channels=8,", "codec.strides=2,2,2,1"]


class Tied(nn.Module):
    """Two layers that share a matrix, and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.register_buffer("seen", torch.tensor(7))


@pytest.fixture(scope="module")
def pipe():
    network = Tied()
    layout = ParameterLayout.select(network, "*")
    vectors = layout.flatten(network) + 0.1 * torch.randn(5, layout.size, generator=torch.Generator().manual_seed(0))
    originals = Checkpoints(layout, vectors, {n: t.clone() for n, t in network.state_dict().items()})
    return override(pdiff_digits(), TINY).fit(originals)


def test_a_plain_reader_gets_a_whole_state_dict(pipe, tmp_path):
    files = write_networks(pipe, 2, tmp_path / "nets", steps=2, start=16)
    assert [file.name for file in files] == ["00016.safetensors", "00017.safetensors"]
    state = load_file(files[1])
    network = Tied()
    network.load_state_dict(state)
    assert torch.equal(state["first.weight"], state["second.weight"])
    assert network.seen == 7


def test_a_network_is_the_same_from_the_saved_pipeline_and_from_any_start(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "run" / "pipeline")
    again = open_parameters(tmp_path / "run", device="cpu")
    one = load_file(write_networks(again, 1, tmp_path / "a", steps=2, start=3)[0])
    four = load_file(write_networks(pipe, 4, tmp_path / "b", steps=2, batch_size=3)[3])
    torch.testing.assert_close(one, four, rtol=0, atol=1e-6)


def test_a_file_is_no_folder(pipe, tmp_path):
    (tmp_path / "nets").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_networks(pipe, 1, tmp_path / "nets", steps=2)


def test_a_stopped_call_goes_on_and_the_rest_is_written_as_it_goes(pipe, tmp_path, monkeypatch):
    whole = write_networks(pipe, 5, tmp_path / "whole", steps=2)
    calls = []
    plain = type(pipe).__call__

    def stopped(self, **options):
        calls.append(options["sample_indices"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plain(self, **options)

    monkeypatch.setattr(type(pipe), "__call__", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"2 of 5 networks are in .*the same command goes on"):
        write_networks(pipe, 5, tmp_path / "nets", steps=2, batch_size=2)
    assert len(list((tmp_path / "nets").glob("*.safetensors"))) == 2
    again = write_networks(pipe, 5, tmp_path / "nets", steps=2, batch_size=2)
    assert calls == [[0, 1], [2, 3], [2, 3], [4]]
    for one, other in zip(whole, again):
        torch.testing.assert_close(load_file(one), load_file(other), rtol=0, atol=1e-6)
    write_networks(pipe, 6, tmp_path / "nets", steps=2)
    assert calls[-1] == [5]


def test_networks_that_were_made_otherwise_are_left_alone(pipe, tmp_path):
    write_networks(pipe, 1, tmp_path / "nets", steps=2)
    (tmp_path / "nets" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"made otherwise \(seed 0 there, 5 here\)"):
        write_networks(pipe, 1, tmp_path / "nets", steps=2, seed=5)
    with pytest.raises(InputError, match="steps 2 there, 3 here"):
        write_networks(pipe, 1, tmp_path / "nets", steps=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "00001.safetensors").write_text("")
    with pytest.raises(InputError, match=r"holds 00001\.safetensors, which was not generated here"):
        write_networks(pipe, 2, tmp_path / "other", steps=2)
    write_networks(pipe, 1, tmp_path / "other", steps=2, start=7)
    assert (tmp_path / "nets" / "notes.txt").read_text() == "mine"


def test_a_call_that_is_refused_leaves_no_folder(pipe, tmp_path):
    with pytest.raises(InputError, match="1000"):
        write_networks(pipe, 1, tmp_path / "nets", steps=1001)
    assert not (tmp_path / "nets").exists()


def test_generated_networks_are_a_folder_of_checkpoints(pipe, tmp_path):
    write_networks(pipe, 3, tmp_path / "nets", steps=2)
    found = Checkpoints.from_folder(tmp_path / "nets", "*", Tied())
    assert found.vectors.shape == (3, 6 * 6 + 12)
    assert found.layout.ties == {"second.weight": "first.weight"}
