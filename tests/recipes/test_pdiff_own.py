"""`pdiff` on a user's module: every source of checkpoints, what is judged with and without data, and bad input."""

import json
import threading
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model

from latentia.errors import ArtifactError, InputError, NonFiniteError, TrainingError
from latentia.methods.pdiff.checkpoints import Checkpoints
from latentia.methods.pdiff.protocol import GENERATED, ORIGINALS
from latentia.recipes.overrides import override
from latentia.recipes.parameters import open_parameters, write_networks
from latentia.recipes.pdiff_own import NOMINAL, OwnNetworks, pdiff
from latentia.recipes.run import run_recipe, start_or_saved
from own_networks import Tagger, data, train

TINY = (
    "steps=2", "batch_size=4", "codec.steps=2", "codec.batch_size=4", "unet.channels=8,", "samples=3",
    "sampling_steps=3", "device=cpu", "count=5", "training.main.epochs=1", "training.skip=0", "training.every=1",
    "log_every=1",
)  # fmt: skip
SIZE = 6 * 8 + 8 + 2 * 8 + 8 * 8 + 2 * 8 + 8 * 3 + 3


def own(*more: str) -> OwnNetworks:
    return override(pdiff(), [*TINY, "module=own_networks:build", *more])


def states(count=5, seed=0):
    network = Tagger()
    for _, state in zip(range(count), train(seed)):
        network.load_state_dict(state)
        yield network


@pytest.fixture
def folder(tmp_path):
    """Files as a newcomer writes them: tied tensors once in safetensors."""
    path = tmp_path / "folder"
    path.mkdir()
    for i, network in enumerate(states()):
        save_model(network, str(path / f"step{i}.safetensors"))
    return path


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    out = tmp_path_factory.mktemp("own") / "run"
    run_recipe(own("trainer=own_networks:train", "data=own_networks:data"), out, progress=False)
    return out, json.loads((out / "report.json").read_text())


def test_a_trainer_s_networks_are_imitated_and_judged_on_data(judged):
    out, report = judged
    assert report["originals"]["count"] == 5
    assert report["originals"]["parameters"] == SIZE
    (run,) = report["data"]["summary"]["runs"]
    assert run["images"] + run["select_images"] == 60
    assert len(run["populations"]) == 9
    page = (out / "report.html").read_text()
    assert report["data"]["summary"]["overall"] in page.replace("&#x27;", "'")
    assert "fewer than a batch" not in page


def test_generated_networks_load_into_the_plain_module(judged, tmp_path):
    files = write_networks(open_parameters(judged[0], device="cpu"), 2, tmp_path / "nets", steps=3)
    network = Tagger()
    network.load_state_dict(load_file(files[1]))
    assert network.b.weight is network.a.weight
    assert network.version == 3
    assert torch.isfinite(network.eval()(torch.zeros(2, 6))).all()


