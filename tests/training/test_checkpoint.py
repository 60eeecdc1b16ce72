import errno
import json

import pytest
import torch

from latentia.errors import ArtifactError, NonFiniteError
from latentia.training import checkpoint
from latentia.training.checkpoint import CheckpointFolder, read_checkpoint

FILES = {
    "weights": {"net.a": torch.arange(6.0).view(2, 3), "net.b": torch.tensor(3, dtype=torch.int64)},
    "optimizer": {"main.net.a.exp_avg": torch.ones(2, 3)},
}


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path / "checkpoints" / "p")


def test_round_trip(folder):
    path = folder.save(5, FILES, {"seconds": 1.5})
    assert sorted(p.name for p in path.iterdir()) == ["optimizer.safetensors", "state.json", "weights.safetensors"]
    found = folder.newest()
    assert (found.step, found.final, found.state["seconds"]) == (5, False, 1.5)
    for file, tensors in FILES.items():
        assert found.files[file].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found.files[file][name].dtype == tensor.dtype
            assert torch.equal(found.files[file][name], tensor)


def test_no_pickle_anywhere(folder):
    path = folder.save(5, FILES, {})
    for file in path.iterdir():
        assert file.suffix in (".json", ".safetensors")
        assert not file.read_bytes().startswith((b"\x80", b"PK"))


def test_the_last_two_are_kept_and_the_newest_is_read(folder):
    for step in (5, 10, 100_000_000, 15):
        folder.save(step, FILES, {})
    assert [p.name for p in folder.paths()] == ["step-100000000", "step-00000015"]
    assert folder.newest().step == 100_000_000


def test_finish_leaves_the_final_one(folder):
    folder.save(5, FILES, {})
    folder.save(8, FILES, {})
    path = folder.finish(8)
    assert [p.name for p in folder.paths()] == ["final"]
    assert folder.newest().final
    assert folder.finish(8) == path  # once more changes nothing
    folder.save(9, FILES, {})
    assert folder.newest().step == 9
    folder.finish(9)
    assert folder.newest().step == 9


def test_tied_sliced_and_channels_last_tensors(folder):
    base = torch.arange(12.0).view(3, 4)
    picture = torch.arange(48.0).view(1, 3, 4, 4).to(memory_format=torch.channels_last)
    folder.save(1, {"weights": {"a": base, "tied": base, "slice": base[:, 1], "nhwc": picture}}, {})
    found = folder.newest().files["weights"]
    assert torch.equal(found["tied"], base)
    assert torch.equal(found["slice"], base[:, 1])
    assert torch.equal(found["nhwc"], picture)


def test_nothing_saved_nothing_found(folder):
    assert folder.newest() is None
    assert folder.paths() == []
    folder.clean()


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "no state", "half a state", "not a checkpoint"])
def test_damage_is_noticed(folder, how):
    folder.save(5, FILES, {})
    path = folder.save(10, FILES, {})
    weights, state = path / "weights.safetensors", path / "state.json"
    raw = weights.read_bytes()
    if how == "truncated":
        weights.write_bytes(raw[:-4])
    elif how == "flipped":
        weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 64]))
    elif how == "missing":
        weights.unlink()
    elif how == "no state":
        state.unlink()
    elif how == "half a state":
        state.write_text(state.read_text()[:40])
    else:
        state.write_text(json.dumps({"files": {}}))
    with pytest.raises(ArtifactError):
        read_checkpoint(path)
    with pytest.warns(UserWarning, match="skipping a damaged checkpoint"):
        assert folder.newest().step == 5


def test_a_full_disk_leaves_the_old_ones(folder, monkeypatch):
    folder.save(5, FILES, {})
    real = checkpoint.save_file

    def full(tensors, path, **options):
        if path.name == "optimizer.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, **options)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ArtifactError, match=r"checkpoint of step 6 .*No space left on device.*free some space"):
        folder.save(6, FILES, {})
    assert [p.name for p in folder.root.iterdir()] == ["step-00000005"]


def test_weights_that_are_not_finite_are_refused(folder):
    folder.save(5, FILES, {})
    with pytest.raises(NonFiniteError, match=r"after step 6 the weights net\.a are not finite"):
        folder.save(6, {"weights": {"net.a": torch.tensor([1.0, float("nan")])}}, {})
    assert folder.newest().step == 5
