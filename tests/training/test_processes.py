"""Two processes over gloo on the CPU, as torchrun starts them: DDP and FSDP2."""

import multiprocessing
import os
import signal
import socket
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from latentia.errors import TrainingError
from latentia.training import parallel
from latentia.training.objective import Loss, Objective
from latentia.training.parallel import start_accelerator
from latentia.training.phase import EMA, Optim, Phase
from latentia.training.settings import Settings


class Plain(Objective):
    """Without randomness, so that one process and two compute the same; `blocks` is what FSDP shards."""

    def __init__(self, poison=None):
        super().__init__()
        self.net = nn.Module()
        self.net.blocks = nn.ModuleList([nn.Linear(4, 16), nn.Linear(16, 4)])
        self.poison = poison

    def forward(self, batch, turn="main", step=0):
        h = batch["x"]
        for block in self.net.blocks:
            h = torch.tanh(block(h))
        total = (h - 1).square().mean()
        if self.poison:
            total = self.poison(step, total)
        return Loss(total, {"mse": total.detach()})


def plain(lab, steps=12, poison=None, **changes):
    given = {"batch_size": 8, "optim": Optim(lr=1e-2, clip=0.1), "ema": EMA(0.9), **changes}
    return [("plain", lambda: Phase("plain", Plain(poison), lab.rows(), steps, **given))]


