"""As the user types it, in processes of their own."""

import os
import signal
import subprocess
import sys
import time

import pytest

from latentia.recipes import registry

LATENTIA = (sys.executable, "-m", "latentia")
PLAIN = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
TINY = ("batch_size=8", "unet.channels=8,16", "unet.groups=4", "unet.head_dim=8")


def call(*arguments, **env):
    command = [*LATENTIA, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=PLAIN | env, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["recipes"], ["recipes", "digits-ldm"], ["info", "."]]
)
def test_help_and_lists_do_not_import_torch(arguments):
    code = (
        f"import sys; sys.argv = ['latentia', *{arguments!r}]\n"
        "from latentia.cli.main import run\n"
        "try: run()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'numpy', 'accelerate', 'huggingface_hub'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=PLAIN)


def test_help_is_instant():
    spent = []
    for _ in range(3):
        before = os.times()
        assert call("--help").returncode == 0
        after = os.times()
        spent.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(spent) < 0.3


def complete(words, count):
    env = {"_LATENTIA_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    code = (
        "import sys; sys.argv = ['latentia']\n"
        "from latentia.cli.main import app\n"
        "try: app(prog_name='latentia')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=PLAIN | env, check=True)
    return done.stdout.split()


def test_shell_completion_of_recipes_keys_and_schedulers():
    assert complete("latentia train digits", 2) == [name for name in registry.names() if name.startswith("digits")]
    assert "unet.channels=" in complete("latentia train digits-ldm unet.", 3)
    assert complete("latentia sample x --scheduler dpm++", 4) == ["dpm++", "dpm++3", "dpm++karras", "dpm++sde"]


def test_errors_leave_with_two_and_no_traceback():
    done = call("train", "digits-lmd")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: unknown recipe 'digits-lmd': did you mean 'digits-ldm'?")


def test_interrupted_training_saves_and_resumes(tmp_path):
    out = tmp_path / "run"
    command = [*LATENTIA, "train", "digits-ddpm", "steps=100000", *TINY, "log_every=1", "--out", str(out)]
    with subprocess.Popen(command, env=PLAIN, stderr=subprocess.PIPE, text=True) as process:
        metrics = out / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with --resume" in said
    assert "Traceback" not in said
    taken = len(metrics.read_text().splitlines())
    done = call("train", "digits-ddpm", f"steps={taken + 1}", "--out", out, "--resume")
    assert done.returncode == 0, done.stderr
    assert len(metrics.read_text().splitlines()) == taken + 1
    assert (out / "pipeline" / "model_index.json").is_file()


@pytest.mark.slow
def test_two_processes_train_and_sample_as_one_does(tmp_path):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "latentia",
    ]
    out = tmp_path / "run"
    for command in (
        ["train", "digits-ddpm", "steps=2", *TINY, "--out", out],
        ["sample", out, "-n", "5", "--steps", "2", "--scheduler", "ddim", "--seed", "3", "--out", tmp_path / "two"],
    ):
        done = subprocess.run([*torchrun, *map(str, command)], env=PLAIN, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("saved ") == 1
    done = call("sample", out, "-n", 5, "--steps", 2, "--scheduler", "ddim", "--seed", 3, "--out", tmp_path / "one")
    assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "one").iterdir())
    assert len(files) == 5
    assert all(file.read_bytes() == (tmp_path / "two" / file.name).read_bytes() for file in files)
