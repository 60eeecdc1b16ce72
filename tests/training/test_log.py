import io
import json

import pytest
import torch

from latentia.errors import ArtifactError
from latentia.training import log
from latentia.training.log import MetricsFile, ProgressLine, RunLog


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_metrics_are_cut_to_a_mark(tmp_path):
    file = MetricsFile(tmp_path / "new" / "metrics.jsonl")
    file.write({"step": 1})
    mark = file.size()
    file.write({"step": 2})
    file.cut(mark)
    file.write({"step": 3})
    file.cut(10_000)  # longer than the file: nothing to drop
    file.close()
    lines = (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1}, {"step": 3}]


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path / "metrics.jsonl")

    class Full:
        name = "metrics.jsonl"

        def write(self, data):
            raise OSError(28, "No space left on device")

    file._file.close()
    file._file = Full()
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl: .*No space left.*then resume"):
        file.write({})


def test_other_processes_write_nothing(tmp_path):
    with RunLog(tmp_path, writes=False, stream=io.StringIO()) as run, run.phase("p", 0, 3):
        run.record(1, {"loss": 1.0})
        run.advance(1, 1.0)
        run.picture(1, torch.zeros(1, 1, 4, 4))
        assert run.mark() == 0
        run.cut(0)
    assert not list(tmp_path.iterdir())


def test_lines_where_there_is_no_terminal(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    line = ProgressLine(stream)
    line.begin("unet", 0, 100)
    for step in range(1, 101):
        now[0] += 0.5
        line.advance(step, 2.0)
    line.end()
    said = stream.getvalue().splitlines()
    assert len(said) == 5
    assert said[0] == "unet: 20/100  loss 2  2.0 it/s  40 s left"
    assert said[-1] == "unet: 100/100  loss 2  2.0 it/s  0 s left"


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    line = ProgressLine(stream)
    line.begin("unet", 3, 10)
    line.advance(10, 0.25)
    line.end()
    assert "unet" in stream.getvalue()
    assert "10/10" in stream.getvalue()
    assert "loss 0.25" in stream.getvalue()


def test_silence_when_asked(tmp_path, capfd):
    with RunLog(tmp_path, progress=False) as run, run.phase("p", 0, 3):
        run.advance(3, 1.0)
    assert capfd.readouterr() == ("", "")
