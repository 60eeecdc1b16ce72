import math
import os
import signal

import pytest
import torch
from PIL import Image

from latentia.errors import InputError, NonFiniteError, TrainingError, UnknownChoiceError
from latentia.training.phase import EMA, Optim, Phase
from latentia.training.settings import Settings


def test_it_learns(lab, tmp_path):
    lab.train([lab.denoise(120, data=lab.rows(64))], tmp_path, lab.quiet(log_every=20, save_every=500))
    losses = [r["loss"] for r in lab.lines(tmp_path)]
    assert losses[0] > 0.27
    assert losses[-1] < 0.9 * losses[0]


def test_a_log_line_says_everything(lab, tmp_path):
    lab.train([lab.denoise(6)], tmp_path, lab.quiet(log_every=4))
    first, last = lab.lines(tmp_path)
    assert first.keys() == {"phase", "step", "samples", "loss", "mse", "lr", "grad_norm", "ema_decay"}
    assert (first["step"], first["samples"], last["step"], last["samples"]) == (4, 32, 6, 48)
    assert first["lr"] == 0.01
    assert first["ema_decay"] == pytest.approx(4 / 13)
    assert first["mse"] == first["loss"]


def test_a_log_line_is_the_mean_since_the_last_one(lab, tmp_path):
    lab.train([lab.denoise(4)], tmp_path / "a", lab.quiet(log_every=1))
    lab.train([lab.denoise(4)], tmp_path / "b", lab.quiet(log_every=4))
    every = [r["loss"] for r in lab.lines(tmp_path / "a")]
    (mean,) = (r["loss"] for r in lab.lines(tmp_path / "b"))
    assert mean == pytest.approx(sum(every) / 4, rel=1e-6)


def test_same_seed_same_weights_whatever_the_global_generator(lab, tmp_path):
    torch.manual_seed(1)
    a = lab.weights(lab.train([lab.denoise(3)], tmp_path / "a", lab.quiet()))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    b = lab.weights(lab.train([lab.denoise(3)], tmp_path / "b", lab.quiet()))
    assert torch.equal(torch.get_rng_state(), state)
    lab.assert_same(a, b)
    c = lab.weights(lab.train([lab.denoise(3)], tmp_path / "c", lab.quiet(seed=1)))
    assert not torch.equal(a["denoise.raw.net.first.weight"], c["denoise.raw.net.first.weight"])


def test_modules_hold_raw_weights_and_the_average_is_another(lab, tmp_path):
    result = lab.train([lab.denoise(10, ema=EMA(0.99))], tmp_path, lab.quiet())["denoise"]
    net = result.modules["net"]
    assert not net.training
    assert result.averaged["net"].keys() == net.state_dict().keys()
    assert not torch.equal(result.averaged["net"]["first.weight"], net.first.weight)
    assert torch.equal(result.averaged["net"]["norm.running_mean"], net.norm.running_mean)  # buffers are carried along
    net.load_state_dict(result.averaged["net"])


def test_accumulated_batches_are_one_batch(lab, tmp_path):
    """Without noise, dropout and batch norm the gradient of a batch is the mean of its parts' gradients."""

    class Plain(lab.Denoise):
        def forward(self, batch, turn="main", step=0):
            out = super().forward.__globals__["Loss"]
            total = (self.net(batch["x"]) - 1).square().mean()
            return out(total, {})

    def build(accumulate):
        return lambda: Phase(
            "p", Plain(torch.nn.Linear(4, 4)), lab.rows(), 5, 8, Optim(lr=1e-2, clip=0.1), accumulate=accumulate
        )

    a = lab.weights(lab.train([("p", build(1))], tmp_path / "a", lab.quiet()))
    b = lab.weights(lab.train([("p", build(4))], tmp_path / "b", lab.quiet()))
    for name in a:
        assert torch.allclose(a[name], b[name], atol=1e-6)
    assert lab.lines(tmp_path / "a")[0]["loss"] == pytest.approx(lab.lines(tmp_path / "b")[0]["loss"], rel=1e-5)


