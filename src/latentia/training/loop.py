"""The one training loop: phases in order, each told from learning rate to checkpoint.

    results = train([("codec", build_codec_phase), ("prior", build_prior_phase)], out, Settings(seed=3))

Everything random is a function of (seed, phase, step, process), so a run that was killed and resumed is
the run that was never killed, bit for bit on the CPU.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from latentia.core.rng import derive_seed
from latentia.errors import InputError
from latentia.training.interrupt import Interrupt
from latentia.training.log import RunLog
from latentia.training.optim import clip_gradients, learning_rate
from latentia.training.order import DataOrder, batches
from latentia.training.parallel import any_process, seed_device, start_accelerator, to_device
from latentia.training.phase import Phase, PhaseResult
from latentia.training.resume import check_folder
from latentia.training.run import Run
from latentia.training.settings import Settings
from latentia.training.state import PhaseState

Builder = Callable[[], Phase]


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
    mark = run.go_on(state, mark, later)
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
                    raise run.non_finite(state, turn.name, loss, size, parts)
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
                run.preview(state)
            if last or stop or state.step % settings.save_every == 0:
                mark = run.save(state)
            if stop:
                break
    if state.step == phase.steps:
        run.finish(state)
    if stop:
        raise KeyboardInterrupt(
            f"stopped after step {state.step} of phase {phase.name!r}, saved: go on with --resume (resume=True)"
        )
    return state.result(), mark
