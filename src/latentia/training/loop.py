"""The one training loop: phases in order, each told from learning rate to checkpoint.

    results = train([("codec", build_codec_phase), ("prior", build_prior_phase)], out, Settings(seed=3))

Everything random is a function of (seed, phase, step, process), so a run that was killed and resumed is
the run that was never killed, bit for bit on the CPU.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from latentia.core.rng import derive_seed
from latentia.errors import InputError, NonFiniteError
from latentia.training.checkpoint import CheckpointFolder
from latentia.training.interrupt import Interrupt
from latentia.training.log import RunLog
from latentia.training.optim import clip_gradients, learning_rate
from latentia.training.order import DataOrder, batches
from latentia.training.parallel import any_process, seed_device, start_accelerator, to_device
from latentia.training.phase import Phase, PhaseResult
from latentia.training.resume import check_folder, check_resumable
from latentia.training.settings import Settings
from latentia.training.state import PhaseState

Builder = Callable[[], Phase]


@dataclass(frozen=True)
class Run:
    """What every phase of a run shares."""

    out: Path
    settings: Settings
    accelerator: Accelerator
    log: RunLog
    resume: bool

    def checkpoints(self, phase: str) -> CheckpointFolder:
        """The checkpoints of one phase."""
        return CheckpointFolder(self.out / "checkpoints" / phase)

    def agreed(self, phase: Phase) -> dict[str, Any]:
        """Everything that changes a phase's result, and so must be the same when it goes on."""
        here = {"seed": self.settings.seed, "precision": self.settings.precision}
        return {**here, "processes": self.accelerator.num_processes, **phase.must_agree()}


def train(
    phases: Sequence[tuple[str, Builder]], out: Path, settings: Settings, resume: bool = False
) -> dict[str, PhaseResult]:
    """Train the phases in order into the folder `out`; returns what each left behind, by name.

    A phase is built when it is reached, so its builder may read what earlier ones trained; torch's generators
    are seeded before. Writes `metrics.jsonl`, `tensorboard/`, `samples/` and `checkpoints/` in `out`.

    Args:
        phases: (name, builder) pairs; the name is the phase's own.
        out: the run's folder, new unless `resume`.
        settings: how to carry the run out.
        resume: go on from the newest whole checkpoint, or from the start when there is none.

    Raises `TrainingError` for a folder that holds a run (without `resume`), or for one that was started with other
    values; `NonFiniteError` before an optimizer step whose loss or gradient is not finite; `InputError` for values
    out of range; `KeyboardInterrupt`, after saving, when asked to stop by Ctrl-C or SIGTERM.
    """
    out = Path(out)
    names = [name for name, _ in phases]
    if not names or len(set(names)) != len(names):
        raise InputError(f"phases need names that differ, got {names}")
    accelerator = start_accelerator(settings)
    check_folder(out, resume)
    accelerator.wait_for_everyone()
    results: dict[str, PhaseResult] = {}
    writes = accelerator.is_main_process
    cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(cuda), RunLog(out, writes, settings.progress, settings.tensorboard) as log:
        run = Run(out, settings, accelerator, log, resume)
        mark = 0
        for i, (name, build) in enumerate(phases):
            torch.manual_seed(derive_seed("build", settings.seed, name))
            phase = build()
            if phase.name != name:
                raise InputError(f"the builder of phase {name!r} returned one called {phase.name!r}")
            results[name], mark = train_phase(phase, run, mark, later=names[i + 1 :])
    return results


