"""PhaseState: everything the next step reads, and its trip into a checkpoint and back."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from latentia.core.protocols import Batch
from latentia.errors import TrainingError
from latentia.training.checkpoint import Checkpoint, Tensors
from latentia.training.ema import EMAModel
from latentia.training.objective import Loss
from latentia.training.optim import build_optimizer, gradient_norm, load_optimizer_tensors, optimizer_tensors
from latentia.training.parallel import like, unshard_into, whole, wrap
from latentia.training.phase import Optim, Phase, PhaseResult
from latentia.training.settings import Settings
from latentia.training.window import Window

SMALLEST_SCALE = 1e-4
"""An fp16 loss scale below this means that gradients overflow whatever the scale: the run is broken."""


@dataclass(frozen=True)
class Turn:
    """One update of a step: its optimizer and what it owns."""

    name: str
    optim: Optim
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]

    def set_lr(self, lr: float) -> None:
        """Use this learning rate from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr


class PhaseState:
    """A phase being trained: modules, optimizers, average and running sums, on the device."""

    def __init__(self, phase: Phase, accelerator: Accelerator, settings: Settings) -> None:
        self.phase, self.accelerator, self.settings = phase, accelerator, settings
        self.scaler = accelerator.scaler
        self.objective, self.call = wrap(phase.objective, accelerator, settings)
        self.modules = self.objective.modules_by_name
        self.names = {id(p): f"{m}.{n}" for m, module in self.modules.items() for n, p in module.named_parameters()}
        self.has_buffers = any(True for module in self.modules.values() for _ in module.buffers())
        self._fixed = None if self.has_buffers else self.tensors()
        self.turns = [self._turn(name) for name in self.objective.turns]
        self.ema = self._average()
        self.window = Window()
        self.notes: dict[str, float] = {}
        self.step, self.seconds = 0, 0.0

    def _turn(self, name: str) -> Turn:
        owned = [p for m in self.objective.turn_modules(name) for p in self.modules[m].parameters() if p.requires_grad]
        if not owned:
            raise TrainingError(f"phase {self.phase.name!r}, turn {name!r}: no parameter requires a gradient")
        half = [self.names[id(p)] for p in owned if p.dtype in (torch.float16, torch.bfloat16)]
        if half and self.settings.precision != "no":
            raise TrainingError(
                f"{half[0]} and {len(half) - 1} more weights are {owned[0].dtype}: train float32 weights; "
                f"precision={self.settings.precision!r} already computes in half precision"
            )
        optim = self.phase.optim_of(name)
        if optim.optimizer == "muon" and self.settings.fsdp:
            raise TrainingError("muon needs whole matrices, which fsdp cuts into shards: use adamw, or no fsdp")
        modules = [self.modules[m] for m in self.objective.turn_modules(name)]
        return Turn(name, optim, build_optimizer(optim, owned, modules), owned)

    def _average(self) -> EMAModel | None:
        ema = self.phase.ema
        if ema is None:
            return None
        return EMAModel(
            self.tensors().values(),
            decay=ema.decay,
            min_decay=ema.min_decay,
            update_after_step=ema.update_after_step,
            use_ema_warmup=ema.warmup,
            inv_gamma=ema.inv_gamma,
            power=ema.power,
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every weight and saved buffer, `{module name.key: tensor}`, in a fixed order."""
        return {
            f"{name}.{key}": value
            for name, module in self.modules.items()
            for key, value in module.state_dict(keep_vars=True).items()
        }

    # --- one step -----------------------------------------------------------------------------------

    def forward_backward(self, turn: Turn, micro_batches: Sequence[Batch]) -> tuple[torch.Tensor, Tensors]:
        """Gradients of one turn, accumulated; returns the mean total and the mean parts, detached."""
        passes = len(micro_batches)
        losses: list[Loss] = []
        for i, batch in enumerate(micro_batches):
            with self._gradients_of(turn, sync=i == passes - 1):
                with self.accelerator.autocast():
                    loss: Loss = self.call(batch, turn.name, self.step)
                self.accelerator.backward(loss.total / passes if passes > 1 else loss.total)
            losses.append(loss)
        if passes == 1:
            return loss.total.detach(), loss.parts
        total = torch.stack([one.total.detach() for one in losses]).mean()
        return total, {k: torch.stack([one.parts[k].detach() for one in losses]).mean() for k in loss.parts}

    def gradient_norm(self, turn: Turn) -> torch.Tensor:
        """The global norm of a turn's gradients, after undoing fp16's loss scaling."""
        if self.scaler is not None:
            self.scaler.unscale_(turn.optimizer)
        return gradient_norm(turn.parameters)

    def is_finite(self, loss: float, norm: float) -> bool:
        """Whether the step may be taken. In fp16 gradients overflow now and then: the scaler skips that step."""
        overflow_is_normal = self.scaler is not None and self.scaler.get_scale() > SMALLEST_SCALE
        return math.isfinite(loss) and (math.isfinite(norm) or overflow_is_normal)

    def update(self, turn: Turn) -> None:
        """The optimizer step of one turn, and what the objective does after it."""
        if self.scaler is None:
            turn.optimizer.step()
        else:
            self.scaler.step(turn.optimizer)
            self.scaler.update()
        turn.optimizer.zero_grad(set_to_none=True)
        self.objective.after_update(turn.name)

    def note(self, turn: Turn, total: torch.Tensor, parts: Tensors, norm: float) -> None:
        """Remember what the log will say of this turn."""
        prefix = f"{turn.name}/" if len(self.turns) > 1 else ""
        self.window.add({f"{prefix}loss": total, **{f"{prefix}{name}": part for name, part in parts.items()}})
        self.notes |= {f"{prefix}lr": turn.optimizer.param_groups[0]["lr"], f"{prefix}grad_norm": norm}

    def line(self) -> dict[str, Any]:
        """What the log says now: means since the last line, and the last step's notes. Every process must call."""
        self.window.share(self.accelerator)
        means, self.window = self.window.means(), Window()
        decay = None if self.ema is None else self.ema.cur_decay_value
        samples = self.step * self.phase.batch_size
        return {"samples": samples, **means, **self.notes, "ema_decay": decay, "seconds": round(self.seconds, 4)}

    @contextmanager
    def _gradients_of(self, turn: Turn, sync: bool) -> Iterator[None]:
        """Only this turn's parameters collect gradients, exchanged between processes when `sync`."""
        others = []
        if len(self.turns) > 1:
            owned = {id(p) for p in turn.parameters}
            others = [p for t in self.turns for p in t.parameters if id(p) not in owned and p.requires_grad]
        for p in others:
            p.requires_grad_(False)
        try:
            if sync or self.settings.fsdp:
                yield
            else:
                with self.accelerator.no_sync(self.call):
                    yield
        finally:
            for p in others:
                p.requires_grad_(True)

    def average(self) -> None:
        """Take the weights into the average."""
        if self.ema is not None:
            self.ema.step((self._fixed or self.tensors()).values())

    # --- averaged weights -----------------------------------------------------------------------------

    @contextmanager
    def averaged_in_place(self) -> Iterator[None]:
        """The caller's modules hold averaged weights and are in eval mode."""
        if self.settings.fsdp:
            whole_objective = self.phase.objective
            unshard_into(whole_objective, self.averaged() or self.weights())
            whole_objective.to(self.accelerator.device).eval()
            yield
            whole_objective.to("cpu")
            return
        tensors = list(self.tensors().values())
        if self.ema is not None:
            self.ema.store(tensors)
            self.ema.copy_to(tensors)
        self.objective.eval()
        try:
            yield
        finally:
            self.train_mode()
            if self.ema is not None:
                self.ema.restore(tensors)

    def train_mode(self) -> None:
        """Trained modules in train mode, frozen ones in eval mode."""
        self.objective.eval()
        for module in self.modules.values():
            module.train()

    # --- checkpoint -----------------------------------------------------------------------------------

    def weights(self) -> Tensors:
        """Whole raw weights and buffers."""
        return {name: whole(tensor.detach()) for name, tensor in self.tensors().items()}

    def averaged(self) -> Tensors | None:
        """Whole averaged weights and buffers."""
        if self.ema is None:
            return None
        return {name: whole(shadow) for name, shadow in zip(self.tensors(), self.ema.shadow_params, strict=True)}

    def snapshot(self) -> tuple[dict[str, Tensors], dict[str, Any]]:
        """Everything the next step reads: tensors by file, and a JSON-able rest. Every process must call."""
        self.window.share(self.accelerator)
        optimizers = {
            f"{t.name}.{k}": v for t in self.turns for k, v in optimizer_tensors(t.optimizer, self.names).items()
        }
        files = {"weights": self.weights(), "optimizer": optimizers}
        averaged = self.averaged()
        if averaged is not None:
            files["averaged"] = averaged
        return files, {
            "seconds": self.seconds,
            "window": self.window.totals(),
            "ema": None if self.ema is None else self.ema.scalars(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take over a checkpoint. Raises `TrainingError` when it was written for other modules."""
        files, state = checkpoint.files, checkpoint.state
        tensors = self.tensors()
        check_same_tensors(checkpoint, tensors)
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(like(files["weights"][name], tensor))
        for turn in self.turns:
            prefix = f"{turn.name}."
            mine = {k.removeprefix(prefix): v for k, v in files["optimizer"].items() if k.startswith(prefix)}
            load_optimizer_tensors(turn.optimizer, self.names, mine)
        if self.ema is not None:
            shadows = [like(files["averaged"][n], t) for n, t in tensors.items()]
            self.ema.load_state_dict({**state["ema"], "shadow_params": shadows})
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.window = Window(state["window"], self.accelerator.device)
        self.step, self.seconds = checkpoint.step, state["seconds"]

    def result(self) -> PhaseResult:
        """What the phase leaves behind; the caller's modules hold the raw weights, in eval mode."""
        if self.settings.fsdp:
            unshard_into(self.phase.objective.to(self.accelerator.device), self.weights())
        self.phase.objective.eval()
        averaged = self.averaged()
        by_module = (
            None
            if averaged is None
            else {
                name: {k.removeprefix(f"{name}."): v for k, v in averaged.items() if k.startswith(f"{name}.")}
                for name in self.modules
            }
        )
        samples = self.step * self.phase.batch_size
        return PhaseResult(self.phase.name, self.phase.objective, by_module, self.step, samples, self.seconds)


def check_same_tensors(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `TrainingError` unless the checkpoint holds exactly these tensors in these shapes."""
    saved = {name: tuple(value.shape) for name, value in checkpoint.files["weights"].items()}
    here = {name: tuple(value.shape) for name, value in tensors.items()}
    if saved != here:
        differ = sorted(n for n in saved.keys() | here.keys() if saved.get(n) != here.get(n))
        raise TrainingError(
            f"{checkpoint.path} was written for other modules: {len(differ)} tensors differ, first {differ[0]}: "
            f"saved {saved.get(differ[0], 'nothing')}, built {here.get(differ[0], 'nothing')}. "
            "Train with the same model, or into another folder"
        )
