"""The dry run: shapes, parameters, FLOPs, memory and time of a recipe, found on the meta device.

    training FLOPs = 3 · forward FLOPs · samples        (backward costs two forwards)
    memory         = 4 B · parameters · (weights 1 + gradients 1 + Adam 2 + average 1) + activations

In a network that is frozen in part, the share of frozen weights spares as much of the second backward half; they need
neither gradients nor optimizer. Recomputed activations cost a forward more.

Forward FLOPs count two for a multiply-add, over convolutions, matrix products and attention. Activations are the
tensors that autograd keeps for one micro-batch, with fused attention; autocast to 16 bits is taken as half.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from latentia.recipes.sources import resolve_device
from latentia.training.phase import micro_batch

if TYPE_CHECKING:
    from latentia.recipes.recipe import Recipe

A100_PEAK = {"no": 156e12, "bf16": 312e12, "fp16": 312e12}
"""FLOP/s of one A100's tensor cores: TF32 for float32 training, and 16 bits."""

A100_SHARE = 0.3
"""Share of the peak that convolutional UNets are assumed to reach."""

TIMED_STEP_FLOPS = 4e10
"""Networks whose training step is cheaper than this are timed for real."""


@dataclass(frozen=True, slots=True)
class Work:
    """One network's share of a phase.

    Attributes:
        phase: the phase's name.
        network: the network's name in the pipeline, e.g. `unet`.
        build: makes the network (called on the meta device); what of a trained one does not require a gradient is
            frozen.
        inputs: batch size → the tensors of a call, made on the current default device.
        samples: how many samples pass through in the whole phase.
        batch_size: samples in one optimizer step (or one batch of inference).
        micro_batch: samples whose activations are alive at once.
        trained: backward and optimizer too; otherwise one forward without gradients.
        averaged: an EMA copy is kept.
        call: how the network is called; by default `network(*inputs)`.
        recomputed: activations are forgotten and computed again (gradient checkpointing).
        frozen_bytes: of a frozen weight in a trained network: 2 when it is held in half precision.
    """

    phase: str
    network: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[torch.Tensor, ...]]
    samples: int
    batch_size: int
    micro_batch: int
    trained: bool = True
    averaged: bool = False
    call: Callable[..., Any] | None = None
    recomputed: bool = False
    frozen_bytes: int = 4

    def ready(self) -> nn.Module:
        """The network, built on the current default device, in the mode in which it runs."""
        network = self.build().train(self.trained)
        return network if self.trained else network.requires_grad_(False)

    def run(self, network: nn.Module, batch: int) -> torch.Tensor:
        """One forward of `batch` samples; the (first) output tensor."""
        out = (self.call or network)(*(() if self.call is None else (network,)), *self.inputs(batch))
        while not isinstance(out, torch.Tensor):
            out = out[0]
        return out


@dataclass(frozen=True, slots=True)
class Row:
    """What one piece of work costs; bytes, FLOPs and seconds, None where nothing was measured."""

    phase: str
    network: str
    trained: bool
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parameters: int
    trained_parameters: int
    forward_flops: int
    samples: int
    batch_size: int
    total_flops: float
    state_bytes: int
    activation_bytes: int
    seconds_here: float | None
    seconds_a100: float
    measured: bool

    @property
    def memory_bytes(self) -> int:
        """Weights, gradients, optimizer, average and activations together."""
        return self.state_bytes + self.activation_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe's cost: one row for each network of each phase."""

    recipe: str
    rows: tuple[Row, ...]
    block_flops_per_second: float | None
    machine: str
    precision: str

    @property
    def parameters(self) -> int:
        """Parameters of the networks that are trained."""
        return sum(row.trained_parameters for row in self.rows)

    @property
    def total_flops(self) -> float:
        """FLOPs of the whole run."""
        return sum(row.total_flops for row in self.rows)

    @property
    def memory_bytes(self) -> int:
        """Largest memory of any phase."""
        phases = {row.phase for row in self.rows}
        return max(sum(row.memory_bytes for row in self.rows if row.phase == phase) for phase in phases)

    @property
    def seconds_here(self) -> float | None:
        """Seconds on this machine, None when not measured."""
        times = [row.seconds_here for row in self.rows]
        return None if None in times else sum(t for t in times if t is not None)

    @property
    def seconds_a100(self) -> float:
        """Seconds on one A100 at `A100_SHARE` of its peak."""
        return sum(row.seconds_a100 for row in self.rows)


def make_plan(recipe: Recipe, measure: bool = True) -> Plan:
    """Cost every piece of `recipe.work()`; see `Recipe.plan`."""
    device = torch.device(resolve_device(recipe.device))
    precision = recipe.precision.replace("auto", "bf16")  # an A100 has instructions for it
    with torch.random.fork_rng([]):
        speed = block_speed(device) if measure else None
        rows = tuple(cost(work, precision, device, speed) for work in recipe.work())
    threads = torch.get_num_threads()
    cpu = "1 CPU thread" if threads == 1 else f"{threads} CPU threads"
    named = {"cpu": lambda: cpu, "cuda": lambda: torch.cuda.get_device_name(device)}
    machine = named.get(device.type, lambda: device.type)()
    return Plan(recipe.name, rows, speed, machine, precision)


