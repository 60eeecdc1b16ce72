import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from latentia.errors import InputError, NonFiniteError, TrainingError, UnknownChoiceError
from latentia.methods.pdiff.checkpoints import Checkpoints
from latentia.methods.pdiff.collect import PRESETS, Trajectory, train_seeds, train_trajectory
from latentia.methods.pdiff.many import Fit, batch_rows, epoch_order
from latentia.methods.pdiff.networks import build, norm_layers
from latentia.methods.pdiff.tasks import digits_task

RESNET = partial(build, "resnet", width=4, blocks=(1, 1))
MLP = partial(build, "mlp3")
QUICK = Trajectory(Fit("adamw", 1e-2, 2, 16), Fit("adamw", 1e-2, 1, 16, schedule="constant"))


@pytest.fixture(scope="module")
def data():
    return digits_task(train=64).fit


class Stop(Exception):
    pass


def stop_after(count):
    def progress(done, total):
        if done >= count:
            raise Stop

    return progress


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("make", [MLP, partial(build, "convnet3", width=4), RESNET])
def test_many_at_once_equal_a_loop(make, optimizer, data):
    fit = Fit(optimizer, lr=1e-2, epochs=2, batch_size=16)
    together = train_seeds(make, data, seeds=3, fit=fit)
    loop = train_seeds(make, data, seeds=3, fit=fit, vectorised=False)
    assert torch.allclose(together.vectors, loop.vectors, atol=1e-4, rtol=0)
    assert together.own.keys() == loop.own.keys()
    for name, stacked in together.own.items():  # BatchNorm statistics, each network's own
        assert torch.allclose(stacked.float(), loop.own[name].float(), atol=1e-4, rtol=0), name
    moved = (together.vectors[0] - together.layout.flatten(make())).abs().max()
    assert moved > 1e-2


def test_batch_norm_statistics_are_tracked_per_network(data):
    checkpoints = train_seeds(RESNET, data, "*", seeds=2, fit=Fit(epochs=1, batch_size=16))
    means = checkpoints.own["bn1.running_mean"]
    assert means.shape == (2, 4)
    assert not torch.equal(means[0], means[1])
    assert checkpoints.own["bn1.num_batches_tracked"].tolist() == [4, 4]
    network = RESNET()
    network.load_state_dict(checkpoints.state_dict(1))
    assert torch.equal(network.bn1.running_mean, means[1])


def test_a_network_does_not_depend_on_the_others(data):
    fit = Fit(epochs=1, batch_size=16)
    many = train_seeds(MLP, data, seeds=[4, 5, 6], fit=fit, chunk=2)
    alone = train_seeds(MLP, data, seeds=[6], fit=fit)
    assert torch.allclose(many.vectors[2], alone.vectors[0], atol=1e-6)


def test_selected_parameters_are_rows_and_the_rest_is_own(data):
    checkpoints = train_seeds(MLP, data, "linear3", seeds=2, fit=Fit(epochs=1, batch_size=16))
    assert checkpoints.vectors.shape == (2, 260)
    assert checkpoints.own["linear1.weight"].shape == (2, 50, 64)
    whole = train_seeds(MLP, data, "*", seeds=2, fit=Fit(epochs=1, batch_size=16))
    assert all(torch.equal(checkpoints.state_dict(1)[n], t) for n, t in whole.state_dict(1).items())


def test_one_initialisation_for_all(data):
    start = train_seeds(MLP, data, seeds=3, fit=Fit(epochs=0), init_seed=9).vectors
    assert torch.equal(start[0], start[2])
    moved = train_seeds(MLP, data, seeds=3, fit=Fit(epochs=1, batch_size=16), init_seed=9).vectors
    assert not torch.equal(moved[0], moved[2])


def test_tied_weights_train_as_one(data):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(64, 64)
            self.b = nn.Linear(64, 64, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x.flatten(1)))[:, :10]

    together, loop = (train_seeds(Tied, data, seeds=2, fit=Fit(epochs=1), vectorised=v) for v in (True, False))
    assert together.layout.size == 64 * 64 + 64
    assert torch.allclose(together.vectors, loop.vectors, atol=1e-5)


def test_an_interrupted_collection_from_seeds_goes_on_exactly(data, tmp_path):
    run = partial(train_seeds, RESNET, data, seeds=4, fit=Fit(epochs=1, batch_size=16), chunk=2)
    whole = run()
    with pytest.raises(Stop):
        run(folder=tmp_path, progress=stop_after(2))
    part = tmp_path / "unfinished" / "part-00000.safetensors"
    written = part.stat().st_mtime_ns
    with pytest.raises(Stop):
        run(folder=tmp_path, progress=stop_after(3))
    assert part.stat().st_mtime_ns == written
    again = run(folder=tmp_path)
    assert torch.equal(again.vectors, whole.vectors)
    assert all(torch.equal(again.own[name], tensor) for name, tensor in whole.own.items())
    assert not (tmp_path / "unfinished").exists()
    assert torch.equal(Checkpoints.load(tmp_path).vectors, whole.vectors)
    assert torch.equal(run(folder=tmp_path, progress=stop_after(0)).vectors, whole.vectors)  # only read