def test_without_data_only_distances_are_told(folder, tmp_path):
    run_recipe(own(f"checkpoints={folder}"), tmp_path / "run", progress=False)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["data"] is None
    assert all(each["scored"] is None for each in report["weights"]["populations"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "nothing here says whether a generated network works" in page
    by_name = {each["name"]: each for each in report["weights"]["populations"]}
    v = Checkpoints.from_folder(folder, "*", Tagger()).vectors
    distances = torch.cdist(v.double(), v.double()) + torch.eye(5) * 1e9
    assert by_name[ORIGINALS]["nearest"] == pytest.approx(float(distances.amin(1).mean()), rel=1e-4)
    assert by_name["matched noise"]["nearest"] == pytest.approx(by_name[GENERATED]["nearest"], rel=0.02)


def test_a_score_judges(folder, tmp_path):
    recipe = own(f"checkpoints={folder}", "score=own_networks:score")
    run_recipe(recipe, tmp_path / "run", progress=False)
    weights = json.loads((tmp_path / "run" / "report.json").read_text())["weights"]
    by_name = {each["name"]: each for each in weights["populations"]}
    x, y = data()
    right = [float((network.eval()(x).argmax(1) == y).float().mean()) for network in states()]
    assert by_name[ORIGINALS]["best"] == pytest.approx(max(right))
    assert by_name[ORIGINALS]["mean"] == pytest.approx(sum(right) / 5)
    assert by_name[GENERATED]["scored"] == 3
    assert any("mean score" in line for line in weights["sentences"])


def test_data_alone_train_the_network(tmp_path):
    recipe = own("data=own_networks:data", "patterns=head,norm")
    recipe.check()
    found = recipe.collect(tmp_path / "originals")
    assert found.vectors.shape == (5, 2 * 8 + 8 * 3 + 3)
    assert torch.equal(recipe.collect(tmp_path / "originals").vectors, found.vectors)
    regress = own("data=own_networks:floats", "loss=own_networks:squared", "patterns=head")
    regress.check()
    assert regress.collect(None).vectors.shape == (5, 27)


def test_files_with_and_without_ties_are_the_same_networks(folder, tmp_path):
    for kind, save in (
        ("pt", lambda state, path: torch.save(state, path)),
        ("safetensors", lambda state, path: save_file({n: t.clone() for n, t in state.items()}, path)),
    ):
        (tmp_path / kind).mkdir()
        for i, network in enumerate(states()):
            save(network.state_dict(), tmp_path / kind / f"step{i}.{kind}")
        other = Checkpoints.from_folder(tmp_path / kind, "*", Tagger())
        mine = Checkpoints.from_folder(folder, "*", Tagger())
        assert other.layout == mine.layout
        assert other.layout.ties == {"b.weight": "a.weight"}
        assert torch.equal(other.vectors, mine.vectors)
        state = mine.state_dict(2)
        assert state["b.weight"] is state["a.weight"]


def test_half_precision_comes_back_as_it_was(tmp_path):
    for i, network in enumerate(states(3)):
        torch.save(network.to(torch.bfloat16).state_dict(), tmp_path / f"{i}.pt")
    found = Checkpoints.from_folder(tmp_path, "*", Tagger())
    assert found.vectors.dtype == torch.float32
    assert found.state_dict(1)["head.weight"].dtype == torch.bfloat16
    assert torch.equal(found.state_dict(1)["head.weight"], torch.load(tmp_path / "1.pt")["head.weight"])


@pytest.mark.parametrize("count", [1, 2])
def test_few_checkpoints_work(count, tmp_path):
    path = tmp_path / "few"
    path.mkdir()
    for i, network in enumerate(states(count)):
        torch.save(network.state_dict(), path / f"{i}.pt")
    recipe = own(f"checkpoints={path}", "data=own_networks:data")
    run_recipe(recipe, tmp_path / "run", progress=False)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["originals"]["count"] == count
    words = "One checkpoint has no spread" if count == 1 else "fewer than a batch of 4"
    assert words in (tmp_path / "run" / "report.html").read_text()
    made = write_networks(open_parameters(tmp_path / "run", device="cpu"), 1, tmp_path / "nets", steps=3)
    if count == 1:
        torch.testing.assert_close(load_file(made[0]), torch.load(path / "0.pt"), rtol=0, atol=1e-6)


def test_saved_checkpoints_and_runs_are_folders_too(judged, folder):
    out, _ = judged
    assert len(own(f"checkpoints={out}").collect(None)) == 5
    assert len(own(f"checkpoints={out / 'originals'}").collect(None)) == 5
    with pytest.raises(InputError, match=r"patterns select 2: it also holds 'first.weight'"):
        own(f"checkpoints={out}", "patterns=head").check()


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ((), InputError, "say where the networks to imitate come from"),
        (("data=own_networks:narrow",), InputError, r"fails on the first 4 of your data, x \(4, 5\)"),
        (("data=own_networks:floats",), InputError, "cross-entropy wants classes"),
        (("data=own_networks:floats", "trainer=own_networks:train"), InputError, "judging by accuracy wants classes"),
        (("data=own_networks:data", "holdout=0.05"), InputError, "60 samples leave 1 to select"),
        (("trainer=own_networks:trian",), InputError, "did you mean 'train'"),
        (("trainer=own_networks:train", "patterns=haed"), InputError, "nearest: head"),
        (("trainer=own_networks:train", "score=own_networks:words"), InputError, "returned a str"),
        (("trainer=own_networks:train", "score=own_networks:nan_score"), InputError, "NaN or infinity"),
        (("checkpoints=no_such_folder",), ArtifactError, "is not a folder"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(settings, error, words, tmp_path):
    with pytest.raises(error, match=words):
        run_recipe(own(*settings), tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="name what builds your network"):
        run_recipe(pdiff(), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_two_sources_are_one_too_many():
    with pytest.raises(InputError, match="keep one of them"):
        own("trainer=own_networks:train", "checkpoints=folder")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("dies", r"ValueError: lost the disk.*the 3 networks before it are kept: checkpoints=.*stopped"),
        ("diverges", r"network 3 of .*NaN or infinity in 'head.bias'.*the 3 networks before"),
        ("nothing", "yielded nothing"),
        ("one_dict", "returned an OrderedDict: it must yield a state dict for each network"),
        ("listed", "called with 0: TypeError"),
    ],
)
def test_what_a_trainer_gave_before_it_failed_is_kept(name, words, tmp_path):
    with pytest.raises((TrainingError, InputError), match=words):
        own(f"trainer=own_networks:{name}").collect(tmp_path)
    stopped = tmp_path / "stopped"
    assert stopped.exists() == (name in ("dies", "diverges"))
    if stopped.exists():
        assert len(own(f"checkpoints={stopped}").collect(None)) == 3


def test_an_interrupted_trainer_keeps_its_networks(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="the 3 networks before it are kept"):
        own("trainer=own_networks:interrupted").collect(tmp_path)
    assert len(Checkpoints.load(tmp_path / "stopped")) == 3


def damaged(folder, name, change):
    state = load_file(folder / name)
    (folder / name).unlink()
    state = {**state, "b.weight": state["a.weight"].clone()}
    change(state)
    save_file(state, folder / name)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda s: s.pop("head.bias"), InputError, r"step3.* differs from step0.safetensors first at 'head.bias'"),
        (lambda s: s.update({"head.bias": torch.zeros(4)}), InputError, r"step3.* at 'head.bias': \(4,\) against \(3,"),
        (lambda s: s.update({"extra": torch.zeros(4)}), InputError, "first at 'extra', which step0.safetensors lacks"),
        (lambda s: s["a.bias"].fill_(torch.inf), NonFiniteError, r"step3.* has a NaN or infinity in 'a.bias'"),
        (lambda s: s["b.weight"].add_(1), InputError, "step3.* has different values in 'a.weight' and 'b.weight'"),
        (lambda s: s.update({"head.bias": torch.zeros(3).long()}), InputError, "step3.*'head.bias'.*holds torch.int64"),
    ],
)  # fmt: skip
def test_a_file_that_differs_is_named_with_the_place(change, error, words, folder):
    damaged(folder, "step3.safetensors", change)
    with pytest.raises(error, match=words):
        own(f"checkpoints={folder}").check()


