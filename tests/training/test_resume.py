import shutil

import pytest
import torch

from latentia.data.dataset import TensorDataset
from latentia.errors import TrainingError
from latentia.training.phase import EMA, Optim, Phase


@pytest.fixture
def whole(lab, tmp_path):
    """A run of two phases never interrupted: (weights, lines)."""
    out = tmp_path / "whole"
    results = lab.train(two(lab), out, lab.quiet(log_every=3))
    return lab.weights(results), lab.lines(out)


def two(lab, steps=20, **changes):
    return [lab.denoise(8, "first"), lab.denoise(steps, "second", accumulate=2, **changes)]


class Stop(Exception):
    pass


def stop_at(k):
    def poison(step, total):
        if step == k:
            raise Stop
        return total

    return poison


@pytest.mark.parametrize("at", [0, 4, 5, 7, 13, 19])
def test_a_run_that_was_interrupted_is_the_run_that_was_not(lab, tmp_path, whole, at):
    out = tmp_path / "cut"
    with pytest.raises(Stop):
        lab.train(two(lab, poison=stop_at(at)), out, lab.quiet(log_every=3))
    results = lab.train(two(lab), out, lab.quiet(log_every=3), resume=True)
    lab.assert_same(lab.weights(results), whole[0])
    assert lab.lines(out) == whole[1]


def test_every_step_is_logged_once(whole):
    assert [(r["phase"], r["step"]) for r in whole[1]] == [
        *(("first", s) for s in (3, 6, 8)),
        *(("second", s) for s in (3, 6, 9, 12, 15, 18, 20)),
    ]


def test_optimizer_state_is_restored_exactly(lab, tmp_path):
    from latentia.training.checkpoint import read_checkpoint

    lab.train([lab.denoise(20)], tmp_path / "a", lab.quiet())
    with pytest.raises(Stop):
        lab.train([lab.denoise(20, poison=stop_at(12))], tmp_path / "b", lab.quiet())
    lab.train([lab.denoise(20)], tmp_path / "b", lab.quiet(), resume=True)
    a, b = (read_checkpoint(tmp_path / x / "checkpoints/denoise/final") for x in "ab")
    lab.assert_same(a.files["optimizer"], b.files["optimizer"])
    assert float(a.files["optimizer"]["main.net.first.weight.step"]) == 20
    assert a.state["ema"] == b.state["ema"]
    assert a.state["ema"]["optimization_step"] == 20


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_channels_last_weights_resume_exactly(lab, tmp_path, optimizer):
    """Fused Adam reads weights and moments in memory order, so the moments must come back in the weights' layout."""
    pictures = TensorDataset({"x": torch.linspace(-1, 1, 10 * 3 * 16).view(10, 3, 4, 4)})

    def phase(poison=None):
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(16, 3, 3))
        net.append(torch.nn.ZeroPad2d(1))
        return Phase(
            "conv", lab.Denoise(net, poison), pictures, 8, 4, Optim(lr=1e-2, optimizer=optimizer), ema=EMA(0.9)
        )

    settings = lab.quiet(channels_last=True, save_every=3, log_every=1)
    whole = lab.train([("conv", phase)], tmp_path / "a", settings)
    with pytest.raises(Stop):
        lab.train([("conv", lambda: phase(stop_at(5)))], tmp_path / "b", settings)
    resumed = lab.train([("conv", phase)], tmp_path / "b", settings, resume=True)
    lab.assert_same(lab.weights(resumed), lab.weights(whole))
    assert lab.lines(tmp_path / "b") == lab.lines(tmp_path / "a")


def test_resuming_a_finished_run_changes_nothing(lab, tmp_path, whole):
    out = tmp_path / "whole"
    files = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    results = lab.train(two(lab), out, lab.quiet(log_every=3), resume=True)
    lab.assert_same(lab.weights(results), whole[0])
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()} == files
    assert results["second"].steps == 20
    assert results["second"].samples == 160


def test_resuming_nothing_starts_from_the_beginning(lab, tmp_path, whole):
    results = lab.train(two(lab), tmp_path / "new", lab.quiet(log_every=3), resume=True)
    lab.assert_same(lab.weights(results), whole[0])


def test_a_used_folder_needs_resume(lab, tmp_path):
    lab.train([lab.denoise(2)], tmp_path, lab.quiet())
    with pytest.raises(TrainingError, match="already holds a run: go on with --resume"):
        lab.train([lab.denoise(2)], tmp_path, lab.quiet())
    (tmp_path / "file").write_text("x")
    with pytest.raises(TrainingError, match="is a file"):
        lab.train([lab.denoise(2)], tmp_path / "file", lab.quiet())


