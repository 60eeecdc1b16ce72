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
