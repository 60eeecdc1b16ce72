"""The four gates, and what a language model's source does."""

import json
from random import Random

import numpy as np
import pytest
import torch

from latentia.errors import InputError, UnknownChoiceError
from latentia.methods.emu_edit.engine import Engine, scene_engine
from latentia.methods.emu_edit.gates import (
    ANYEDIT,
    INSTRUCT_PIX2PIX,
    ClipGate,
    DetectorGate,
    Limits,
    StructureGate,
    TaskGate,
)
from latentia.methods.emu_edit.proposals import (
    Agent,
    LanguageSource,
    chosen_examples,
    edit_masks,
    parse_answer,
    scene_examples,
    with_other_verb,
    without_possessive,
)
from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.tasks.registry import TASKS
from latentia.methods.emu_edit.world.sampling import Rejected


def row(task: str = "remove", index: int = 0) -> Row:
    return scene_engine(32, tasks=[task]).row("train", index)


def test_the_task_gate_relabels_or_drops():
    gate = TaskGate(lambda text: "add")
    assert gate(row()).task == "add"
    assert gate(row()).meta["task_before"] == "remove"
    kept = row("add")
    assert gate(kept) is kept
    with pytest.raises(Rejected, match="remove reads as add"):
        TaskGate(lambda text: "add", relabel=False)(row())
    with pytest.raises(UnknownChoiceError):
        TaskGate(lambda text: "fly")(row())


