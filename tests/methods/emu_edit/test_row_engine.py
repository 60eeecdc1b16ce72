"""The engine, the shards and the data sets."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch

from latentia.core.artifacts import read_safetensors, write_safetensors
from latentia.core.protocols import Dataset
from latentia.errors import ArtifactError, Cancelled, InputError, UnknownChoiceError
from latentia.methods.emu_edit.datasets import SceneRows, ShardedRows, batch_of
from latentia.methods.emu_edit.engine import Engine, ScenePairs, SceneSource, scene_engine
from latentia.methods.emu_edit.rows import Row, check_row
from latentia.methods.emu_edit.shards import counts, read_shard, write_shards
from latentia.methods.emu_edit.tasks.registry import TASKS
from latentia.methods.emu_edit.world.sampling import Rejected


def same(a: Row, b: Row) -> bool:
    pixels = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("image", "target", "mask"))
    return pixels and (a.instruction, a.task, a.output_caption) == (b.instruction, b.task, b.output_caption)


def test_a_row_depends_on_seed_split_and_number_alone():
    first, second = scene_engine(32), scene_engine(32)
    forward = [first.row("train", i) for i in range(20)]
    backward = [second.row("train", i) for i in reversed(range(20))][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward))
    assert not same(forward[0], scene_engine(32, seed=1).row("train", 0))
    assert len({row.instruction for row in forward}) > 15


def test_weights_choose_tasks():
    engine = scene_engine(32, tasks=["add", "remove", "style"], weights=[0, 1, 0])
    assert {row.task for row in engine.rows("train", 0, 10)} == {"remove"}


class NoStyle:
    name = "taste"

    def __call__(self, row: Row) -> Row:
        if row.task == "style":
            raise Rejected("no styles")
        return row


def test_reasons_are_counted():
    engine = Engine(SceneSource(32, ["style", "remove"]), ScenePairs(), [NoStyle()])
    assert {row.task for row in engine.rows("train", 0, 12)} == {"remove"}
    assert engine.counts["kept"] == 12
    assert engine.counts["taste: no styles"] > 2


def test_the_first_candidate_that_passes_is_taken():
    class Three:
        def __call__(self, proposal, rng):
            row = proposal.details["row"]
            return [Row(row.image, text, row.target, row.task, "a", "b", row.mask) for text in ("one", "two", "three")]

    class NotOne:
        name = "not one"

        def __call__(self, row):
            if row.instruction == "one":
                raise Rejected("it is one")
            return row

    engine = Engine(SceneSource(32, ["remove"]), Three(), [NotOne()])
    assert engine.row("train", 0).instruction == "two"


def test_an_engine_that_gives_nothing_says_why():
    engine = Engine(SceneSource(32, ["style"]), ScenePairs(), [NoStyle()])
    with pytest.raises(InputError, match="taste: no styles"):
        engine.row("train", 0)


def test_bad_arguments():
    with pytest.raises(UnknownChoiceError, match="did you mean 'remove'"):
        scene_engine(32, tasks=["remov"])
    with pytest.raises(UnknownChoiceError, match="train"):
        scene_engine(32).row("trian", 0)
    with pytest.raises(InputError, match="numbered from 0"):
        scene_engine(32).row("train", -1)
    with pytest.raises(InputError, match="one weight"):
        scene_engine(32, tasks=["add"], weights=[1, 2])
    with pytest.raises(InputError, match="at least one task"):
        scene_engine(32, tasks=[])
    with pytest.raises(InputError, match="not all 0"):
        scene_engine(32, tasks=["add"], weights=[0])


def test_check_row():
    row = scene_engine(32).row("train", 0)
    for change in (
        {"image": row.image.astype(float)},
        {"target": row.target[:16]},
        {"mask": row.mask[:16]},
        {"instruction": " "},
    ):
        broken = Row(row.image, row.instruction, row.target, row.task, "a", "b", row.mask)
        for key, value in change.items():
            setattr(broken, key, value)
        with pytest.raises(InputError):
            check_row(broken)


def test_scene_rows_are_a_dataset():
    data = SceneRows("train", 50, 32)
    assert isinstance(data, Dataset)
    batch = data.batch([3, 0, 7])
    assert batch["x"].shape == batch["source"].shape == (3, 3, 32, 32)
    assert batch["x"].dtype == torch.float32
    assert -1 <= float(batch["x"].min()) < float(batch["x"].max()) <= 1
    assert batch["mask"].shape == (3, 1, 32, 32)
    assert batch["mask"].dtype == torch.bool
    assert batch["task"].dtype == torch.int64
    assert len(batch["instruction"]) == 3
    assert torch.equal(batch["x"][1], data.batch(torch.tensor([0]))["x"][0])
    row = data.row(3)
    assert batch["instruction"][0] == row.instruction
    assert list(TASKS)[int(batch["task"][0])] == row.task
    pixels = torch.from_numpy(row.target).permute(2, 0, 1).float()
    torch.testing.assert_close((batch["x"][0] + 1) * 127.5, pixels)
    with pytest.raises(InputError, match=r"\[0, 50\)"):
        data.batch([50])


def test_instructions_become_what_encode_makes_of_them():
    lengths = SceneRows("train", 8, 32, encode=lambda texts: {"input_ids": torch.tensor([[len(t)] for t in texts])})
    batch = lengths.batch([0, 1])
    assert "instruction" not in batch
    assert batch["input_ids"].shape == (2, 1)
    assert batch_of([lengths.row(0)])["instruction"] == [lengths.row(0).instruction]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    write_shards(scene_engine(32, seed=2), folder, "select", 25, rows_per_shard=10)
    return folder


def test_shards_hold_the_engines_rows(written):
    data, engine = ShardedRows(written), scene_engine(32, seed=2)
    assert len(data) == 25
    for i in (0, 9, 10, 24):
        read, made = data.row(i), engine.row("select", i)
        assert same(read, made)
        assert TASKS[read.task].score(read, read.target)["success"] == 1
    assert counts(written)["kept"] == 25
    assert isinstance(data, Dataset)


def test_writing_goes_on_where_it_ended(written, tmp_path):
    stop, done = threading.Event(), []

    def tell(count, total):
        done.append(count)
        stop.set()

    with pytest.raises(Cancelled, match="10 of 25"):
        write_shards(scene_engine(32, seed=2), tmp_path, "select", 25, 10, tell, stop)
    before = (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns
    write_shards(scene_engine(32, seed=2), tmp_path, "select", 25, 10)
    assert (tmp_path / "shard-00000.safetensors").stat().st_mtime_ns == before
    for path in written.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_more_rows_may_be_asked_for_later(written, tmp_path):
    folder = tmp_path / "more"
    shutil.copytree(written, folder)
    write_shards(scene_engine(32, seed=2), folder, "select", 32, 10)
    assert same(ShardedRows(folder).row(31), scene_engine(32, seed=2).row("select", 31))


def test_a_folder_of_other_rows_is_refused(written):
    with pytest.raises(InputError, match="seed 2 instead of 3"):
        write_shards(scene_engine(32, seed=3), written, "select", 25, 10)
    with pytest.raises(InputError, match="split"):
        write_shards(scene_engine(32, seed=2), written, "train", 25, 10)


def test_broken_shards_say_what_is_wrong(written, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(written, folder)
    words = folder / "shard-00000.json"
    listed = json.loads(words.read_text())
    del listed["rows"][2]["instruction"]
    words.write_text(json.dumps(listed))
    with pytest.raises(ArtifactError, match=r"row 2 .* has no instruction"):
        read_shard(folder, 0)
    words.write_text(json.dumps({"rows": listed["rows"][:3]}))
    with pytest.raises(ArtifactError, match="one entry for each of the 10 pictures"):
        read_shard(folder, 0)
    pixels = folder / "shard-00001.safetensors"
    tensors = read_safetensors(pixels)
    del tensors["target"]
    write_safetensors(pixels, tensors, {})
    with pytest.raises(ArtifactError, match="has no target"):
        read_shard(folder, 1)
    (folder / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(ArtifactError, match="holds no edit rows"):
        ShardedRows(folder)
    with pytest.raises(ArtifactError):
        ShardedRows(tmp_path / "nowhere")
