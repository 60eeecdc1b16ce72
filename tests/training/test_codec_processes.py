"""The codec's two turns on two processes: every process trains both sides, and all keep the same weights."""

import multiprocessing
import os
import socket

import torch
from safetensors.torch import load_file, save_file

from latentia.codecs.vq_model import VQModel
from latentia.data.dataset import TensorDataset
from latentia.losses.patchgan import PatchDiscriminator
from latentia.training.codec_objective import CodecObjective
from latentia.training.phase import Optim, Phase


def build():
    torch.manual_seed(0)
    codec = VQModel(
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=3,
        num_vq_embeddings=8,
        mid_block_add_attention=False,
    )
    objective = CodecObjective(codec, PatchDiscriminator(1, 16, 1), start=2, warmup=1, ramp=1)
    data = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    return Phase("codec", objective, TensorDataset({"x": data}), 6, 8, Optim(lr=2e-3))


def test_two_processes(lab, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def start(rank):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        results = lab.train([("codec", build)], tmp_path / "run", lab.quiet(log_every=1))
        held = {k: v for k, v in lab.weights(results).items() if "running_" not in k and "num_batches" not in k}
        save_file({k: v.contiguous() for k, v in held.items()}, tmp_path / f"{rank}.safetensors")
        torch.distributed.destroy_process_group()

    context = multiprocessing.get_context("fork")
    children = [context.Process(target=start, args=(rank,)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    lab.assert_same(first, second)
    started = build().objective.state_dict()
    moved = [name for name in ("codec", "discriminator") if any(
        not torch.equal(value, first[f"codec.raw.{key}"]) for key, value in started.items()
        if key.startswith(name) and f"codec.raw.{key}" in first
    )]  # fmt: skip
    assert moved == ["codec", "discriminator"]
    lines = lab.lines(tmp_path / "run")
    assert [line["discriminator/grad_norm"] == 0 for line in lines] == [True, True, False, False, False, False]
