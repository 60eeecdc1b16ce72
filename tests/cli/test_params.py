"""`latentia params generate` as it is typed: networks in files, loaded into the plain PyTorch network."""

import pytest
import torch
from safetensors.torch import load_file

from latentia.methods.pdiff.networks import ConvNet3

TINY = (
    "steps=2", "batch_size=4", "codec.steps=2", "codec.batch_size=4", "unet.channels=8,", "originals.count=4",
    "originals.main.epochs=1", "originals.skip=0", "task.train=64", "samples=4", "sampling_steps=3", "device=cpu",
    "runs=1", "norms=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from typer.testing import CliRunner

    from latentia.cli.main import app

    out = tmp_path_factory.mktemp("params") / "run"
    result = CliRunner().invoke(app, ["train", "pdiff-digits", *TINY, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def test_networks_load_into_the_plain_network(cli, trained, tmp_path):
    nets = tmp_path / "nets"
    result = cli("params", "generate", trained, "-n", 18, "--out", nets, "--steps", 3)
    assert result.exit_code == 0, result.output
    assert f"saved 18 networks: {nets / '00000.safetensors'} … 00017.safetensors\n" in result.output
    names = [f"{i:05d}.safetensors" for i in range(18)]
    assert [file.name for file in sorted(nets.iterdir())] == [*names, "networks.json"]
    network = ConvNet3()
    network.load_state_dict(load_file(nets / "00017.safetensors"))
    assert torch.isfinite(network(torch.zeros(2, 1, 8, 8))).all()


def test_a_network_depends_on_its_seed_and_number_alone(cli, trained, tmp_path):
    def made(name, *options):
        assert cli("params", "generate", trained / "pipeline", "--out", tmp_path / name, *options).exit_code == 0
        return load_file(tmp_path / name / "00001.safetensors")["linear.weight"]

    few = made("few", "-n", 2, "--steps", 3, "--seed", 5)
    many = made("many", "-n", 5, "--steps", 3, "--seed", 5, "--batch-size", 2)
    torch.testing.assert_close(few, many, rtol=0, atol=1e-6)
    assert not torch.equal(few, made("other", "-n", 2, "--steps", 3, "--seed", 6))
    assert not torch.equal(few, made("ddim", "-n", 2, "--steps", 3, "--seed", 5, "--scheduler", "ddim"))


def test_what_does_not_fit_is_told_in_one_line(cli, trained, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for arguments, words in (
        ((tmp_path / "nothing",), "nothing"),
        ((trained, "--out", file), "is a file"),
        ((trained, "--steps", 1001, "--out", tmp_path / "n"), "1000"),
        ((trained, "--scheduler", "eular"), "euler"),
        ((trained, "--scheduler", "flow"), "does not fit"),
        ((trained, "-n", 0), "--count"),
        ((trained / "originals",), "model_index.json"),
    ):
        result = cli("params", "generate", *arguments)
        assert result.exit_code == 2
        assert words in result.output
    assert not (tmp_path / "n").exists()


def test_a_pipeline_of_pictures_is_refused(cli, run_folder):
    result = cli("params", "generate", run_folder)
    assert result.exit_code == 2
    assert "generates no networks" in result.output


CONDITIONAL = (
    "steps=6", "optim.lr=0.05", "optim.warmup=0", "batch_size=4", "codec.steps=2", "codec.batch_size=4",
    "unet.channels=16,", "unet.layers=1", "ema.decay=0",
    "tasks.kind=pair", "tasks.held_out=2", "tasks.per_task=1", "tasks.fit.epochs=1", "task.train=60", "runs=1",
    "wide=none", "drawn.samples=1", "drawn.steps=2", "device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    from typer.testing import CliRunner

    from latentia.cli.main import app

    out = tmp_path_factory.mktemp("conditional") / "run"
    result = CliRunner().invoke(app, ["train", "pdiff-tasks", *CONDITIONAL, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "--condition 3,7" in result.output
    return out


def test_networks_for_a_condition(cli, conditional, tmp_path):
    def made(name, *options):
        nets = tmp_path / name
        result = cli("params", "generate", conditional, "-n", 2, "--steps", 2, "--out", nets, *options)
        assert result.exit_code == 0, result.output
        return load_file(nets / "00001.safetensors")["trunk.weight"]

    named = made("named", "--condition", "3=-1,7")
    assert torch.equal(named, made("numbers", "--condition", "[0, 0, 0, -1, 0, 0, 0, 1, 0, 0]"))
    assert not torch.equal(named, made("other", "--condition", "3,7=-1"))
    assert not torch.equal(named, made("guided", "--condition", "3=-1,7", "--guidance-scale", 3))


def test_conditions_that_do_not_fit_are_told(cli, conditional, trained, tmp_path):
    nets = tmp_path / "nets"
    assert (
        cli("params", "generate", conditional, "-n", 1, "--steps", 2, "--out", nets, "--condition", "1").exit_code == 0
    )
    for run, arguments, words in (
        (conditional, (), "this pipeline is conditional: pass condition, 10 numbers"),
        (conditional, ("--condition", "ten"), "unknown name in the condition 'ten'"),
        (conditional, ("--condition", "[1, 2]"), "expected (10,)"),
        (conditional, ("--condition", "2"), "made otherwise (condition"),
        (trained, ("--condition", "2"), "unconditional: leave it out"),
        (trained, ("--guidance-scale", 2), "this pipeline is unconditional"),
    ):
        out = nets if "2" in arguments and run == conditional else tmp_path / "none"
        result = cli("params", "generate", run, "-n", 1, "--steps", 2, "--out", out, *arguments)
        assert result.exit_code == 2
        assert words in " ".join(result.output.split()), result.output
