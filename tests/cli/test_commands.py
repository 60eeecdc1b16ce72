import json
import shutil

import pytest
from PIL import Image

from latentia import DiffusionPipeline, __version__
from latentia.errors import NonFiniteError
from latentia.recipes import demo, registry, run


def test_version(cli):
    assert cli("--version").output == f"latentia {__version__}\n"


@pytest.mark.parametrize("command", ["demo", "train", "sample", "evaluate", "recipes", "info"])
def test_every_command_explains_itself(cli, command):
    result = cli(command, "--help")
    assert result.exit_code == 0
    assert f"latentia {command}" in result.output.lower() or f" {command} " in result.output


def test_no_command_prints_help(cli):
    assert "Commands" in cli().output


def test_train_then_sample_then_info(cli, run_folder, tmp_path):
    assert (run_folder / "recipe.json").is_file()
    assert DiffusionPipeline.from_pretrained(run_folder / "pipeline").num_classes == 10
    sevens = tmp_path / "seven.png"
    asked = ["--class", 7, "-n", 16, "--steps", 3, "--scheduler", "ddim", "--seed", 1, "--out", sevens]
    result = cli("sample", run_folder / "pipeline", *asked)
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"saved {sevens}\n")
    with Image.open(sevens) as sheet:
        assert sheet.size == (4 * 66 + 2, 4 * 66 + 2)
        assert json.loads(sheet.text["latentia"])["seed"] == 1
    folder = tmp_path / "sevens"
    assert (
        cli("sample", run_folder, "-c", 7, "-c", 1, "-n", 3, "--steps", 2, "--guidance", 1.5, "-o", folder).exit_code
        == 0
    )
    assert sorted(file.name for file in folder.iterdir()) == ["00000-7.png", "00001-1.png", "00002-7.png"]
    shown = cli("info", run_folder).output
    for text in ("run, ", "LatentDiffusionPipeline", "AutoencoderKL", "UNet2DModel", "DDIMScheduler", "k parameters"):
        assert text in shown


def test_info_as_json_and_of_nothing(cli, run_folder, tmp_path):
    found = json.loads(cli("info", run_folder / "pipeline", "--json").output)
    assert (found["kind"], found["class_name"]) == ("pipeline", "LatentDiffusionPipeline")
    result = cli("info", tmp_path / "nothing")
    assert result.exit_code == 2
    assert "missing" in result.output


