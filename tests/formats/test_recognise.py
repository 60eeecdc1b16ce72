"""`latentia info` on single files: what a header tells of adapters and of what is not read."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentia.core import transaction
from latentia.core.inspect_path import describe
from latentia.formats.recognise import recognise

A, B = torch.ones(4, 32), torch.ones(32, 4)


def write(path: Path, *names: str) -> Path:
    save_file({name: torch.ones(4, 32) for name in names}, path)
    return path


def test_rank_and_layers_of_a_lora(tmp_path: Path):
    state = {
        "lora_unet_mid_x.lora_down.weight": A, "lora_unet_mid_x.lora_up.weight": B,
        "lora_unet_mid_x.alpha": torch.tensor(4.0),
        "lora_te_text_model_y.lora_down.weight": torch.ones(7, 32), "lora_te_text_model_y.lora_up.weight": B + 1,
    }  # fmt: skip
    save_file(state, tmp_path / "x.safetensors")
    found = describe(tmp_path / "x.safetensors", recognise)
    assert found.class_name == "a LoRA of ranks 4 to 7"
    assert {name: (part.class_name, part.parameters) for name, part in found.parts.items()} == {
        "unet": ("1 layer", 257),
        "text_encoder": ("1 layer", 7 * 32 + 128),
    }
    assert not found.problems


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("unet.x.lora_A.weight", "a LoRA of rank 4"),
        ("unet.x.lora_A.default.weight", "a LoRA of rank 4"),
        ("unet.x.processor.to_q_lora.down.weight", "a LoRA of rank 4"),
        ("text_encoder.x.lora_linear_layer.down.weight", "a LoRA of rank 4"),
        ("lora_unet_x.hada_w1_a", "a LoHa"),
        ("lora_unet_x.dora_scale", "a DoRA"),
        ("<token>", "a textual inversion"),
    ],
)
def test_adapters_by_name(name: str, family: str, tmp_path: Path):
    assert describe(write(tmp_path / "x.safetensors", name), recognise).class_name == family


def test_a_folder_of_single_files_is_listed(tmp_path: Path):
    write(tmp_path / "a.safetensors", "unet.x.lora_A.weight")
    (tmp_path / "b.safetensors").write_bytes(b"")
    (tmp_path / "c.gguf").write_bytes(b"GGUF\x03")
    found = describe(tmp_path, recognise)
    assert found.kind == "folder"
    assert found.parameters == 128
    assert found.parts["a.safetensors"].class_name == "a LoRA of rank 4"
    assert "is empty" in found.parts["b.safetensors"].problems[0]
    assert "a GGUF file" in describe(tmp_path / "c.gguf", recognise).problems[0]


def test_what_cannot_be_read_is_a_problem_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(folder: Path) -> set[str]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(transaction, "names", refuse)
    assert describe(tmp_path).problems == [f"cannot be read: Permission denied ({tmp_path})"]