def test_turns_have_optimizers_of_their_own(lab, tmp_path):
    optim = {"generator": Optim(lr=1e-2), "discriminator": Optim(lr=1e-9)}
    start = lab.Duel()

    def build():
        return Phase("duel", start, lab.rows(), 5, 8, optim, ema=EMA(0.9))

    before = {k: v.clone() for k, v in start.state_dict().items()}
    lab.train([("duel", build)], tmp_path, lab.quiet())
    after = start.state_dict()
    assert (after["generator.weight"] - before["generator.weight"]).abs().max() > 1e-2
    assert (after["critic.weight"] - before["critic.weight"]).abs().max() < 1e-7
    assert all(p.requires_grad for p in start.parameters())
    (line,) = lab.lines(tmp_path)
    assert line["generator/lr"] == 1e-2
    assert line["discriminator/adversarial"] == pytest.approx(line["discriminator/loss"])
    with pytest.raises(InputError, match="no optim for turn 'discriminator'"):
        Phase("duel", start, lab.rows(), 5, 8, {"generator": Optim()})


def test_frozen_children_are_used_but_not_trained(lab, tmp_path):
    class Guided(lab.Denoise):
        frozen = ("teacher",)

        def __init__(self):
            super().__init__()
            self.teacher = torch.nn.BatchNorm1d(4)

        def forward(self, batch, turn="main", step=0):
            assert not self.teacher.training
            return super().forward({"x": self.teacher(batch["x"])})

    result = lab.train([("p", lambda: Phase("p", Guided(), lab.rows(), 2, 8))], tmp_path, lab.quiet())["p"]
    assert list(result.modules) == ["net"]
    assert result.objective.teacher.weight.tolist() == [1, 1, 1, 1]
    assert not result.objective.teacher.weight.requires_grad


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_loss_stops_before_the_step(lab, tmp_path, value):
    seen = {}

    def poison(step, total):
        if step == 13:
            return total * value
        return total

    name, build = lab.denoise(20, poison=poison)

    def remember():
        phase = build()
        seen["net"] = phase.objective.net
        return phase

    with pytest.raises(NonFiniteError, match=rf"phase 'denoise', step 14, turn 'main': mse is {value}.*step-00000010"):
        lab.train([(name, remember)], tmp_path, lab.quiet())
    assert all(torch.isfinite(p).all() for p in seen["net"].parameters())
    good = lab.weights(lab.train([lab.denoise(20)], tmp_path, lab.quiet(), resume=True))
    whole = lab.weights(lab.train([lab.denoise(20)], tmp_path / "whole", lab.quiet()))
    lab.assert_same(good, whole)


def test_a_bad_gradient_stops_before_the_step(lab, tmp_path):
    def poison(step, total):
        return total + (total - total.detach()).abs().sqrt()  # finite, but its slope at 0 is not

    with pytest.raises(NonFiniteError, match=r"step 1, turn 'main': gradient norm is nan.*no checkpoint had been"):
        lab.train([lab.denoise(20, poison=poison)], tmp_path, lab.quiet())


def test_weights_that_blew_up_are_not_saved(lab, tmp_path):
    with pytest.raises(NonFiniteError, match=r"after step 1 the weights net\..* are not finite"):
        lab.train([lab.denoise(20, optim=Optim(lr=1e38, weight_decay=1e38))], tmp_path, lab.quiet(save_every=1))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_first(lab, tmp_path, number):
    def poison(step, total):
        if step == 6:
            os.kill(os.getpid(), number)
        return total

    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 7 of phase 'denoise'.*--resume"):
        lab.train([lab.denoise(20, poison=poison)], tmp_path / "a", lab.quiet())
    assert signal.getsignal(number) is handler
    assert (tmp_path / "a/checkpoints/denoise/step-00000007").is_dir()
    resumed = lab.weights(lab.train([lab.denoise(20)], tmp_path / "a", lab.quiet(), resume=True))
    lab.assert_same(resumed, lab.weights(lab.train([lab.denoise(20)], tmp_path / "b", lab.quiet())))
    assert lab.lines(tmp_path / "a") == lab.lines(tmp_path / "b")


