"""The embedded extractor at length: what it is worth, and whether its numbers tell right edits from wrong ones."""

import pytest

from latentia.methods.emu_edit.benchmarks.benchmark import carry_out
from latentia.methods.emu_edit.benchmarks.results import BASELINES, oracle
from latentia.methods.emu_edit.benchmarks.scenes import Scenes
from latentia.methods.emu_edit.measures.contrastive import retrieval
from latentia.methods.emu_edit.measures.measure import EditMeter, Extractors
from latentia.methods.emu_edit.measures.towers import SceneTrunk
from latentia.recipes.scene_towers import train_towers


@pytest.mark.slow
def test_trained_towers_tell_right_edits_from_wrong_ones():
    towers = train_towers()
    scenes = Scenes(1000, seed=5)
    rows = [scenes.rows.row(i) for i in range(len(scenes.cases))]
    worth = retrieval(towers, rows)
    assert worth["retrieved_of_100"].value > 0.65  # chance: 0.01
    assert worth["told_apart"].value > 0.93  # chance: 0.5

    def shuffled(cases, images):
        return [rows[(case.at + 1) % len(rows)].target for case in cases]

    found = {}
    for name, editor in {"oracle": oracle(scenes), "shuffled": shuffled, **BASELINES}.items():
        meter = EditMeter(Extractors(towers, SceneTrunk(towers))).add(carry_out(scenes, editor))
        found[name] = {each.name: each.value for each in meter.measurements()}
    direction = {name: values["clip_dir[scenes]"] for name, values in found.items()}
    assert direction["oracle"] > 0.7
    assert direction["copy"] == 0
    assert max(direction["grey"], direction["shuffled"]) < 0.5 * direction["oracle"]
    out = {name: values["clip_out[scenes]"] for name, values in found.items()}
    assert out["oracle"] > out["copy"] + 0.3 > out["grey"] + 0.3
