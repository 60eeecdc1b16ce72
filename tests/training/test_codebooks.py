"""Codebooks in training: logged, warned of, averaged, checkpointed, resumed."""

import logging
import multiprocessing
import os
import socket

import pytest
import torch

from latentia.codecs.vq_model import VQModel
from latentia.data.dataset import TensorDataset
from latentia.errors import InputError
from latentia.training.codebook_health import ADVICE, CodebookHealth
from latentia.training.ema import EMAModel
from latentia.training.loop import train
from latentia.training.objectives import ReconstructionObjective
from latentia.training.phase import EMA, Optim, Phase
from latentia.training.settings import Settings

TINY = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (4, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "mid_block_add_attention": False,
    "num_vq_embeddings": 8,
    "quantizer": "vq_ema",
}
OTHERS = {
    "vq": {"quantizer": "vq"},
    "vq_ema": {},
    "residual": {"quantizer": "residual", "quantizer_options": {"levels": 2}},
    "lfq": {"quantizer": "lfq", "num_vq_embeddings": 16},
    "fsq": {"quantizer": "fsq", "num_vq_embeddings": 24, "quantizer_options": {"levels": (3, 2, 2, 2)}},
}


def codec(**changes) -> VQModel:
    torch.manual_seed(0)
    return VQModel(**{**TINY, **changes})


def pictures(count: int = 24) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def phase(stop_at: int | None = None, steps: int = 8, **changes) -> Phase:
    class Stopping(ReconstructionObjective):
        def forward(self, batch, turn="main", step=0):
            if step == stop_at:
                raise InterruptedError
            return super().forward(batch, turn, step)

    data = TensorDataset({"x": pictures()})
    given = {"optim": Optim(lr=3e-3), "ema": EMA(0.9), "accumulate": 2, **changes}
    return Phase("codec", Stopping(codec(), reduction="mean", loss="l2"), data, steps, 8, **given)


def run(out, resume: bool = False, **changes):
    settings = Settings(device="cpu", save_every=3, progress=False, tensorboard=False)
    return train([("codec", lambda: phase(**changes))], out, settings, resume=resume)["codec"]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_every_quantizer_trains(name, reduction):
    """total = error + quantizer's loss; `sum` is n times `mean`."""
    model = codec(**OTHERS[name]).train()
    objective = ReconstructionObjective(model, reduction=reduction, loss="l2", quantizer_weight=0.5)
    x = pictures(6)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    torch.manual_seed(4)
    loss = objective({"x": x})
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())
    model.load_state_dict(state)
    torch.manual_seed(4)
    quantized = model.quantize(model.encode(x).latents)
    error = (model.decode(quantized.values, force_not_quantize=True).sample - x).square().mean()
    n = 64 if reduction == "sum" else 1
    torch.testing.assert_close(loss.total, n * (error + 0.5 * quantized.loss))
    torch.testing.assert_close(loss.parts["rec"], n * error.detach())
    for part, value in quantized.parts.items():
        torch.testing.assert_close(loss.parts[part], value)
    tokens = quantized.indices.numel()
    assert loss.parts["perplexity_ceiling"].item() == min(model.num_codes, tokens)
    usage = model.quantize.usage(quantized.indices)
    assert loss.parts["perplexity"].item() == pytest.approx(usage.perplexity, rel=1e-5)
    assert loss.parts["codes_used"].item() == usage.used


def test_what_it_does_not_train_is_refused():
    with pytest.raises(InputError, match="Autoencoder, AutoencoderKL or VQModel, got Linear"):
        ReconstructionObjective(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="decodes tokens only"):
        ReconstructionObjective(codec(lookup_from_codebook=True))
    with pytest.raises(InputError, match="quantizer_weight"):
        ReconstructionObjective(codec(), quantizer_weight=-1.0)
    assert ReconstructionObjective(codec()).settings()["quantizer_weight"] == 1.0


@pytest.mark.parametrize("name", OTHERS)
def test_collapse_is_warned_of_once_with_what_to_try(name, caplog):
    quantizer = codec(**OTHERS[name]).quantize
    health = CodebookHealth(quantizer)
    quantizer.num_codes = health.num_codes = 300
    one, many = torch.zeros(3000, dtype=torch.int64), torch.arange(3000) % 300
    with caplog.at_level(logging.WARNING, "latentia.training"):
        health.of(one, 100)  # too early
        health.of(many, 200)  # healthy
        health.of(one, 250)  # not looked at
        assert caplog.records == []
        for step in (300, 400):
            health.of(one, step)
    (record,) = caplog.records
    assert record.message.startswith("step 300: the codebook has collapsed, the tokens' perplexity is 1.0 where 300 is")
    kind = {"vq": "gradient", "vq_ema": "ema", "residual": "ema", "lfq": "signs", "fsq": "fixed"}[name]
    assert record.message.endswith(ADVICE[kind])


def test_a_small_batch_is_no_collapse(caplog):
    health = CodebookHealth(codec().quantize)
    health.num_codes = 10_000
    with caplog.at_level(logging.WARNING, "latentia.training"):
        parts = health.of(torch.arange(64), 300)
    assert parts["perplexity"].item() == pytest.approx(64)
    assert parts["perplexity_ceiling"].item() == 64
    assert caplog.records == []


@pytest.mark.parametrize("at", [1, 4, 7])
def test_resumed_codebooks_are_bit_equal(tmp_path, at):
    whole = run(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        run(tmp_path / "cut", stop_at=at)
    again = run(tmp_path / "cut", resume=True)
    state, other = whole.modules["codec"].state_dict(), again.modules["codec"].state_dict()
    assert {"quantize.codes", "quantize.cluster_size", "quantize.sums", "quantize.started"} <= set(state)
    for key, value in state.items():
        assert torch.equal(value, other[key]), key
        assert torch.equal(whole.averaged["codec"][key], again.averaged["codec"][key]), key


def test_averaged_weights_come_with_the_codebook_of_now(tmp_path):
    """The codes are an average already; averaging them again would leave revived ones half-way."""
    result = run(tmp_path / "run")
    state, averaged = result.modules["codec"].state_dict(), result.averaged["codec"]
    for key, value in state.items():
        assert torch.equal(averaged[key], value) == key.startswith("quantize."), key
    model = codec().eval()
    model.load_state_dict(averaged)
    tokens = model.to_tokens(pictures(4))
    assert torch.equal(model.from_tokens(tokens), model(pictures(4)).sample)


def test_the_average_copies_integers_and_flags():
    tensors = list(codec().quantize.state_dict().values())
    ema = EMAModel(tensors)
    changed = [torch.ones_like(t) for t in tensors]
    for _ in range(3):
        ema.step(changed)
    assert all(torch.equal(shadow, value) for shadow, value in zip(ema.shadow_params, changed))


@pytest.mark.parametrize("fsdp", [False, True])
def test_two_processes_keep_one_codebook(tmp_path, fsdp):
    """DDP and FSDP2 over gloo: start, averages and revival agree to the bit, whatever each process sees and draws."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(rank: int) -> None:
        torch.set_num_threads(1)
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        settings = Settings(device="cpu", progress=False, tensorboard=False, fsdp=fsdp)
        result = train([("codec", lambda: phase(accumulate=1))], tmp_path / "run", settings)["codec"]
        torch.save(result.modules["codec"].state_dict(), tmp_path / f"{rank}.pt")
        torch.distributed.destroy_process_group()

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=start, args=(rank,)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert bool(first["quantize.started"])
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
