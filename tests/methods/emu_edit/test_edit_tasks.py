"""The sixteen tasks: exact rows, exact scores, nothing held out in training."""

import dataclasses
import json
from functools import lru_cache

import numpy as np
import pytest

from latentia.errors import UnknownChoiceError
from latentia.methods.emu_edit.engine import scene_engine
from latentia.methods.emu_edit.rows import Row, check_row
from latentia.methods.emu_edit.tasks.effects import COLOR, GLOBAL, STYLE
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES, TASKS, task_named, task_number, tasks_of
from latentia.methods.emu_edit.tasks.scoring import box_iou, marked, mask_iou, psnr
from latentia.methods.emu_edit.tasks.unseen import UNSEEN_TASKS
from latentia.methods.emu_edit.tasks.vision import draw_box, read_box
from latentia.methods.emu_edit.world.references import Reference
from latentia.methods.emu_edit.world.render import World
from latentia.methods.emu_edit.world.scene import scene_from_json
from latentia.methods.emu_edit.world.vocabulary import COLOURS, FLAT_SHAPES, MARK, SHAPES, SPLITS, split_of_pair

REGION = ("local", "texture", "add", "remove", "background")
FREE_FORM = ("global", "style", "text")
VISION = ("detect", "segment", "color", "depth", "segmap", "normal", "sketch", "pose")


@lru_cache
def rows(task: str, split: str, count: int = 12, size: int = 32) -> tuple[Row, ...]:
    return tuple(scene_engine(size, seed=3, tasks=[task]).rows(split, 0, count))


def test_sixteen_tasks_in_three_groups():
    assert TASK_NAMES == REGION + FREE_FORM + VISION
    assert tasks_of("region") == REGION
    assert tasks_of("free-form") == FREE_FORM
    assert tasks_of("vision") == VISION
    assert task_number("remove") == 3
    with pytest.raises(UnknownChoiceError, match="did you mean 'texture'"):
        task_named("textures")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("task", TASK_NAMES)
def test_the_oracle_succeeds_and_the_copy_does_not(task, split):
    for row in rows(task, split, 6):
        check_row(row)
        oracle, copy = TASKS[task].score(row, row.target), TASKS[task].score(row, row.image)
        assert oracle["success"] == 1
        assert oracle["gain"] == 1
        assert oracle["psnr"] == 60
        assert copy["success"] == 0
        assert copy["gain"] == 0
        assert oracle.keys() == copy.keys()
        grey = TASKS[task].score(row, np.full_like(row.image, 128))
        if row.meta["scene"].background.name != "grey":  # there, grey is nearly right
            assert grey["success"] == 0
        noise = np.random.default_rng(0).integers(0, 256, row.image.shape, dtype=np.uint8)
        assert TASKS[task].score(row, noise)["success"] == 0


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_slightly_noisy_answer_is_a_success(task):
    noise = np.random.default_rng(1)
    for row in rows(task, "train", 4):
        off = row.target + noise.normal(0, 4, row.target.shape)
        score = TASKS[task].score(row, np.clip(off, 0, 255).astype(np.uint8))
        if row.meta["kind"] not in ("depth/to", "normal/to", "color/sharpen", "color/blur"):
            assert score["success"] == 1, (row.instruction, score)
        assert score.get("psnr_outside", 36) > 30


