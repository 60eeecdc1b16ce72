"""An editor of maps learns contours, which it never saw, from twenty examples: one vector against where it started."""

import numpy as np
import pytest

from latentia import EmuEditPipeline
from latentia.core.files import read_json
from latentia.methods.emu_edit.embedding_file import TaskEmbedding
from latentia.recipes import registry
from latentia.recipes.edit_study_runs import BareEditor, go_on
from latentia.recipes.overrides import override

pytestmark = pytest.mark.slow

EDITOR = (
    *("image_size=32", "tasks=style,segment,depth,sketch", "steps=300", "text.steps=50"),
    *("predictor.steps=100", "predictor.examples=1000", "device=cpu"),
)


def test_contours_from_twenty_examples(tmp_path):
    plain = override(registry.recipe("edit-scenes"), EDITOR)
    go_on(BareEditor.model_validate(plain.model_dump()), tmp_path / "edit")
    chosen = [f"base={tmp_path / 'edit'}", "task=contour", "examples=20", "steps=120", "judged=48", "sampling_steps=4"]
    go_on(override(registry.recipe("edit-inversion"), [*chosen, "device=cpu"]), tmp_path / "contour")
    told = read_json(tmp_path / "contour" / "numbers.json")
    numbers = told["numbers"]
    assert told["start"] in ("style", "segment", "depth", "sketch", "mean")
    assert numbers["learned"]["gain"] > numbers["start"]["gain"] + 0.03
    assert numbers["learned"]["gain"] > numbers["no task"]["gain"] + 0.03
    pipe = EmuEditPipeline.from_pretrained(tmp_path / "edit" / "pipeline")
    learned = TaskEmbedding.load(tmp_path / "contour" / "contour.safetensors", pipe.model)
    assert np.isfinite(learned.vector.numpy()).all()
