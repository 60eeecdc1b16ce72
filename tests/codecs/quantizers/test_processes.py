"""Two processes over gloo that train side by side keep one codebook."""

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from latentia.codecs.quantizers.lfq import LookupFreeQuantizer
from latentia.codecs.quantizers.quantizer import Quantizer
from latentia.codecs.quantizers.residual import ResidualVectorQuantizer
from latentia.codecs.quantizers.vq_ema import EMAVectorQuantizer

PROCESSES = 2


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def side_by_side(work, folder) -> list:
    """What `work(rank)` returns in each of two processes."""
    context = multiprocessing.get_context("fork")

    def start(rank: int) -> None:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES)
        torch.save(work(rank), folder / f"{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()

    started = [context.Process(target=start, args=(rank,)) for rank in range(PROCESSES)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * PROCESSES
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]


def trained(quantizer: Quantizer, rank: int | None, steps: int = 4) -> dict[str, torch.Tensor]:
    """State after a few batches of 80 vectors, of which each process sees its half (None: all)."""
    for step in range(steps):
        z = normal(80, 3, seed=step)
        quantizer(z if rank is None else z.chunk(PROCESSES)[rank])
    return quantizer.state_dict()


def test_two_halves_are_one_batch(tmp_path):
    """Without draws: sums and counts over both are those of the whole batch."""

    def plain() -> EMAVectorQuantizer:
        torch.manual_seed(5)
        return EMAVectorQuantizer(6, 3, decay=0.8, kmeans=0, revive=0.0)

    found = side_by_side(lambda rank: trained(plain(), rank), tmp_path)
    alone = trained(plain(), None)
    for key, value in alone.items():
        torch.testing.assert_close(found[0][key], value)
        assert torch.equal(found[0][key], found[1][key])


@pytest.mark.parametrize("kind", [EMAVectorQuantizer, ResidualVectorQuantizer])
def test_start_and_revival_are_drawn_once_for_all(kind, tmp_path):
    """Each process with random numbers of its own, and codes enough that some die at once."""

    def work(rank: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(rank)
        given = {"decay": 0.5, "revive": 0.9}
        options = {"codebook_options": given} if kind is ResidualVectorQuantizer else given
        return trained(kind(30, 3, **options), rank, steps=6)

    first, second = side_by_side(work, tmp_path)
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
        assert value.isfinite().all()


def test_lfq_averages_the_distribution_over_processes(tmp_path):
    """The mean of both processes' gradients, which DDP takes, is the gradient of the whole batch's loss."""

    def gradient(rank: int | None, sync: bool = True) -> torch.Tensor:
        w = normal(4, 4, seed=7).requires_grad_()
        x = normal(40, 4)
        lfq = LookupFreeQuantizer(4, tau=1.0, entropy_weight=1.0, commitment_weight=0.3, sync=sync)
        lfq((x if rank is None else x.chunk(PROCESSES)[rank]) @ w).loss.backward()
        return w.grad

    both = side_by_side(lambda rank: {"sync": gradient(rank), "own": gradient(rank, sync=False)}, tmp_path)
    whole = gradient(None)
    torch.testing.assert_close((both[0]["sync"] + both[1]["sync"]) / 2, whole)
    assert not torch.allclose((both[0]["own"] + both[1]["own"]) / 2, whole)
