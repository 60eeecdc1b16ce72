"""One process or many: starting Accelerate, wrapping an objective in DDP or FSDP2, sharded tensors whole and back."""

import copy
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from latentia.core.protocols import Batch
from latentia.errors import InputError, TrainingError
from latentia.training.objective import Objective
from latentia.training.settings import Settings

PLAIN = (torch.Tensor, nn.Parameter)
STATES = (AcceleratorState, GradientState, PartialState)


def start_accelerator(settings: Settings) -> Accelerator:
    """Accelerate for these settings: the device, the processes that `torchrun` started, autocast, loss scaling.

    Raises `InputError` when the device is not there, when `fp16` is asked of a CPU, and for `fsdp` with one process;
    `TrainingError` when the processes that were started do not find each other.
    """
    kind = settings.device.split(":")[0]
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    if not present.get(kind, True):
        raise InputError(f"device {settings.device!r} is not available here: use 'cpu' or 'auto'")
    if kind == "cuda" and ":" in settings.device:
        torch.cuda.set_device(settings.device)
    # Accelerate's state is process-wide and refuses another precision or device than the first one asked for.
    for state in STATES:
        state._reset_state()
    # Accelerate joins processes on CPUs only when it is told that they are meant.
    on_cpu = kind == "cpu" or (kind == "auto" and not any(present.values()))
    accelerator = Accelerator(cpu=on_cpu, mixed_precision=settings.precision)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != started:
        raise TrainingError(
            f"{started} processes were started, but Accelerate sees {accelerator.num_processes}: they would each train "
            "alone and overwrite each other; start them with torchrun, and see that all find the same kind of device"
        )
    if settings.precision == "fp16" and accelerator.device.type == "cpu":
        raise InputError("precision 'fp16' needs a GPU: use 'bf16' or 'no' on the CPU")
    if settings.fsdp and settings.precision == "fp16":
        raise InputError("fsdp with precision 'fp16' would scale losses per shard: use 'bf16'")
    if settings.fsdp and accelerator.num_processes == 1:
        raise InputError("fsdp shards over processes and there is one: start with torchrun --nproc_per_node N")
    return accelerator


@contextmanager
def alone() -> Iterator[None]:
    """Within it this process trains by itself, whatever `torchrun` started; the others need not take part.

    Afterwards it is one of them again: Accelerate's process-wide state is put back, for whoever waits for everyone.
    """
    hidden = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ}
    before = [(state._shared_state, dict(state._shared_state)) for state in STATES]
    try:
        yield
    finally:
        os.environ.update(hidden)
        for shared, values in before:
            shared.clear()
            shared.update(values)


def wrap(objective: Objective, accelerator: Accelerator, settings: Settings) -> tuple[Objective, nn.Module]:
    """The objective as it is trained, and the module to call: the objective itself, or DDP around it.

    With FSDP both are a sharded copy: the caller's modules stay whole, where they are; `unshard_into` fills them.
    """
    for name in objective.frozen:
        objective.get_submodule(name).requires_grad_(False)
    objective = copy.deepcopy(objective) if settings.fsdp else objective
    objective.to(accelerator.device)
    if settings.channels_last and not settings.fsdp:  # FSDP shards contiguous weights only; its inputs are NHWC
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.compile:
        for module in objective.modules_by_name.values():
            module.compile()
    if settings.fsdp:
        shard(objective)
        return objective, objective
    if accelerator.num_processes == 1:
        return objective, objective
    device = accelerator.device
    # In a step of several turns each turn's loss reaches only some of the parameters.
    several = len(objective.turns) > 1
    ids = [device.index] if device.type == "cuda" else None
    return objective, DistributedDataParallel(objective, device_ids=ids, find_unused_parameters=several)


def shard(objective: Objective) -> None:
    """FSDP2 in place: each outermost block is gathered when it runs, the rest for the whole step."""
    from torch.distributed.fsdp import fully_shard  # imported late: half a second

    for block in outermost_blocks(objective):
        fully_shard(block)
    fully_shard(objective)


def outermost_blocks(module: nn.Module) -> list[nn.Module]:
    """The entries of every `nn.ModuleList` that lies in no other one: the pieces FSDP gathers one at a time."""
    blocks: list[nn.Module] = []
    for child in module.children():
        blocks += list(child) if isinstance(child, nn.ModuleList) else outermost_blocks(child)
    return blocks


def any_process(accelerator: Accelerator, *flags: bool) -> tuple[bool, ...]:
    """Each flag, raised if it is raised in any process; all processes get the same answer."""
    if accelerator.num_processes == 1:
        return flags
    raised = torch.tensor(flags, dtype=torch.int32, device=accelerator.device)
    torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX)
    return tuple(bool(flag) for flag in raised.tolist())


def seed_device(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of this device (`torch.manual_seed` asks every backend: slow)."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def to_device(batch: Batch, device: torch.device, channels_last: bool = False) -> dict[str, torch.Tensor]:
    """A batch on the device, its 4-D floating tensors as NHWC if asked."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    if not channels_last:
        return moved
    return {k: v.to(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in moved.items()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered (every process must call); any other as it is."""
    if type(tensor) in PLAIN:
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(value: torch.Tensor, example: torch.Tensor) -> torch.Tensor:
    """`value` on `example`'s device, laid out in memory and sharded as `example` is.

    The layout matters: fused optimizers walk weights and moments in memory order, whatever their strides say.
    """
    if type(example) in PLAIN:
        return torch.empty_like(example, dtype=value.dtype, requires_grad=False).copy_(value)
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(example, DTensor):
        return distribute_tensor(value.to(example.device), example.device_mesh, example.placements)
    return value.to(example.device)


@torch.no_grad()
def unshard_into(objective: Objective, tensors: Mapping[str, torch.Tensor]) -> None:
    """Copy whole tensors, `{module name.key: tensor}`, into an objective's modules."""
    for name, module in objective.modules_by_name.items():
        for key, target in module.state_dict(keep_vars=True).items():
            target.copy_(tensors[f"{name}.{key}"])