def train_phase(phase: Phase, run: Run, mark: int, later: Sequence[str]) -> tuple[PhaseResult, int]:
    """One phase from its first or last saved step to its end; `mark` is where metrics.jsonl stood before it."""
    settings, accelerator, log = run.settings, run.accelerator, run.log
    rank, processes = accelerator.process_index, accelerator.num_processes
    phase.micro_batch(processes)
    state = PhaseState(phase, accelerator, settings)
    mark = go_on(state, run, mark, later)
    order = DataOrder(len(phase.data), phase.batch_size, settings.seed, phase.name)
    plan = (order.share(k, rank, processes, phase.accumulate) for k in range(state.step, phase.steps))
    stop = False
    with Interrupt() as interrupt, log.phase(phase.name, state.step, phase.steps):
        for fetched in batches(phase.data, plan, phase.fetchers):
            started = time.perf_counter()
            seed_device(derive_seed("step", settings.seed, phase.name, state.step, rank), accelerator.device)
            micro_batches = [to_device(batch, accelerator.device, settings.channels_last) for batch in fetched]
            for turn in state.turns:
                turn.set_lr(learning_rate(turn.optim, state.step, phase.steps))
                total, parts = state.forward_backward(turn, micro_batches)
                norm = state.gradient_norm(turn)
                # Both numbers in one transfer: the only time in a step that the CPU waits for a GPU.
                loss, size = torch.stack([total.float(), norm.float()]).tolist()
                bad, stop = any_process(accelerator, not state.is_finite(loss, size), interrupt.requested)
                if bad:
                    raise non_finite(state, turn.name, loss, size, parts, run)
                clip_gradients(turn.parameters, turn.optim.clip, size)
                state.update(turn)
                state.note(turn, total, parts, size)
            state.average()
            state.step += 1
            state.seconds += time.perf_counter() - started

            last = state.step == phase.steps
            log.advance(state.step, loss)
            if last or state.step % settings.log_every == 0:
                log.record(state.step, state.line())
            if settings.preview_every and state.step % settings.preview_every == 0:
                preview(state, log)
            if last or stop or state.step % settings.save_every == 0:
                mark = save(state, run)
            if stop:
                break
    if state.step == phase.steps:
        finish(state, run)
    if stop:
        raise KeyboardInterrupt(
            f"stopped after step {state.step} of phase {phase.name!r}, saved: go on with --resume (resume=True)"
        )
    return state.result(), mark


def go_on(state: PhaseState, run: Run, mark: int, later: Sequence[str]) -> int:
    """Load the newest checkpoint, if resuming and there is one, and return metrics.jsonl to that moment."""
    state.train_mode()
    if not run.resume:
        return mark
    folder = run.checkpoints(state.phase.name)
    if run.accelerator.is_main_process:
        folder.clean()
    run.accelerator.wait_for_everyone()
    found = folder.newest()
    if found is None:
        run.log.cut(mark)
        return mark
    check_resumable(found, state.phase, run.agreed(state.phase), [run.checkpoints(name) for name in later])
    state.restore(found)
    mark = int(found.state["metrics_bytes"])
    if not (found.final and found.step == state.phase.steps):  # what follows a finished phase belongs to later ones
        run.log.cut(mark)
    return mark


def save(state: PhaseState, run: Run) -> int:
    """Write a checkpoint; returns where metrics.jsonl stood. Every process calls, the first writes."""
    files, rest = state.snapshot()
    mark = run.log.mark()
    if run.accelerator.is_main_process:
        rest |= {"metrics_bytes": mark, "agreed": run.agreed(state.phase), "phase": state.phase.name}
        run.checkpoints(state.phase.name).save(state.step, files, rest)
    run.accelerator.wait_for_everyone()
    return mark


def finish(state: PhaseState, run: Run) -> None:
    """Make the last checkpoint the phase's final one."""
    if run.accelerator.is_main_process:
        run.checkpoints(state.phase.name).finish(state.step)
    run.accelerator.wait_for_everyone()


def preview(state: PhaseState, log: RunLog) -> None:
    """Pictures made with averaged weights, into samples/ and TensorBoard."""
    if state.phase.preview is None:
        return
    with state.averaged_in_place(), torch.no_grad():
        pictures = state.phase.preview()
    if pictures is not None:
        log.picture(state.step, pictures)


def non_finite(
    state: PhaseState, turn: str, loss: float, norm: float, parts: dict[str, torch.Tensor], run: Run
) -> NonFiniteError:
    """The error that names phase, step and part; nothing has been changed by the step."""
    values = {name: part.item() for name, part in parts.items()} | {"total": loss, "gradient norm": norm}
    bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    saved = run.checkpoints(state.phase.name).paths()
    kept = f"the last good checkpoint is {saved[0]}" if saved else "no checkpoint had been written"
    said = "; ".join(bad) or "another process failed"
    return NonFiniteError(
        f"phase {state.phase.name!r}, step {state.step + 1}, turn {turn!r}: {said}. "
        f"Stopped before the optimizer step; {kept}. Lower the learning rate, clip gradients, or use precision='no'"
    )