def test_asked_to_stop_at_the_last_step_it_does_not_start_the_next_phase(lab, tmp_path):
    def poison(step, total):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return total

    with pytest.raises(KeyboardInterrupt):
        lab.train([lab.denoise(3, "a", poison=poison), ("b", lambda: 1 / 0)], tmp_path, lab.quiet())
    assert (tmp_path / "checkpoints/a/final").is_dir()


def test_a_second_ctrl_c_stops_at_once(lab, tmp_path):
    def poison(step, total):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return total

    with pytest.raises(KeyboardInterrupt):
        lab.train([lab.denoise(3, poison=poison)], tmp_path, lab.quiet())
    assert not (tmp_path / "checkpoints").exists()


def test_previews_see_averaged_weights_and_leave_no_trace(lab, tmp_path):
    seen = []
    net = lab.Net()

    def preview():
        seen.append((net.training, net.first.weight.detach().clone()))
        torch.rand(3)
        return torch.linspace(-1, 1, 4 * 64).view(4, 1, 8, 8)

    def build(preview):
        net.load_state_dict(start)
        return Phase("p", lab.Denoise(net), lab.rows(), 6, 8, ema=EMA(0.9), preview=preview)

    start = {k: v.clone() for k, v in net.state_dict().items()}
    settings = lab.quiet(preview_every=3)
    with_previews = lab.train([("p", lambda: build(preview))], tmp_path / "a", settings)
    a = lab.weights(with_previews)
    b = lab.weights(lab.train([("p", lambda: build(None))], tmp_path / "b", settings))
    lab.assert_same(a, b)
    assert [training for training, _ in seen] == [False, False]
    assert torch.equal(seen[1][1], a["p.averaged.net.first.weight"])
    assert sorted(p.name for p in (tmp_path / "a/samples").iterdir()) == ["p-00000003.png", "p-00000006.png"]
    with Image.open(tmp_path / "a/samples/p-00000006.png") as picture:
        assert picture.size == (22, 22)


