"""The world at length: every task over many seeds, and splits that share nothing."""

import numpy as np
import pytest

from latentia.methods.emu_edit.engine import scene_engine
from latentia.methods.emu_edit.tasks.judging import BASELINES, judge
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES
from latentia.methods.emu_edit.world.vocabulary import SPLITS


@pytest.mark.slow
@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("task", TASK_NAMES)
def test_oracle_and_baselines_over_many_seeds(task, size):
    for split in SPLITS:
        rows = list(scene_engine(size, seed=21, tasks=[task]).rows(split, 0, 300))
        oracle, copy, grey = (judge(rows, BASELINES[name])[task] for name in ("oracle", "copy", "grey"))
        assert oracle["success"] == 1
        assert oracle["gain"] == 1
        assert copy["success"] == 0
        assert grey["success"] < 0.04  # where the background is grey, grey is nearly right
        assert np.isclose(oracle["psnr"], 60)


@pytest.mark.slow
def test_no_instruction_of_a_held_out_split_is_ever_trained_on():
    engine = scene_engine(16)
    told = {split: {row.instruction for row in engine.rows(split, 0, 20_000)} for split in SPLITS}
    for split in ("select", "test"):
        assert not told["train"] & told[split]
        words = {word for text in told[split] for word in text.split()}
        assert words <= {word for text in told["train"] for word in text.split()}