def rehearse(recipe: Recipe, processes: int = 1) -> None:
    """Call every network of the recipe once on the meta device: sizes that do not fit raise before any work.

    So do batches that cannot be shared out over so many processes.
    """
    with torch.random.fork_rng([]), torch.device("meta"), torch.no_grad():
        for work in recipe.work():
            if work.trained:
                micro_batch(work.phase, work.batch_size, processes, work.batch_size // work.micro_batch)
            work.run(work.ready(), 1)


def cost(work: Work, precision: str, device: torch.device, speed: float | None) -> Row:
    """The row of one piece of work; `speed` is this machine's FLOP/s or None."""
    with torch.device("meta"):
        network = work.ready()
        shapes = [tuple(x.shape[1:]) for x in work.inputs(1)]
        output, flops, kept = _trace(work, network)
    parameters = sum(p.numel() for p in network.parameters())
    learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
    passes = _passes(work, learning, parameters)
    total = flops * work.samples * passes
    activations = kept * work.micro_batch // (1 if precision == "no" else 2)
    seconds, measured = None, False
    if speed is not None:
        step = flops * work.micro_batch * passes
        measured = step < TIMED_STEP_FLOPS
        seconds = work.samples * time_per_sample(work, device) if measured else total / speed
    return Row(
        phase=work.phase,
        network=work.network,
        trained=work.trained,
        input_shape=shapes[0],
        output_shape=tuple(output.shape[1:]),
        parameters=parameters,
        trained_parameters=learning,
        forward_flops=flops,
        samples=work.samples,
        batch_size=work.batch_size,
        total_flops=total,
        state_bytes=4 * learning * (4 + work.averaged)
        + (parameters - learning) * (work.frozen_bytes if work.trained else 4),
        activation_bytes=activations,
        seconds_here=seconds,
        seconds_a100=total / (A100_PEAK[precision] * A100_SHARE),
        measured=measured,
    )


def _passes(work: Work, learning: int, parameters: int) -> float:
    """Forward, gradients of what flows through, of the weights that learn, and perhaps the forward again."""
    if not work.trained:
        return 1
    return (3 if learning == parameters else 2 + learning / parameters) + work.recomputed


def _trace(work: Work, network: nn.Module) -> tuple[torch.Tensor, int, int]:
    """Output, FLOPs and bytes kept for backward of one sample's forward."""
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them keeps their addresses distinct

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    fused = FusedAttention()
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks, fused, torch.set_grad_enabled(work.trained):
        output = work.run(network, 1)
    if not work.trained:  # without backward only the widest layer's input and output are alive
        return (
            output,
            counter.get_total_flops() + fused.flops,
            4 * (sum(x.numel() for x in work.inputs(1)) + output.numel()),
        )
    return output, counter.get_total_flops() + fused.flops, sum(storage.nbytes() for storage in kept.values())


class FusedAttention(TorchFunctionMode):
    """Within it attention takes the fused path even on the meta device, and its FLOPs are counted.

    The fallback there would materialise the L × L probabilities, which no machine that trains these keeps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        q, k, v = (args + tuple((kwargs or {})[name] for name in ("query", "key", "value")[len(args) :]))[:3]
        *batch, length, width = q.shape
        rows = length * k.shape[-2] * (width + v.shape[-1])
        self.flops += 2 * rows * int(torch.Size(batch).numel())
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


def time_per_sample(work: Work, device: torch.device, repeats: int = 2) -> float:
    """Seconds for one sample of real training (or inference): the faster of a few steps after one to warm up."""
    with torch.device(device):
        network = work.ready()
        learning = [p for p in network.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning) if work.trained else None
        times = [_timed(work, network, optimizer, device) for _ in range(repeats + 1)]
    return min(times[1:]) / work.micro_batch


def _timed(work: Work, network: nn.Module, optimizer: torch.optim.Optimizer | None, device: torch.device) -> float:
    start = time.perf_counter()
    with torch.set_grad_enabled(work.trained):
        output = work.run(network, work.micro_batch)
    if optimizer is not None:
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    _wait_for(device)
    return time.perf_counter() - start


def block_speed(device: torch.device, width: int = 128, side: int = 32, batch: int = 4) -> float:
    """FLOP/s of forward and backward through GroupNorm, SiLU and a 3×3 convolution here: best of three."""
    block = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1)).to(device)
    x = torch.linspace(-1, 1, batch * width * side * side, device=device).view(batch, width, side, side)
    x.requires_grad_()
    flops = 3 * 2 * 9 * width * width * side * side * batch

    def once() -> float:
        start = time.perf_counter()
        block(x).sum().backward()
        _wait_for(device)
        return time.perf_counter() - start

    once()
    return flops / min(once() for _ in range(3))


def _wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()
