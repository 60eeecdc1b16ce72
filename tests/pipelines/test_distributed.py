"""Sharded seeds: two processes give the pictures of one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentia.errors import InputError
from latentia.pipelines.distributed import rank_and_world, sample_sharded, shard_indices

WORKER = """
import sys
from pathlib import Path
import torch, torch.distributed as dist
from latentia import DiffusionPipeline
from latentia.pipelines.distributed import sample_sharded

folder, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
pipe = DiffusionPipeline.from_pretrained(folder / "pipe")
pipe.set_progress_bar_config(disable=True)
for n in (5, 1):
    call = {"class_labels": [0, 1, 2, 0, 1][:n], "num_inference_steps": 2, "eta": 0.5}
    torch.save(sample_sharded(pipe, n, seed=7, **call), folder / f"{n}-{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("n", "world"), [(10, 3), (2, 4), (0, 2), (7, 1), (540, 8)])
def test_shards_cover_everything_once_and_evenly(n, world):
    shards = [shard_indices(n, rank, world) for rank in range(world)]
    assert [i for shard in shards for i in shard] == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("given", [(5, 2, 2), (5, -1, 2), (5, 0, 0), (-1, 0, 1), (2.5, 0, 1)])
def test_impossible_shards(given):
    with pytest.raises(InputError):
        shard_indices(*given)


def test_one_process_is_a_plain_call(latent):
    assert rank_and_world() == (0, 1)
    call = {"class_labels": [0, 1], "num_inference_steps": 2}
    assert torch.equal(sample_sharded(latent, 2, seed=3, **call), latent(seed=3, output_type="pt", **call).images)


def test_two_processes_give_the_pictures_of_one(latent, tmp_path):
    latent.save_pretrained(tmp_path / "pipe")
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    workers = [subprocess.Popen([*command, str(rank), "2"], cwd=Path(__file__).parents[2]) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    for n in (5, 1):  # one picture on two processes: the second has no share
        call = {"class_labels": [0, 1, 2, 0, 1][:n], "num_inference_steps": 2, "eta": 0.5}
        alone = sample_sharded(latent, n, seed=7, **call)
        first, second = (torch.load(tmp_path / f"{n}-{rank}.pt", weights_only=True) for rank in range(2))
        assert torch.equal(first, second)
        assert first.shape == (n, 3, 16, 16)
        assert (first - alone).abs().max() < 1e-5


def test_labels_of_the_wrong_length_and_outputs_that_cannot_travel(latent):
    with pytest.raises(InputError, match="class_labels has 2 entries for 3 pictures"):
        sample_sharded(latent, 3, seed=0, class_labels=[0, 1])
    with pytest.raises(InputError, match="'pt' or 'latent'"):
        sample_sharded(latent, 3, seed=0, class_labels=0, output_type="pil")
    with pytest.raises(InputError, match="n must be"):
        sample_sharded(latent, 0, seed=0)
