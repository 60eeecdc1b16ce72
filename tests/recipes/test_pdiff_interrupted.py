"""Ctrl-C in any phase of `pdiff-digits`, then `--resume`: bit for bit what a run that was left alone gives."""

import json
import os
import signal

import pytest

from latentia.methods.pdiff.collect import TrajectoryRun
from latentia.methods.pdiff.objectives import LatentPriorObjective, ParameterReconstructionObjective
from latentia.recipes import pdiff_judging
from latentia.recipes.overrides import override
from latentia.recipes.pdiff_digits import PDiffDigits, pdiff_digits
from latentia.recipes.run import run_recipe

TINY = [
    *("steps=5", "batch_size=4", "codec.steps=5", "codec.batch_size=4", "unet.channels=8,", "log_every=1"),
    *("originals.count=95", "originals.main.epochs=3", "originals.skip=0", "originals.every=1", "task.train=64"),
    *("samples=4", "sampling_steps=3", "device=cpu", "runs=1", "norms=false", "save_every=2"),
]
PHASES = {
    "collecting": (TrajectoryRun, "advance", 101),  # of 6 + 95 steps; step 100 was written last
    "autoencoder": (ParameterReconstructionObjective, "forward", 3),
    "unet": (LatentPriorObjective, "forward", 3),
    "judging": (PDiffDigits, "generate", 1),
}


@pytest.fixture(scope="module", autouse=True)
def short_judgement():
    """The networks that would be judged, in the place of the report: tracing and t-SNE take seconds."""

    def tell(recipe, bench, results, out):
        (out / "report.json").write_text(json.dumps(recipe.generate(recipe.pipeline(bench)).tolist()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pdiff_judging, "tell", tell)
        yield


def run(out, resume=False):
    run_recipe(override(pdiff_digits(), TINY), out, resume=resume, progress=False)


def results(out):
    """Bytes of every original, network and setting, and what was generated."""
    files = [file for name in ("originals", "pipeline") for file in sorted((out / name).rglob("*")) if file.is_file()]
    assert len(files) > 8
    return {str(file.relative_to(out)): file.read_bytes() for file in [*files, out / "report.json"]}


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("left") / "run"
    run(out)
    return results(out)


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(phase, left_alone, tmp_path, monkeypatch):
    place, name, at = PHASES[phase]
    plain, calls = getattr(place, name), []
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background

    def stopped(self, *arguments, **options):
        calls.append(phase)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, stopped)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "run" / "report.json").exists()
    assert (tmp_path / "run" / "originals" / "unfinished").exists() == (phase == "collecting")
    run(tmp_path / "run", resume=True)
    assert results(tmp_path / "run") == left_alone