@pytest.mark.parametrize(
    "settings", [QUICK, replace(QUICK, main=Fit("sgd", 0.05, 2, 16), collect=Fit("sgd", 0.05, 1, 16))]
)
@pytest.mark.parametrize("stopped", [3, 8, 11])
def test_an_interrupted_trajectory_goes_on_exactly(data, tmp_path, settings, stopped):
    run = partial(train_trajectory, RESNET, data, "layer2", 6, settings)
    whole = run()  # 8 main steps, 6 to collect
    with pytest.raises(Stop):
        run(folder=tmp_path, save_every=1, progress=stop_after(stopped))
    again = run(folder=tmp_path, save_every=5)
    assert torch.equal(again.vectors, whole.vectors)
    assert all(torch.equal(again.base[name], tensor) for name, tensor in whole.base.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints.safetensors", "layout.json", "meta.json"]


def test_another_run_in_the_same_folder_is_refused(data, tmp_path):
    run = partial(train_trajectory, MLP, data, "linear3", folder=tmp_path)
    with pytest.raises(Stop):
        run(2, QUICK, progress=stop_after(1))
    with pytest.raises(TrainingError, match=r"collected otherwise .K = 2 there, 3 here"):
        run(3, QUICK)
    run(2, QUICK)
    with pytest.raises(TrainingError, match="seed = 0 there, 1 here"):
        run(2, QUICK, seed=1)
    with pytest.raises(TrainingError, match="data"):
        train_trajectory(MLP, (data[0] + 1, data[1]), "linear3", 2, QUICK, folder=tmp_path)


def test_only_the_selected_parameters_move(data):
    checkpoints = train_trajectory(RESNET, data, norm_layers(RESNET())[-2:], 5, QUICK)
    assert checkpoints.vectors.shape == (5, 32)
    assert all((a - b).abs().max() > 0 for a, b in zip(checkpoints.vectors, checkpoints.vectors[1:]))
    assert not torch.equal(checkpoints.layout.flatten(checkpoints.base), checkpoints.vectors[0])  # the base is before
    longer = train_trajectory(RESNET, data, norm_layers(RESNET())[-2:], 9, QUICK)
    assert all(torch.equal(longer.base[name], tensor) for name, tensor in checkpoints.base.items())
    assert torch.equal(longer.vectors[:5], checkpoints.vectors)


def test_skip_and_every(data):
    dense = train_trajectory(MLP, data, "linear3", 7, QUICK)
    sparse = train_trajectory(MLP, data, "linear3", 3, replace(QUICK, skip=2, every=2))
    assert torch.equal(sparse.vectors, dense.vectors[[2, 4, 6]])


def test_modes_of_batch_norm_differ_and_leave_the_base_alone(data):
    train, evaluation = (
        train_trajectory(RESNET, data, "layer2", 3, replace(QUICK, batch_norm=mode)) for mode in ("train", "eval")
    )
    assert torch.equal(train.base["bn1.running_mean"], evaluation.base["bn1.running_mean"])
    assert not torch.equal(train.vectors, evaluation.vectors)
    assert train.state_dict(2)["bn1.running_mean"].equal(train.base["bn1.running_mean"])


def test_a_trajectory_against_plain_torch(data):
    settings = Trajectory(Fit(epochs=0), Fit("sgd", 0.1, 1, 16, weight_decay=0.01, momentum=0.9, schedule="constant"))
    checkpoints = train_trajectory(MLP, data, "linear3", 3, settings, seed=4)
    network = MLP()
    network.load_state_dict(checkpoints.base)
    velocity = {name: torch.zeros_like(p) for name, p in network.linear3.named_parameters()}
    from latentia.core.rng import derive_seed

    for step in range(3):
        rows = batch_rows(derive_seed("trajectory", 4, 1), step, 64, 16)
        network.zero_grad()
        torch.nn.functional.cross_entropy(network(data[0][rows]), data[1][rows]).backward()
        with torch.no_grad():
            for name, p in network.linear3.named_parameters():
                velocity[name] = 0.9 * velocity[name] + p.grad + 0.01 * p
                p -= 0.1 * velocity[name]
        assert torch.allclose(checkpoints.layout.flatten(network), checkpoints.vectors[step], atol=1e-6)


def test_presets_are_the_editions():
    sgd, adamw = PRESETS["sgd"], PRESETS["adamw"]
    assert (sgd.main.optimizer, sgd.main.lr, sgd.main.epochs, sgd.main.batch_size) == ("sgd", 0.1, 30, 64)
    assert sgd.main.rate(29, 30) == pytest.approx(1e-3)
    assert sgd.main.rate(30, 30) == pytest.approx(sgd.collect.lr)  # the residual rate
    assert (adamw.collect.optimizer, adamw.collect.lr, adamw.collect.schedule, adamw.skip) == (
        "adamw",
        0.03,
        "constant",
        1,
    )
    assert adamw.main.rate(0, 10) == 5e-4
    assert adamw.main.rate(5, 10) == pytest.approx(2.5e-4)


def test_order_is_a_permutation_of_seed_and_epoch():
    assert epoch_order(1, 0, 50).sort().values.tolist() == list(range(50))
    assert not torch.equal(epoch_order(1, 0, 50), epoch_order(1, 1, 50))
    rows = torch.cat([batch_rows(3, step, 50, 16) for step in range(3, 6)])
    assert torch.equal(rows, epoch_order(3, 1, 50)[:48])
    assert len(batch_rows(3, 1, 10, 16)) == 10  # fewer images than the batch


def test_one_checkpoint_and_one_seed(data):
    assert train_trajectory(MLP, data, "linear3", 1, QUICK).vectors.shape == (1, 260)
    assert len(train_seeds(MLP, data, seeds=1, fit=Fit(epochs=1))) == 1


def test_divergence_names_the_seed(data):
    wild = Fit("sgd", lr=1e20, epochs=2, batch_size=16)
    with pytest.raises(NonFiniteError, match="network of seed 7 diverged"):
        train_seeds(MLP, data, seeds=[7], fit=wild)
    with pytest.raises(NonFiniteError, match="NaN or infinity in"):
        train_trajectory(MLP, data, "*", 8, replace(QUICK, collect=replace(wild, schedule="constant")))


def test_bad_input(data):
    x, y = data
    with pytest.raises(InputError, match="labels"):
        train_seeds(MLP, (x, y.float()))
    with pytest.raises(NonFiniteError, match="images hold a NaN"):
        train_seeds(MLP, (x * torch.nan, y))
    with pytest.raises(InputError, match="each once"):
        train_seeds(MLP, data, seeds=[1, 1])
    with pytest.raises(InputError, match="matches none"):
        train_trajectory(MLP, data, "conv1", 2, QUICK)
    with pytest.raises(UnknownChoiceError, match="preset"):
        train_trajectory(MLP, data, "*", 2, "sdg")
    with pytest.raises(InputError, match="K must be"):
        train_trajectory(MLP, data, "*", 0, QUICK)
    for values in ({"optimizer": "adam"}, {"lr": 0.0}, {"schedule": "linear"}, {"batch_size": 0}):
        with pytest.raises(InputError):
            Fit(**values)
    with pytest.raises(UnknownChoiceError, match="batch_norm"):
        replace(QUICK, batch_norm="frozen")


def test_the_callers_generator_is_left_alone(data):
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    train_seeds(MLP, data, seeds=2, fit=Fit(epochs=1))
    train_trajectory(MLP, data, "linear3", 2, QUICK)
    assert torch.equal(torch.randn(2), expected)


def test_dropout_goes_on_exactly_and_differs_between_networks(data, tmp_path):
    def make():
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))

    run = partial(train_trajectory, make, data, "2", 4, QUICK)
    with pytest.raises(Stop):
        run(folder=tmp_path / "a", save_every=1, progress=stop_after(5))
    assert torch.equal(run(folder=tmp_path / "a").vectors, run().vectors)
    pair = partial(train_seeds, make, data, seeds=3, fit=Fit(epochs=1), chunk=2, init_seed=0)
    assert torch.equal(pair().vectors, pair().vectors)