class Features:
    """Pictures and captions at angles in a plane, in degrees."""

    name = "angles"

    def __init__(self, images: tuple[float, float], texts: tuple[float, float]) -> None:
        self.angles = images, texts

    def _unit(self, degrees: tuple[float, float]) -> torch.Tensor:
        radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
        return torch.stack([radians.cos(), radians.sin()], dim=-1) * 3

    def images(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[:2] == (2, 3)
        return self._unit(self.angles[0])

    def texts(self, texts) -> torch.Tensor:
        return self._unit(self.angles[1])


def test_cosines_in_closed_form():
    found = ClipGate(Features((0, 60), (30, 90))).cosines(row())
    assert found["before"] == pytest.approx(np.cos(np.pi / 6))
    assert found["after"] == pytest.approx(np.cos(np.pi / 6))
    assert found["alike"] == pytest.approx(0.5)
    assert found["direction"] == pytest.approx(np.cos(np.pi / 6))


@pytest.mark.parametrize(
    ("images", "texts", "reason"),
    [
        ((0, 30), (85, 30), "before"),
        ((0, 30), (0, 115), "after"),
        ((0, 30), (30, 0), "direction"),
        ((0, 0), (10, 40), "direction"),
        ((0, 60), (0, 60), "alike"),
    ],
)
def test_the_clip_gate_gives_its_reason(images, texts, reason):
    with pytest.raises(Rejected, match=reason):
        ClipGate(Features(images, texts))(row())


def test_the_clip_gate_keeps_what_fits():
    assert Limits(0.2, 0.2, 0.2, 0.75) == INSTRUCT_PIX2PIX
    assert ClipGate(Features((0, 30), (10, 40)))(row()).task == "remove"
    assert ClipGate(Features((0, 90), (90, 0)), {})(row()).task == "remove"  # no limit, no gate
    assert set(ANYEDIT) <= set(TASKS)
    with pytest.raises(Rejected, match="direction"):
        ClipGate(Features((0, 30), (30, 0)), ANYEDIT)(row("local"))


def test_the_structure_gate_measures_depth():
    def depth(picture: np.ndarray) -> np.ndarray:
        return picture.mean(axis=-1)

    gate = StructureGate(depth)
    one = row()
    assert gate(one) is one
    black = np.zeros_like(one.image)
    half = black.copy()
    half[:16] = 200
    other = Row(black, "x", half, "remove", "a", "b", one.mask)
    assert gate.distance(other) == pytest.approx(0.5)
    limits = gate.calibrate([one, other], 1.0)
    assert limits == {"remove": pytest.approx(0.5)}
    gate.limits["remove"] = 0.4
    with pytest.raises(Rejected, match="depth"):
        gate(other)
    with pytest.raises(InputError, match="quantile"):
        gate.calibrate([one], 0)


def detector(*found: tuple[str, str]):
    """Finds a phrase in the picture `before` or `after`, told apart by a byte."""

    def detect(picture: np.ndarray, phrase: str) -> list[int]:
        return [1] if (("before", "after")[int(picture[0, 0, 0])], phrase) in found else []

    return detect


@pytest.mark.parametrize(
    ("task", "found", "reason"),
    [
        ("add", [("after", "new")], None),
        ("add", [], "not there"),
        ("remove", [("before", "old")], None),
        ("remove", [("before", "old"), ("after", "old")], "still there"),
        ("remove", [], "not there before"),
        ("local", [("before", "old"), ("after", "new")], None),
        ("local", [("before", "old"), ("after", "new"), ("after", "old")], "still there"),
        ("style", [], None),
    ],
)
def test_the_detector_gate(task, found, reason):
    before, after = np.zeros((8, 8, 3), np.uint8), np.ones((8, 8, 3), np.uint8)
    meta = {"original_object": "" if task == "add" else "old", "edited_object": "" if task == "remove" else "new"}
    made = Row(before, "x", after, task, "a", "b", np.ones((8, 8), bool), meta)
    gate = DetectorGate(detector(*found))
    if reason is None:
        assert gate(made) is made
    else:
        with pytest.raises(Rejected, match=reason):
            gate(made)


def test_examples_are_shuffled_and_six_tenths_kept():
    examples = scene_examples("remove", 10, size=32)
    one, two = (chosen_examples(examples, Random(seed)) for seed in (0, 1))
    assert len(one) == len(two) == 6
    assert one != two
    assert one == chosen_examples(examples, Random(0))
    assert {len(chosen_examples(examples[:n], Random(0))) for n in (4, 5)} <= {2, 3}
    with pytest.raises(InputError, match="kept"):
        chosen_examples(examples, Random(0), 0)


def test_verbs_are_replaced_by_others_of_their_group():
    drawn = {with_other_verb("Remove the dog", Random(seed)) for seed in range(30)}
    assert drawn == {"Remove the dog", "Delete the dog", "Erase the dog"}
    assert with_other_verb("sing a song", Random(0)) == "sing a song"


def test_possessives():
    assert without_possessive("the dog's tail") == "the tail"
    assert without_possessive("the dogs' tails") == "the tails"
    assert without_possessive("a red hat") == "a red hat"


ANSWER = {"instruction": "remove the dog", "output_caption": "a field", "original_object": "dog", "edited_object": ""}


@pytest.mark.parametrize("text", ["no", "{}", '{"instruction": 3}', json.dumps({**ANSWER, "instruction": " "}), "[1]"])
def test_answers_that_cannot_be_used(text):
    with pytest.raises(Rejected, match="answer"):
        parse_answer(text)


def test_a_language_source_fills_the_same_engine():
    prompts = []

    def model(messages, temperature, top_p, seed):
        prompts.append(messages)
        return "Sure: " + json.dumps({**ANSWER, "original_object": "the man's dog"})

    agent = Agent("remove", "An object is erased.", scene_examples("remove", 5, size=32))
    source = LanguageSource(model, [agent], {"train": ["a dog in a field"]})

    class Blank:
        def __call__(self, proposal, rng):
            assert proposal.original_object == "the dog"
            image = np.zeros((8, 8, 3), np.uint8)
            mask = np.ones((8, 8), bool)
            captions = proposal.input_caption, proposal.output_caption
            yield Row(image, proposal.instruction, image + 1, proposal.task, *captions, mask)

    made = Engine(source, Blank()).row("train", 0)
    assert (made.task, made.output_caption) == ("remove", "a field")
    roles = [message["role"] for message in prompts[0]]
    assert roles == ["system", "user", *["user", "assistant"] * 3, "user"]
    assert prompts[0][-1]["content"] == "a dog in a field"
    assert set(json.loads(prompts[0][3]["content"])) == set(ANSWER)
    with pytest.raises(UnknownChoiceError):
        source(Random(0), "test")
    with pytest.raises(InputError, match="at least one agent"):
        LanguageSource(model, [], {"train": ["x"]})


def test_three_masks():
    mask = np.zeros((64, 64), bool)
    mask[20:40, 25:35] = True
    mask[20:25, 25:28] = False
    masks = edit_masks(mask)
    assert np.array_equal(masks["exact"] > 0, mask)
    assert masks["box"].sum() == 20 * 10
    assert masks["soft"].sum() > masks["exact"].sum()
    assert 0 <= masks["soft"].min() <= masks["soft"].max() <= 1
