"""`latentia train pdiff` as docs/parameters.md teaches it: the page's own mynets.py, in a folder of the user's."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_model

PAGE = Path(__file__).parents[2] / "docs" / "parameters.md"
TINY = (
    "steps=2", "batch_size=4", "codec.steps=2", "codec.batch_size=4", "unet.channels=8,", "samples=3",
    "sampling_steps=3", "device=cpu", "count=4", "training.main.epochs=1", "training.skip=0",
)  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A working directory with mynets.py, as a console script sees it: not on the path."""
    text = PAGE.read_text(encoding="utf-8").partition("## Your own network")[2]
    (tmp_path / "mynets.py").write_text(re.search(r"```python\n(.*?)```", text, re.S)[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    yield tmp_path
    sys.modules.pop("mynets", None)


def test_a_folder_of_checkpoints_becomes_networks(cli, home):
    (home / "steps").mkdir()
    module = {}
    exec((home / "mynets.py").read_text(), module)
    network = module["build"]()
    for i, state in zip(range(3), module["train"](0)):
        network.load_state_dict(state)
        save_model(network, str(home / "steps" / f"{i}.safetensors"))
    result = cli("train", "pdiff", "module=mynets:build", "checkpoints=steps", *TINY, "--out", "run")
    assert result.exit_code == 0, result.output
    assert "saved run/pipeline; try: latentia params generate" in result.output
    result = cli("params", "generate", "run", "-n", 2, "--steps", 3, "--out", "nets")
    assert result.exit_code == 0, result.output
    network.load_state_dict(load_file(home / "nets" / "00001.safetensors"))
    assert network.third.weight is network.second.weight
    assert torch.isfinite(network.eval()(torch.zeros(2, 6))).all()


def test_data_are_trained_on_and_judged_on_and_the_dry_run_leaves_nothing(cli, home):
    keys = ("train", "pdiff", "module=mynets:build", "data=mynets:data", "patterns=head", *TINY, "--out", "run")
    result = cli(*keys, "--dry-run")
    assert result.exit_code == 0, result.output
    assert re.search(r"input, one sample +│ +6 │ +27 │", result.output), result.output
    assert not (home / "run").exists()
    result = cli(*keys)
    assert result.exit_code == 0, result.output
    report = json.loads((home / "run" / "report.json").read_text())
    assert report["originals"]["parameters"] == 27
    assert "p-diff" in report["data"]["summary"]["populations"]
    result = cli("train", "pdiff", "--resume", "--out", "run")
    assert result.exit_code == 2
    assert "with --resume too" in result.output
    assert cli(*keys, "--resume").exit_code == 0


def test_what_is_wrong_is_one_line(cli, home):
    (home / "empty").mkdir()
    for keys, words in (
        (("module=mynet:build", "data=mynets:data"), "did you mean 'mynets'"),
        (("module=mynets:build", "checkpoints=empty"), "holds no state dicts"),
        (("module=mynets:build", "data=mynets:data", "patterns=haed"), "nearest: head"),
        (("module=mynets:build", "trainer=mynets:train", "modul=x"), "did you mean 'module'"),
    ):
        result = cli("train", "pdiff", *keys, "--out", "run")
        assert result.exit_code == 2
        assert words in result.output
    assert not (home / "run").exists()