def test_another_loss(data):
    def smooth(logits, y):
        return nn.functional.cross_entropy(logits, y, label_smoothing=0.2)

    run = partial(train_seeds, MLP, data, seeds=2, fit=Fit(epochs=1))
    assert torch.allclose(run(loss=smooth).vectors, run(loss=smooth, vectorised=False).vectors, atol=1e-4)
    assert not torch.equal(run(loss=smooth).vectors, run().vectors)
    assert run(loss=smooth).meta["loss"].endswith("smooth")


def test_what_is_written_is_plain(data, tmp_path):
    train_seeds(MLP, data, seeds=2, fit=Fit(epochs=0), folder=tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert meta["kind"] == "seeds"
    assert meta["fit"]["optimizer"] == "adamw"
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors", ".json"}


def test_the_task_has_three_parts_that_do_not_meet():
    task = digits_task(train=600, noise=0.0)
    assert [len(part[1]) for part in (task.fit, task.select, task.test)] == [600, 657, 540]
    noisy = digits_task(train=600, noise=0.3)
    assert (noisy.fit[0] - task.fit[0]).std() == pytest.approx(0.3, abs=0.005)
    assert torch.equal(noisy.fit[1], task.fit[1])
    with pytest.raises(InputError, match="at most 1256"):
        digits_task(train=1257)