def torchrun(target, processes=2):
    """Run `target(rank)` in forked processes with torchrun's environment; their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank):
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(processes),
            LOCAL_WORLD_SIZE=str(processes),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
        )
        target(rank)
        torch.distributed.destroy_process_group()

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=start, args=(rank,)) for rank in range(processes)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    codes = [child.exitcode for child in children]
    for child in children:
        if child.is_alive():
            child.kill()
    return codes


def train_two(lab, tmp_path, phases, settings=None, resume=False):
    """The weights of both processes after a run in `tmp_path / "run"`."""
    out = tmp_path / "run"

    def target(rank):
        results = lab.train(phases, out, settings or lab.quiet(), resume=resume)
        save_file({k: v.contiguous() for k, v in lab.weights(results).items()}, tmp_path / f"{rank}.safetensors")

    assert torchrun(target) == [0, 0]
    return [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("fsdp", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_what_one_does(lab, tmp_path, fsdp, accumulate):
    phases = plain(lab, accumulate=accumulate)
    one = lab.weights(lab.train(phases, tmp_path / "one", lab.quiet(log_every=4)))
    first, second = train_two(lab, tmp_path, phases, lab.quiet(log_every=4, fsdp=fsdp))
    lab.assert_same(first, second)
    assert first.keys() == one.keys()
    for name in one:
        assert torch.allclose(first[name], one[name], atol=1e-5), name
    two_lines, one_lines = lab.lines(tmp_path / "run"), lab.lines(tmp_path / "one")
    assert [r["step"] for r in two_lines] == [4, 8, 12]
    for a, b in zip(two_lines, one_lines, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
        assert a["samples"] == b["samples"]


class Convolve(Plain):
    """`Plain` on 2×2 pictures of one channel."""

    def __init__(self):
        super().__init__()
        self.net.blocks = nn.ModuleList([nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)])

    def forward(self, batch, turn="main", step=0):
        return super().forward({"x": batch["x"].view(-1, 1, 2, 2)})


def test_fsdp_takes_channels_last(lab, tmp_path):
    phases = [("conv", lambda: Phase("conv", Convolve(), lab.rows(), 4, 8))]
    one = lab.weights(lab.train(phases, tmp_path / "one", lab.quiet()))
    for two in train_two(lab, tmp_path, phases, lab.quiet(fsdp=True, channels_last=True)):
        assert all(torch.allclose(two[name], one[name], atol=1e-5) for name in one)


@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_resume_exactly(lab, tmp_path, fsdp):
    def die(step, total):
        if step == 8:
            os._exit(9)
        return total

    settings = lab.quiet(fsdp=fsdp, log_every=3)
    (tmp_path / "a").mkdir()
    whole, _ = train_two(lab, tmp_path / "a", plain(lab), settings)
    out = tmp_path / "run"
    codes = torchrun(lambda rank: lab.train(plain(lab, poison=die), out, settings))
    assert codes == [9, 9]
    resumed, other = train_two(lab, tmp_path, plain(lab), settings, resume=True)
    lab.assert_same(resumed, whole)
    lab.assert_same(other, whole)
    assert lab.lines(out) == lab.lines(tmp_path / "a/run")


def test_turns_noise_and_batch_norm_stay_in_step(lab, tmp_path):
    phases = [
        lab.denoise(4, ema=None),
        ("duel", lambda: Phase("duel", lab.Duel(), lab.rows(), 4, 8, accumulate=2)),
    ]
    first, second = train_two(lab, tmp_path, phases)
    parameters = [
        k for k in first if "running" not in k
    ]  # statistics are each process's own; the first one's are saved
    assert len(parameters) > 8
    lab.assert_same({k: first[k] for k in parameters}, {k: second[k] for k in parameters})


def test_a_bad_loss_in_one_process_stops_both(lab, tmp_path):
    from latentia.errors import NonFiniteError

    def target(rank):
        def poison(step, total):
            return total * float("nan") if step == 2 and rank == 1 else total

        with pytest.raises(NonFiniteError, match="step 3"):
            lab.train(plain(lab, poison=poison), tmp_path / "run", lab.quiet())

    assert torchrun(target) == [0, 0]


def test_a_signal_to_one_process_stops_both_after_saving(lab, tmp_path):
    def target(rank):
        def poison(step, total):
            if step == 2 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return total

        with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
            lab.train(plain(lab, poison=poison), tmp_path / "run", lab.quiet())

    assert torchrun(target) == [0, 0]
    assert (tmp_path / "run/checkpoints/plain/step-00000003").is_dir()


def test_a_batch_that_does_not_divide_over_processes(lab, tmp_path):
    from latentia.errors import InputError

    def target(rank):
        with pytest.raises(InputError, match="batch_size 9 is not divisible by 2 processes"):
            lab.train(plain(lab, batch_size=9), tmp_path / "run", lab.quiet())

    assert torchrun(target) == [0, 0]


def test_another_number_of_processes_is_refused(lab, tmp_path):
    from latentia.errors import TrainingError

    train_two(lab, tmp_path, plain(lab))
    with pytest.raises(TrainingError, match="processes was 2, is 1"):
        lab.train(plain(lab, steps=20), tmp_path / "run", lab.quiet(), resume=True)


def test_sharded_previews_see_whole_averaged_weights(lab, tmp_path):
    objective = Plain()
    seen = []

    def preview():
        seen.append({k: v.clone() for k, v in objective.net.state_dict().items()})
        return torch.zeros(1, 1, 4, 4)

    phases = [("plain", lambda: Phase("plain", objective, lab.rows(), 4, 8, ema=EMA(0.9), preview=preview))]

    def target(rank):
        results = lab.train(phases, tmp_path / "run", lab.quiet(fsdp=True, preview_every=4))
        averaged = results["plain"].averaged["net"]
        assert seen[0].keys() == averaged.keys()
        assert all(torch.equal(seen[0][k], averaged[k]) for k in averaged)

    assert torchrun(target) == [0, 0]
    assert (tmp_path / "run/samples/plain-00000004.png").is_file()


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_processes_find_each_other_whatever_the_device_is_called(device):
    """`auto` where there is no GPU means the CPU, for Accelerate too."""

    def target(rank):
        found = start_accelerator(Settings(device=device))
        assert (found.num_processes, found.process_index) == (2, rank)
        found.wait_for_everyone()  # who leaves while the other still connects takes it down

    assert torchrun(target) == [0, 0]


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    alone = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    monkeypatch.setattr(parallel, "Accelerator", lambda **_: alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="2 processes were started, but Accelerate sees 1"):
        start_accelerator(Settings())


def test_who_trained_alone_is_one_of_them_again():
    settings = Settings(device="cpu")

    def target(rank):
        start_accelerator(settings)
        if rank == 0:
            with parallel.alone():
                assert start_accelerator(settings).num_processes == 1
        assert parallel.PartialState().num_processes == 2
        parallel.PartialState().wait_for_everyone()

    assert torchrun(target) == [0, 0]
