"""`pdiff-tasks`, tiny: all stages run, every control has a row, and the verdict follows from the numbers."""

import json

import pytest
import torch

from latentia.pipelines.pipeline import DiffusionPipeline
from latentia.recipes.overrides import override
from latentia.recipes.pdiff_tasks_judging import CONTROLS, HEADS, KERNEL, ORACLE, ORDER, WHOLE, TaskRun, TaskSetting
from latentia.recipes.registry import recipe
from latentia.recipes.run import run_recipe

TINY = [
    "steps=2", "batch_size=4", "codec.steps=2", "codec.batch_size=4", "codec.strides=2,2,2,2", "unet.channels=16,",
    "unet.layers=1", "tasks.kind=pair", "tasks.held_out=4", "tasks.per_task=1", "tasks.fit.epochs=1", "task.train=60",
    "runs=1", "wide=none", "drawn.samples=2", "drawn.steps=2", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks")
    run_recipe(override(recipe("pdiff-tasks"), TINY), out, progress=False)
    return out


def test_the_report_has_every_row(trained):
    report = json.loads((trained / "report.json").read_text())
    (setting,) = report["settings"]
    assert tuple(setting["rows"]) == ORDER
    assert all(len(run) == 4 for row in setting["rows"].values() for run in row["tasks"])
    assert [row["control"] for row in setting["comparisons"]] == list(CONTROLS)
    assert setting["rows"][ORDER[-1]]["mean"] == pytest.approx(0.5, abs=0.02)  # pairs: two classes, equally large
    page = (trained / "report.html").read_text()
    assert setting["sentence"].split(",")[0] in page
    assert page.count("<svg") >= 3
    held = torch.tensor(setting["held_out"])
    assert torch.equal(held[:, 2:], -held[:, :2])


def test_the_pipeline_knows_what_its_condition_means(trained):
    pipe = DiffusionPipeline.from_pretrained(trained / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    told = pipe.template.condition
    assert (told.width, told.names, told.off, told.guided) == (10, tuple("0123456789"), 0.0, True)
    assert told.parse("3=-1,7").tolist() == [0, 0, 0, -1, 0, 0, 0, 1, 0, 0]
    made = pipe(condition="3=-1,7", num_samples=2, seed=0, num_inference_steps=2, guidance_scale=2.0)
    network = override(recipe("pdiff-tasks"), TINY).tasks.build()()
    network.load_state_dict(made.state_dicts[1])
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 2)


def setting_of(whole, head, kernel, noise=0.0, runs=3, tasks=20):
    generator = torch.Generator().manual_seed(0)

    def row(name):
        level = {WHOLE: whole, HEADS: head, KERNEL: kernel}.get(name, 0.5)
        return level + noise * torch.randn(2 * tasks, generator=generator).double()

    made = (TaskRun({name: row(name) for name in ORDER}, torch.zeros(2 * tasks, 10), 0.9, 0.9) for _ in range(runs))
    return TaskSetting(4, 270, tuple(made))


def test_the_verdict_follows_from_the_numbers():
    better = setting_of(0.9, 0.7, 0.8, 0.01)
    assert better.against(HEADS).verdict == "beats"
    assert "has learnt more than heads, and more than regression" in better.sentence
    assert "not what it takes" in setting_of(0.85, 0.7, 0.9, 0.01).sentence
    assert "nothing here shows" in setting_of(0.7, 0.9, 0.6, 0.01).sentence
    assert "loses to" in setting_of(0.7, 0.9, 0.6, 0.01).sentence
    level = setting_of(0.8, 0.8, 0.8, 0.05)
    assert level.against(KERNEL).verdict == "is level with"


def test_the_standard_error_counts_opposites_once_and_runs_too():
    setting = setting_of(0.8, 0.8, 0.8, 0.1, runs=1, tasks=2000)
    # two opposites averaged, then the difference of two rows: 0.1 · √2/√2 = 0.1 over 2000 tasks
    assert setting.against(HEADS).se == pytest.approx(0.1 / 2000**0.5, rel=0.05)
    shifted = [
        TaskRun({**r.rows, WHOLE: r.rows[WHOLE] + d}, r.codes, 0.9, 0.9)
        for r, d in zip(setting_of(0.8, 0.8, 0.8, 0.01).runs, (-0.1, 0.0, 0.1))
    ]
    assert TaskSetting(4, 270, tuple(shifted)).against(HEADS).se == pytest.approx(0.1 / 3**0.5, rel=0.1)
    assert setting.spread(ORACLE) == 0.0


def test_settings_that_do_not_fit():
    for words, message in (
        (["drawn.guidance_scale=2", "unet.condition_dropout=0"], "needs unet.condition_dropout"),
        (["drawn.steps=2000"], "more than noise.num_train_timesteps"),
        (["tasks.kind=pair", "tasks.held_out=90"], "at most 86"),
        (["tasks.held_out=3"], "multiple of 2"),
    ):
        with pytest.raises(ValueError, match=message):
            override(recipe("pdiff-tasks"), words)