def test_tensorboard_holds_scalars_and_pictures(lab, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = torch.zeros(1, 3, 4, 4)
    phase = lab.denoise(4, preview=lambda: picture)
    lab.train([phase], tmp_path, lab.quiet(tensorboard=True, log_every=2, preview_every=4))
    events = EventAccumulator(str(tmp_path / "tensorboard/denoise")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [2, 4]
    assert events.Scalars("loss")[1].value == pytest.approx(lab.lines(tmp_path)[1]["loss"])
    assert [e.step for e in events.Images("samples")] == [4]


def test_bf16_and_channels_last_train(lab, tmp_path):
    class Conv(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
            self.seen = []

        def forward(self, x):
            y = self.conv(x)
            self.seen.append((y.dtype, x.is_contiguous(memory_format=torch.channels_last)))
            return y

    from latentia.data.dataset import TensorDataset

    data = TensorDataset({"x": torch.linspace(-1, 1, 4 * 3 * 64).view(4, 3, 8, 8)})
    net = Conv()
    settings = lab.quiet(precision="bf16", channels_last=True)
    lab.train([("p", lambda: Phase("p", lab.Denoise(net), data, 2, 4))], tmp_path, settings)
    assert net.seen[-1][0] == torch.bfloat16
    assert net.conv.weight.dtype == torch.float32
    assert net.conv.weight.is_contiguous(memory_format=torch.channels_last)
    plain = torch.nn.Conv2d(3, 3, 3, padding=1)
    plain.load_state_dict({k.removeprefix("conv."): v for k, v in net.state_dict().items()})


def test_prefetching_threads_change_nothing(lab, tmp_path):
    a = lab.weights(lab.train([lab.denoise(9, workers=0)], tmp_path / "a", lab.quiet()))
    b = lab.weights(lab.train([lab.denoise(9, workers=3)], tmp_path / "b", lab.quiet()))
    lab.assert_same(a, b)


def test_a_later_builder_sees_what_an_earlier_phase_trained(lab, tmp_path):
    nets = {}

    def first():
        nets["first"] = lab.Net()
        return Phase("first", lab.Denoise(nets["first"]), lab.rows(), 5, 8)

    def second():
        nets["seen"] = nets["first"].first.weight.detach().clone()
        return Phase("second", lab.Denoise(), lab.rows(), 2, 8)

    results = lab.train([("first", first), ("second", second)], tmp_path, lab.quiet())
    assert torch.equal(nets["seen"], results["first"].modules["net"].first.weight)
    again = lab.train([("first", first), ("second", second)], tmp_path, lab.quiet(), resume=True)
    assert torch.equal(nets["seen"], results["first"].modules["net"].first.weight)
    lab.assert_same(lab.weights(again), lab.weights(results))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be an integer of at least 1, got 2.5"),
        ({"batch_size": -1}, "batch_size must be"),
        ({"accumulate": 0}, "accumulate must be"),
        ({"workers": -1}, "workers must be"),
        ({"name": "a/b"}, "plain file name"),
    ],
)
def test_impossible_phases(lab, changes, said):
    given = {"name": "p", "steps": 2, "batch_size": 4, **changes}
    with pytest.raises(InputError, match=said):
        Phase(objective=lab.Denoise(), data=lab.rows(), **given)


def test_an_empty_dataset_is_refused_and_a_small_one_is_not(lab, tmp_path):
    class Empty:
        def __len__(self):
            return 0

        def batch(self, indices):
            raise AssertionError

    with pytest.raises(InputError, match="empty dataset"):
        Phase("p", lab.Denoise(), Empty(), 2, 4)
    assert lab.train([lab.denoise(3, data=lab.rows(3))], tmp_path, lab.quiet())["denoise"].samples == 24


def test_a_batch_that_does_not_divide(lab, tmp_path):
    with pytest.raises(InputError, match="batch_size 8 is not divisible by 1 processes × 3"):
        lab.train([lab.denoise(3, accumulate=3)], tmp_path, lab.quiet())


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"precision": "half"}, UnknownChoiceError, "unknown precision 'half'"),
        ({"device": "cdua"}, UnknownChoiceError, "did you mean 'cuda'"),
        ({"save_every": 0}, InputError, "save_every must be"),
        ({"seed": -1}, InputError, "seed must be"),
        ({"preview_every": -1}, InputError, "preview_every must be"),
    ],
)
def test_impossible_settings(changes, error, said):
    with pytest.raises(error, match=said):
        Settings(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"optimizer": "sgd"}, "known: adam, adamw"),
        ({"lr": 0}, "lr must be positive"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"clip": 0}, "clip must be positive"),
        ({"final_lr": 2}, "fraction"),
        ({"warmup": -1}, "warmup must be"),
    ],
)
def test_impossible_optimizers(changes, said):
    with pytest.raises(InputError, match=said):
        Optim(**changes)


