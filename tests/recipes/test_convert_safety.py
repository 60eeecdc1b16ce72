"""`convert` destroys nothing: its own source, or a target before all parts are known to fit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentia.errors import ArtifactError, InputError
from latentia.recipes.convert import Request, convert
from tiny_sd import save_tiny_sd, tiny_sd


def quiet(_: str) -> None:
    """Say nothing."""


def test_a_folder_is_not_converted_into_one_of_its_own_files(tmp_path: Path):
    folder = save_tiny_sd(tmp_path / "pipe")
    target = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = target.read_bytes()
    with pytest.raises(InputError, match="one of the files of"):
        convert(Request(folder, target, force=True), quiet)
    assert target.read_bytes() == before


@pytest.mark.filterwarnings("ignore:.*cannot say that")
@pytest.mark.parametrize("name", ["model.diffusion_model.out.2.bias", "model.diffusion_model.input_blocks.0.0.weight"])
def test_nothing_is_written_when_one_part_does_not_fit(name: str, tmp_path: Path):
    file = tmp_path / "sd.safetensors"
    convert(Request(tiny_sd(), file), quiet)
    state = load_file(file)
    state[name] = torch.zeros(7)
    save_file(state, file)
    with pytest.raises(ArtifactError, match=r"the unet|\(unet\)"):
        convert(Request(file, tmp_path / "out"), quiet)
    assert not (tmp_path / "out").exists()
