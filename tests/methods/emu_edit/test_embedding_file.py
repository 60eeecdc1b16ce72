"""A learned task's file: what it holds, and whose it is."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from latentia.errors import ArtifactError, InputError
from latentia.methods.emu_edit.embedding_file import TaskEmbedding, fingerprint
from tiny_editor import model


@pytest.fixture(scope="module")
def network():
    return model()


def learned(network, **options):
    vector = torch.linspace(-1, 1, network.task_dim)
    return TaskEmbedding.of(network, vector, **{"name": "super-resolution", "examples": 20, **options})


def test_round_trip_in_a_few_kilobytes(network, tmp_path):
    made = learned(network, instruction="upscale this picture")
    file = made.save(tmp_path / "sr.safetensors")
    assert file.stat().st_size < 4000
    again = TaskEmbedding.load(file, network)
    assert torch.equal(again.vector, made.vector)
    assert (again.name, again.examples, again.instruction) == ("super-resolution", 20, "upscale this picture")
    with safe_open(file, "pt") as opened:
        assert (
            opened.metadata()["model"] == f"EmuEditModel of {network.num_parameters():,} weights, 16 tasks of width 32"
        )


def test_the_same_model_in_other_precisions_and_with_more_tasks(network, tmp_path):
    file = learned(network).save(tmp_path / "sr.safetensors")
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert TaskEmbedding.load(file, model().to(dtype)).name == "super-resolution"
        TaskEmbedding.load(file, model().to(dtype)).check(model().to(dtype))
    more = model(num_tasks=17)
    assert torch.equal(fingerprint(more)[:8], fingerprint(network)[:8])
    tasks = model()
    torch.nn.init.normal_(tasks.tasks.weight)
    TaskEmbedding.load(file, tasks)


def test_another_models_file_is_refused(network, tmp_path):
    file = learned(network).save(tmp_path / "sr.safetensors")
    with pytest.raises(
        ArtifactError,
        match=r"sr.safetensors \('super-resolution'\) was learnt for .* of width 32.*task vectors of 32; .* with 8",
    ):
        TaskEmbedding.load(file, model(task_dim=8))
    with pytest.raises(ArtifactError, match=r"was learnt for .*weights, 16 tasks.* and this is .*learn it anew"):
        TaskEmbedding.load(file, model(task_tokens=2))
    trained = model()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    with pytest.raises(ArtifactError, match="another one with the same description"):
        TaskEmbedding.load(file, trained)


def test_files_that_hold_no_task(network, tmp_path):
    vector = torch.zeros(32)
    save_file({"vector": vector}, tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("no")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    learned(network).save(tmp_path / "whole.safetensors")
    data = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-100])
    kind = {"kind": "latentia-task-embedding", "task": "t"}
    save_file({"vector": vector}, tmp_path / "part.safetensors", {**kind, "examples": "3"})
    both = {"vector": vector, "fingerprint": vector.clone()}
    save_file(both, tmp_path / "count.safetensors", {**kind, "examples": "few"})
    save_file({**both, "vector": vector * torch.nan}, tmp_path / "nan.safetensors", {**kind, "examples": "3"})
    for name in ("plain", "text", "empty", "cut", "part", "count", "nan", "absent"):
        with pytest.raises(ArtifactError, match=name):
            TaskEmbedding.load(tmp_path / f"{name}.safetensors", network)


def test_bad_values_are_refused(network, tmp_path):
    with pytest.raises(InputError, match="vector has shape"):
        TaskEmbedding.of(network, torch.zeros(3), "t")
    with pytest.raises(InputError, match="needs a name"):
        learned(network, name=" ")
    with pytest.raises(InputError, match="examples"):
        learned(network, examples=-1)
    with pytest.raises(InputError, match="finite"):
        TaskEmbedding.of(network, torch.full((32,), torch.inf), "t")
    with pytest.raises(InputError, match=r"\.safetensors, not 'sr\.pt'"):
        learned(network).save(tmp_path / "sr.pt")