@pytest.mark.parametrize("task", TASK_NAMES)
def test_a_row_survives_json_with_its_score(task):
    for row in rows(task, "test", 4):
        again = Row(row.image, row.instruction, row.target, row.task, row.input_caption, row.output_caption, row.mask)
        again.meta = json.loads(json.dumps(row.meta))
        assert TASKS[task].score(again, row.target) == TASKS[task].score(row, row.target)
        assert {"kind", "original_object", "edited_object"} <= set(row.meta)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_what_is_held_out_is_never_trained_on(task):
    for split, others in (("train", ("select", "test")), ("select", ("test",)), ("test", ("select",))):
        for row in rows(task, split, 12):
            scenes = [scene_from_json(row.meta[key]) for key in ("scene", "after") if key in row.meta]
            shown = {(thing.shape, thing.colour) for scene in scenes for thing in scene.things}
            shown |= {(scene.writing.word, scene.writing.colour) for scene in scenes if scene.writing}
            assert not {split_of_pair(*pair) for pair in shown} & set(others)
            if split != "train":
                assert split in {split_of_pair(*pair) for pair in shown}
                kinds = {scene.background.kind for scene in scenes[:1]}
                assert kinds == {"photo"} or row.meta["kind"].endswith("/from")
            photos = {scene.background.name for scene in scenes if scene.background.kind == "photo"}
            own = {
                "train": {"astronaut", "china", "flower", "motorcycle", "rocket"},
                "select": {"chelsea"},
                "test": {"coffee", "grace_hopper"},
            }
            assert photos <= own[split]


@pytest.mark.parametrize("task", ["local", "texture", "add", "remove", "detect", "segment"])
def test_an_instruction_names_exactly_one_thing(task):
    for split in SPLITS:
        for row in rows(task, split, 12):
            if row.meta["reference"] is not None:
                found = Reference(*row.meta["reference"]).found(scene_from_json(row.meta["scene"]))
                assert len(found) == 1
                assert row.meta.get("subject", found[0]) == found[0]


@pytest.mark.parametrize("task", ["depth", "segmap", "normal", "sketch"])
def test_a_map_tells_the_things_of_its_picture_apart(task):
    backwards = [row for row in rows(task, "train", 16) if row.meta["kind"] == f"{task}/from"]
    assert backwards
    for row in backwards:
        scene = scene_from_json(row.meta["scene"])
        shapes = [thing.shape for thing in scene.things]
        assert len(set(shapes)) == len(shapes)
        assert scene.background.kind != "photo"


@pytest.mark.parametrize("task", REGION + ("text", "detect", "segment"))
def test_nothing_changes_outside_the_mask(task):
    for row in rows(task, "train", 8):
        assert np.array_equal(row.image[~row.mask], row.target[~row.mask])
        assert 0 < row.mask.mean() < 1
        broken = row.target.copy()
        broken[~row.mask] ^= 128
        score = TASKS[task].score(row, broken)
        assert score["psnr_outside"] < 20
        assert score["gain"] == 1
        if task not in ("detect", "segment"):
            assert score["success"] == 0


@pytest.mark.parametrize("task", TASK_NAMES)
def test_captions_differ_and_words_are_there(task):
    for row in rows(task, "train", 8):
        assert row.input_caption != row.output_caption
        assert row.instruction == " ".join(row.instruction.split())
        assert "{" not in row.instruction


def test_a_wrong_colour_is_read_as_wrong():
    world, seen = World.of(32), 0
    for row in rows("local", "train", 24):
        if row.meta["kind"] == "local/recolour":
            after, index = scene_from_json(row.meta["after"]), row.meta["result"]
            for colour in COLOURS:
                if colour != after.things[index].colour:
                    wrong = world.picture(after.changed(index, colour=colour))
                    assert TASKS["local"].score(row, wrong)["read"] == 0
            seen += 1
    assert seen > 3


def test_another_shape_in_the_place_of_an_added_one_is_wrong():
    world = World.of(32)
    for row in rows("add", "train", 6):
        after, index = scene_from_json(row.meta["after"]), row.meta["result"]
        for shape in FLAT_SHAPES:
            if shape != after.things[index].shape:
                wrong = world.picture(after.changed(index, shape=shape))
                assert TASKS["add"].score(row, wrong)["there"] == 0


@pytest.mark.parametrize(("task", "effects"), [("global", GLOBAL), ("style", STYLE), ("color", COLOR)])
def test_another_effect_is_read_as_wrong(task, effects):
    for row in rows(task, "train", 6):
        for name, effect in effects.items():
            before = row.image.copy()
            changed = effect(row.image)
            assert np.array_equal(row.image, before)
            assert changed.dtype == np.uint8
            if name != row.meta["effect"] and not np.array_equal(changed, row.target):
                assert TASKS[task].score(row, changed)["read"] == 0