def test_impossible_averages():
    with pytest.raises(InputError, match="min_decay <= decay"):
        EMA(decay=0.5, min_decay=0.9)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"precision": "fp16"}, "'fp16' needs a GPU"), ({"fsdp": True}, "there is one: start with torchrun")],
)
def test_what_this_machine_cannot_do(lab, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        lab.train([lab.denoise(3)], tmp_path / "new", lab.quiet(**changes))
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(lab, tmp_path):
    with pytest.raises(InputError, match="'cuda' is not available here: use 'cpu' or 'auto'"):
        lab.train([lab.denoise(3)], tmp_path, lab.quiet(device="cuda"))


def test_names_of_phases(lab, tmp_path):
    with pytest.raises(InputError, match="names that differ"):
        lab.train([lab.denoise(3), lab.denoise(3)], tmp_path, lab.quiet())
    with pytest.raises(InputError, match="names that differ"):
        lab.train([], tmp_path, lab.quiet())
    with pytest.raises(InputError, match="builder of phase 'x' returned one called 'denoise'"):
        lab.train([("x", lab.denoise(3)[1])], tmp_path, lab.quiet())


def test_half_precision_weights_under_autocast_are_refused(lab, tmp_path):
    def build():
        return Phase("p", lab.Denoise(lab.Net().bfloat16()), lab.rows(), 2, 4)

    with pytest.raises(TrainingError, match="train float32 weights"):
        lab.train([("p", build)], tmp_path, lab.quiet(precision="bf16"))


def test_nothing_to_train(lab, tmp_path):
    def build():
        return Phase("p", lab.Denoise(lab.Net().requires_grad_(False)), lab.rows(), 2, 4)

    with pytest.raises(TrainingError, match="no parameter requires a gradient"):
        lab.train([("p", build)], tmp_path, lab.quiet())


def test_compiling_keeps_the_names(lab, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(type(self).__name__))
    result = lab.train([lab.denoise(1)], tmp_path, lab.quiet(compile=True))["denoise"]
    assert compiled == ["Net"]
    assert "first.weight" in result.averaged["net"]


class TestLossScaling:
    """fp16's scaler, driven on the CPU: the arithmetic is the same, only the autocast is missing."""

    @pytest.fixture(autouse=True)
    def _scaler(self, monkeypatch):
        from latentia.training import loop

        start = loop.start_accelerator

        def scaling(settings):
            accelerator = start(settings)
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=4)
            return accelerator

        self.plain = start
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(loop, "start_accelerator", scaling)

    def test_scaled_training_is_plain_training(self, lab, tmp_path):
        from latentia.training import loop

        scaled = lab.weights(lab.train([lab.denoise(10)], tmp_path / "a", lab.quiet()))
        norms = [r["grad_norm"] for r in lab.lines(tmp_path / "a")]
        self.monkeypatch.setattr(loop, "start_accelerator", self.plain)
        plain = lab.weights(lab.train([lab.denoise(10)], tmp_path / "b", lab.quiet()))
        assert norms == pytest.approx([r["grad_norm"] for r in lab.lines(tmp_path / "b")], rel=1e-4)
        for name in plain:
            assert torch.allclose(scaled[name], plain[name], atol=1e-5), name

    def test_an_overflow_skips_the_step_and_lowers_the_scale(self, lab, tmp_path):
        from latentia.training.checkpoint import read_checkpoint

        def overflow(step, total):
            return total + (total - total.detach()) * 1e38 if step == 1 else total

        lab.train([lab.denoise(2, poison=overflow)], tmp_path, lab.quiet())
        found = read_checkpoint(tmp_path / "checkpoints/denoise/final")
        assert found.state["scaler"]["scale"] == 2.0**7
        assert float(found.files["optimizer"]["main.net.first.weight.step"]) == 1

    def test_the_scale_is_resumed(self, lab, tmp_path):
        def stop(step, total):
            if step == 6:
                raise RuntimeError("stop")
            return total

        whole = lab.weights(lab.train([lab.denoise(12)], tmp_path / "a", lab.quiet()))
        with pytest.raises(RuntimeError, match="stop"):
            lab.train([lab.denoise(12, poison=stop)], tmp_path / "b", lab.quiet())
        lab.assert_same(lab.weights(lab.train([lab.denoise(12)], tmp_path / "b", lab.quiet(), resume=True)), whole)

    def test_gradients_that_always_overflow_stop_the_run(self, lab, tmp_path):
        def overflow(step, total):
            return total + (total - total.detach()).abs().sqrt()

        with pytest.raises(NonFiniteError, match=r"step 23, .*gradient norm is nan"):  # 2⁸ halved 22 times < 1e-4
            lab.train([lab.denoise(60, poison=overflow)], tmp_path, lab.quiet(save_every=100))