@pytest.mark.parametrize("name", registry.names())
def test_dry_run_of_every_recipe(cli, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("latentia.recipes.plan.TIMED_STEP_FLOPS", 0)
    result = cli("train", name, "--dry-run")
    assert result.exit_code == 0, result.output
    many = name == "tokenizers-study"  # dozens of networks are a line each
    columns = () if many else ("activations", "time here", "time on one A100")
    for text in ("parameters", "FLOP", *columns, "total: "):
        assert text in result.output
    assert list(tmp_path.iterdir()) == []


def test_recipes_lists_all_and_shows_one(cli):
    listed = cli("recipes").output
    assert all(name in listed for name in registry.names())
    shown = cli("recipes", "ddpm-cifar10").output
    for text in ("FID 3.17", "latentia train ddpm-cifar10", "optim.lr", "0.0002", "float > 0"):
        assert text in shown


def test_evaluate_a_codec_and_write_json(cli, run_folder, tmp_path):
    result = cli("evaluate", run_folder / "pipeline" / "vae", "--data", "digits", "-n", 8, "--out", tmp_path / "r.json")
    assert result.exit_code == 0, result.output
    assert "psnr" in result.output
    assert [m["n_generated"] for m in json.loads((tmp_path / "r.json").read_text())["measurements"]] == [8, 8, 8]


def test_evaluate_a_codec_of_another_family(cli, tmp_path):
    from latentia import FlowMo

    sizes = {
        f"{half}_{what}": value for half in ("encoder", "decoder") for what, value in (("width", 16), ("depth", 1))
    }
    heads = {"encoder_heads": 2, "decoder_heads": 2}
    options = {"group_bits": 4}
    codec = FlowMo(16, 1, 4, 4, 4, **sizes, **heads, quantizer_options=options, num_inference_steps=2)
    codec.save_pretrained(tmp_path / "flowmo")
    result = cli("evaluate", "codec", tmp_path / "flowmo", "--data", "digits", "-n", 4)
    assert result.exit_code == 0, result.output
    assert "psnr" in result.output
    result = cli("evaluate", "codec", tmp_path / "flowmo", "--data", "digitz", "-n", 4)
    assert result.exit_code == 2
    assert "digitz" in result.stderr


def test_numbers_are_shown_even_if_they_cannot_be_written(cli, run_folder, tmp_path):
    (tmp_path / "file").touch()
    codec, out = run_folder / "pipeline" / "vae", tmp_path / "file" / "r.json"
    result = cli("evaluate", codec, "--data", "digits", "-n", 2, "--out", out)
    assert result.exit_code == 2
    assert "psnr" in result.stdout
    assert "could not write" in result.stderr


def test_demo_calls_the_recipe(cli, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(demo, "run", lambda out, seed: asked.append((out, seed)) or out / "report.html")
    result = cli("demo", "--out", tmp_path, "--seed", 3)
    assert asked == [(tmp_path, 3)]
    assert f"saved {tmp_path / 'report.html'}" in result.output


# What bad input gets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "digits-lmd"], "unknown recipe 'digits-lmd': did you mean 'digits-ldm'?"),
        (["recipes", "cifar"], "unknown recipe 'cifar'"),
        (["train", "digits-ldm", "stps=3", "optim.lr=x"], "stps: unknown key, did you mean 'steps'?"),
        (["train", "digits-ldm", "data=digit", "--dry-run", "steps=0"], "steps: input should be greater than 0"),
        (["sample", "runs/none"], "runs/none"),
        (["sample", "x", "--scheduler", "dpm+"], "unknown scheduler 'dpm+': did you mean 'dpm++'?"),
        (["evaluate", "runs/none", "--data", "digits"], "no config.json in runs/none"),
    ],
)
def test_errors_are_one_line_on_stderr(cli, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = cli(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("option", "value"), [("--steps", "0"), ("--steps", "2.5"), ("-n", "-1"), ("--seed", "-1"), ("--guidance", "no")]
)
def test_numbers_out_of_range_are_refused_by_the_option(cli, option, value):
    result = cli("sample", "x", option, value)
    assert result.exit_code == 2
    assert option.lstrip("-") in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--class", "11"], "class 11 is out of range: known are 0 to 9"),
        (["--class", "cat"], "this pipeline has no id2label: give a number"),
        (["--steps", "1001"], "1001"),
        (["--scheduler", "flow"], "trained by diffusion: use any but flow"),
        (["--device", "tpu"], "device 'tpu' is not available here"),
    ],
)
def test_bad_requests_to_a_pipeline(cli, run_folder, arguments, said, tmp_path):
    result = cli("sample", run_folder, "--out", tmp_path / "x.png", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (tmp_path / "x.png").exists()


def test_debug_shows_the_traceback(cli):
    result = cli("--debug", "recipes", "cifar")
    assert "unknown recipe 'cifar'" in str(result.exception)


def test_a_run_is_not_overwritten_and_resume_uses_its_settings(cli, run_folder, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(run_folder, out)
    assert "already holds a run" in cli("train", "digits-ldm", "--out", out).stderr
    assert (
        "holds a run of digits-ldm, not of digits-ddpm" in cli("train", "digits-ddpm", "--out", out, "--resume").stderr
    )
    refused = cli("train", "digits-ldm", "unet.channels=8,8", "--out", out, "--resume").stderr
    assert "unet.channels was (8, 16), now (8, 8)" in refused
    assert cli("train", "digits-ldm", "--out", out, "--resume", "steps=3", "log_every=1").exit_code == 0
    assert run.load_recipe(out).steps == 3
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert (last["phase"], last["step"]) == ("unet", 3)


def test_interrupts_exit_130_with_a_hint(cli, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "start_or_saved", stop)
    result = cli("train", "digits-ldm")
    assert result.exit_code == 130
    assert "--resume" in result.stderr


def test_a_stopped_training_says_what_it_says(cli, monkeypatch):
    def stop(*arguments):
        raise NonFiniteError("phase 'unet', step 7: loss is nan")

    monkeypatch.setattr(run, "start_or_saved", stop)
    result = cli("train", "digits-ldm")
    assert (result.exit_code, result.stderr) == (2, "error: phase 'unet', step 7: loss is nan\n")


def test_a_full_disk_is_one_line(cli, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "start_or_saved", full)
    result = cli("train", "digits-ldm")
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