def test_boxes_are_drawn_and_read():
    grey = np.full((64, 64, 3), 90, dtype=np.uint8)
    drawn = draw_box(grey, (10, 12, 40, 50))
    assert read_box(grey, drawn) == (10, 12, 40, 50)
    drawn[60, 60] = MARK  # a stray pixel does not count
    assert read_box(grey, drawn) == (10, 12, 40, 50)
    assert read_box(grey, grey) == (0, 0, 0, 0)
    assert marked(grey, grey, MARK).sum() == 0


def test_measures_in_closed_form():
    assert box_iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0
    assert mask_iou(np.array([1, 1, 0], bool), np.array([0, 1, 1], bool)) == pytest.approx(1 / 3)
    assert psnr(0.01) == pytest.approx(20)
    assert psnr(0) == 60


@pytest.mark.parametrize("name", UNSEEN_TASKS)
def test_unseen_tasks_score_their_oracle(name):
    from random import Random

    from latentia.methods.emu_edit.world.sampling import Rejected

    assert name not in TASKS
    task, made = UNSEEN_TASKS[name], 0
    for seed in range(12):
        try:
            row = task.make(Random(seed), World.of(32), "train")
        except Rejected:
            continue
        made += 1
        check_row(row)
        assert task.score(row, row.target)["success"] == 1
        assert task.score(row, row.image)["success"] == 0
    assert made >= 6


def test_persons_have_no_texture_and_small_things_neither():
    for task in ("remove", "detect"):
        for row in rows(task, "train", 12):
            for thing in scene_from_json(row.meta["scene"]).things:
                assert thing.shape in SHAPES
                assert thing.texture == "plain" or (not thing.small and thing.shape != "person")


def test_judging_the_baselines():
    from latentia.methods.emu_edit.tasks.judging import BASELINES, judge

    some = [row for task in ("remove", "add") for row in rows(task, "test", 6)]
    copy, oracle = (judge(some, BASELINES[name]) for name in ("copy", "oracle"))
    assert list(copy) == ["add", "remove"]
    assert copy["remove"]["n"] == 6
    assert copy["remove"]["success"] == 0
    assert copy["remove"]["psnr_outside"] == 60
    assert oracle["add"]["success"] == oracle["add"]["there"] == 1


def test_filling_in_what_a_thing_hides():
    from latentia.methods.emu_edit.tasks.judging import filled, judge

    some = rows("remove", "test", 8)
    for row in some:
        made = filled(row)
        assert made.dtype == np.uint8
        assert np.array_equal(made[~row.mask], row.image[~row.mask])
        assert not np.array_equal(made, row.image)
    # A smooth surface is known exactly: a ramp is its own filling.
    ramp = np.repeat(np.arange(32, dtype=np.uint8)[:, None] * 4, 32, axis=1)[..., None].repeat(3, axis=2)
    holed = np.where(some[0].mask[..., None], 255, ramp).astype(np.uint8)
    row = dataclasses.replace(some[0], image=holed)
    assert np.abs(filled(row).astype(int) - ramp).max() <= 1
    found = judge(some, filled)["remove"]
    assert found["gone"] >= 0.5
    assert 0 < found["gain"] < 1


def test_a_contact_sheet():
    from latentia.errors import InputError
    from latentia.methods.emu_edit.sheet import contact_sheet

    some = rows("remove", "train", 5)
    assert contact_sheet(some, columns=2, scale=1).shape == (3 * 34, 2 * 66, 3)
    three = contact_sheet(some, [row.target for row in some], columns=5, scale=2)
    assert three.shape == (68, 5 * 98 * 2, 3)
    with pytest.raises(InputError, match="one edit for each"):
        contact_sheet(some, [])