def test_a_broken_file_is_named(folder):
    whole = (folder / "step3.safetensors").read_bytes()
    (folder / "step3.safetensors").write_bytes(whole[:-9])
    with pytest.raises(ArtifactError, match=r"step3\.safetensors"):
        own(f"checkpoints={folder}").check()


def test_a_pickle_with_code_is_refused(folder):
    torch.save({"net": Tagger()}, folder / "step4.pt")
    with pytest.raises(ArtifactError, match=r"step4\.pt .* is refused"):
        own(f"checkpoints={folder}").check()


def test_networks_of_another_module_are_refused(folder):
    with pytest.raises(InputError, match=r"step0.safetensors differs from your network first at 'weight' \(2, 2\)"):
        Checkpoints.from_folder(folder, "*", torch.nn.Linear(2, 2))


def test_what_is_not_selected_and_differs_is_warned_of(folder):
    with pytest.warns(UserWarning, match="parameters outside of the selection differ"):
        own(f"checkpoints={folder}", "patterns=head").check()


def test_code_named_in_a_run_s_folder_is_never_followed(judged):
    out, _ = judged
    saved = start_or_saved("pdiff", out, resume=True)
    assert (saved.module, saved.trainer, saved.data) == ("", "", "")
    assert saved.count == 5
    with pytest.raises(InputError, match="with --resume too"):
        run_recipe(saved, out, resume=True, progress=False)
    with pytest.raises(TrainingError, match="data was 'own_networks:data', now ''"):
        run_recipe(own("trainer=own_networks:train"), out, resume=True, progress=False)


def test_the_dry_run_counts_the_parameters():
    rows = own("data=own_networks:data").plan(measure=False).rows
    assert [row.network for row in rows] == ["own_networks:build", "codec", "unet"]
    assert rows[1].input_shape == (SIZE,)
    assert rows[0].samples == 1 * 36 + 5 * 32
    assert own("trainer=own_networks:train").plan(measure=False).rows[0].input_shape == (SIZE,)
    assert pdiff().plan(measure=False).rows[0].input_shape == (NOMINAL,)


def test_numbers_are_names_of_layers():
    assert own("patterns=2").patterns == ("2",)
    assert own("patterns=2.10,0").patterns == ("2.10", "0")
    assert own('patterns=["re:a{1,2}"]').patterns == ("re:a{1,2}",)


def test_of_several_processes_the_first_calls_the_trainer(tmp_path, monkeypatch):
    recipe = own("trainer=own_networks:train")
    made = recipe.collect(None)
    late = threading.Timer(0.2, made.save, [tmp_path])
    late.start()
    monkeypatch.setenv("RANK", "1")
    assert torch.equal(recipe.collect(tmp_path).vectors, made.vectors)
    late.join()


def test_the_same_numbers_again(tmp_path):
    recipe = own("trainer=own_networks:train", "patterns=head")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = [run_recipe(recipe, tmp_path / str(i), progress=False) for i in range(2)]
    one, two = (open_parameters(path, device="cpu")(num_samples=2, seed=0, num_inference_steps=3) for path in found)
    assert torch.equal(one.vectors, two.vectors)