def test_a_folder_with_only_the_recipe_is_new(lab, tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    assert lab.train([lab.denoise(2)], tmp_path, lab.quiet())["denoise"].steps == 2


@pytest.mark.parametrize(
    ("changes", "settings", "said"),
    [
        ({"batch_size": 4}, {}, "batch_size was 8, is 4"),
        ({"optim": Optim(lr=3e-3, warmup=3)}, {}, r"main\.lr was 0\.01, is 0\.003"),
        ({"ema": EMA(0.9)}, {}, "ema was"),
        ({"accumulate": 2}, {}, "accumulate was 1, is 2"),
        ({}, {"seed": 1}, "seed was 0, is 1"),
        ({}, {"precision": "bf16"}, "precision was 'no', is 'bf16'"),
    ],
)
def test_other_values_are_refused(lab, tmp_path, changes, settings, said):
    lab.train([lab.denoise(2)], tmp_path, lab.quiet())
    with pytest.raises(TrainingError, match=said):
        lab.train([lab.denoise(4, **changes)], tmp_path, lab.quiet(**settings), resume=True)


def test_all_differences_are_named_at_once(lab, tmp_path):
    lab.train([lab.denoise(2)], tmp_path, lab.quiet())
    with pytest.raises(TrainingError, match=r"batch_size was 8, is 4; .*seed was 0, is 7"):
        lab.train([lab.denoise(2, batch_size=4)], tmp_path, lab.quiet(seed=7), resume=True)


def test_steps_may_grow_and_saving_and_logging_may_change(lab, tmp_path):
    whole = lab.weights(lab.train([lab.denoise(12)], tmp_path / "a", lab.quiet()))
    lab.train([lab.denoise(7)], tmp_path / "b", lab.quiet())
    grown = lab.train([lab.denoise(12)], tmp_path / "b", lab.quiet(save_every=2, log_every=1), resume=True)
    lab.assert_same(lab.weights(grown), whole)
    assert [r["step"] for r in lab.lines(tmp_path / "b")] == [7, 8, 9, 10, 11, 12]


def test_steps_may_not_shrink(lab, tmp_path):
    lab.train([lab.denoise(7)], tmp_path, lab.quiet())
    with pytest.raises(TrainingError, match="already taken 7 steps and 3 were asked for"):
        lab.train([lab.denoise(3)], tmp_path, lab.quiet(), resume=True)


def test_a_phase_that_others_are_built_on_may_not_grow(lab, tmp_path):
    lab.train([lab.denoise(3, "first"), lab.denoise(3, "second")], tmp_path, lab.quiet())
    with pytest.raises(TrainingError, match="second is built on it"):
        lab.train([lab.denoise(4, "first"), lab.denoise(3, "second")], tmp_path, lab.quiet(), resume=True)


def test_another_network_is_refused(lab, tmp_path):
    def build():
        net = torch.nn.Sequential(torch.nn.Linear(4, 4))
        return Phase("denoise", lab.Denoise(net), lab.rows(), 4, 8, Optim(lr=1e-2, warmup=3), ema=EMA(0.99))

    lab.train([lab.denoise(2)], tmp_path, lab.quiet())
    with pytest.raises(TrainingError, match=r"written for other modules: .*net\.0\.bias: saved nothing, built"):
        lab.train([("denoise", build)], tmp_path, lab.quiet(), resume=True)


def test_metrics_that_went_missing_do_not_stop_a_run(lab, tmp_path):
    lab.train([lab.denoise(5)], tmp_path, lab.quiet())
    (tmp_path / "metrics.jsonl").unlink()
    lab.train([lab.denoise(9)], tmp_path, lab.quiet(log_every=3), resume=True)
    assert [r["step"] for r in lab.lines(tmp_path)] == [6, 9]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(lab, tmp_path, whole):
    out = tmp_path / "cut"
    with pytest.raises(Stop):
        lab.train(two(lab, poison=stop_at(14)), out, lab.quiet(log_every=3))
    folder = out / "checkpoints/second"
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000005", "step-00000010"]
    file = folder / "step-00000010/weights.safetensors"
    changed = bytearray(file.read_bytes())
    changed[-1] ^= 1
    file.write_bytes(changed)
    with pytest.warns(UserWarning, match="skipping a damaged checkpoint: .*step-00000010"):
        results = lab.train(two(lab), out, lab.quiet(log_every=3), resume=True)
    lab.assert_same(lab.weights(results), whole[0])
    assert lab.lines(out) == whole[1]


def test_an_unfinished_save_is_ignored_and_removed(lab, tmp_path, whole):
    out = tmp_path / "cut"
    with pytest.raises(Stop):
        lab.train(two(lab, poison=stop_at(14)), out, lab.quiet(log_every=3))
    folder = out / "checkpoints/second"
    shutil.copytree(folder / "step-00000010", folder / ".step-00000015.tmp")
    (folder / ".step-00000015.tmp/state.json").unlink()
    results = lab.train(two(lab), out, lab.quiet(log_every=3), resume=True)
    lab.assert_same(lab.weights(results), whole[0])
    assert [p.name for p in folder.iterdir()] == ["final"]
