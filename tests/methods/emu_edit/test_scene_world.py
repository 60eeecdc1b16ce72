"""The world: what is drawn, and that all that is known of it agrees."""

import json
from random import Random

import numpy as np
import pytest

from latentia.errors import InputError, UnknownChoiceError
from latentia.methods.emu_edit.world.backgrounds import CONTRASTS, SCENERIES, TONES, ZOOMS, backdrop, photos_of
from latentia.methods.emu_edit.world.render import FAR, RAMP, World, box_of, decode_normals
from latentia.methods.emu_edit.world.sampling import random_background
from latentia.methods.emu_edit.world.scene import Background, Scene, Thing, Writing, overlap, scene_from_json
from latentia.methods.emu_edit.world.shapes import JOINTS, NUM_POSES, form
from latentia.methods.emu_edit.world.vocabulary import (
    CLASS_COLOURS,
    COLOURS,
    FLAT_SHAPES,
    PLAIN,
    SHAPES,
    SPLITS,
    TEXTURES,
    WORDS,
    allowed_pairs,
    own_pairs,
    split_of_pair,
)
from latentia.methods.emu_edit.world.writing import fonts

GREY = Background("plain", "grey")
STAR = Thing("star", "red", "dotted", 2, 0.4, 0.4)
BLOCK = Thing("square", "blue", "plain", 2, 0.55, 0.6)
SCENE = Scene(GREY).with_things([BLOCK, STAR])


def test_things_stand_from_far_to_near():
    assert SCENE.things == (STAR, BLOCK)
    assert SCENE.changed(0, y=0.9).things[1].shape == "star"
    assert SCENE.without(0).things == (BLOCK,)


def test_a_scene_survives_json():
    scene = SCENE._replace(background=Background("photo", "china", 1, 0.25, 0.5, True))
    scene = scene._replace(writing=Writing("JOY", "red", "serif", "top"))
    assert scene_from_json(json.loads(json.dumps(scene))) == scene
    with pytest.raises(InputError, match="expected a scene"):
        scene_from_json([1, 2])


def test_overlap_is_a_share_of_the_smaller_box():
    assert overlap(STAR, STAR) == pytest.approx(1)
    assert overlap(STAR, STAR._replace(x=STAR.x + STAR.side / 2)) == pytest.approx(0.5)
    assert overlap(STAR._replace(x=0.1), STAR._replace(x=0.9)) == 0


@pytest.mark.parametrize("size", [16, 32, 50, 64])
def test_every_thing_has_pixels_at_every_size(size):
    world = World(size)
    for shape in FLAT_SHAPES:
        thing = Thing(shape, "red", "plain", 0, 0.5, 0.5)
        mask = world.full_mask(thing)
        assert mask.sum() >= 0.15 * world.sides[0] ** 2
        left, top, right, bottom = box_of(mask)
        assert abs((left + right) / 2 - size / 2) <= 1.5 + 0.1 * world.sides[0]
        assert abs((top + bottom) / 2 - size / 2) <= 1.5 + 0.1 * world.sides[0]


def test_a_picture_is_drawn_the_same_twice_and_only_where_its_things_are():
    world = World(64)
    picture = world.picture(SCENE)
    assert picture.dtype == np.uint8
    assert picture.shape == (64, 64, 3)
    assert np.array_equal(picture, World(64).picture(SCENE))
    empty = (picture == PLAIN["grey"]).all(axis=-1)
    assert not empty[world.masks(SCENE)[0]].any()
    assert empty[0].all()
    assert empty[:, -1].all()


def test_masks_are_exact_and_never_overlap():
    world = World(64)
    star, block = world.masks(SCENE)
    assert not (star & block).any()
    assert np.array_equal(star | block, world.full_mask(STAR) | world.full_mask(BLOCK))
    assert np.array_equal(block, world.full_mask(BLOCK))  # the nearer one
    assert [np.array_equal(world.mask(SCENE, i), mask) for i, mask in enumerate((star, block))] == [True, True]
    shares = world.visible_shares(SCENE)
    assert shares[1] == 1
    assert 0.4 < shares[0] < 1


def test_a_box_encloses_its_mask_tightly():
    world = World(64)
    left, top, right, bottom = world.box(SCENE, 1)
    mask = world.mask(SCENE, 1)
    assert mask[top:bottom, left:right].sum() == mask.sum()
    assert mask[top].any()
    assert mask[bottom - 1].any()
    assert mask[:, left].any()
    assert mask[:, right - 1].any()
    assert box_of(np.zeros((4, 4), dtype=bool)) == (0, 0, 0, 0)


def test_depth_rises_to_the_eye_and_with_the_ground():
    world = World(64)
    near = world.nearness(SCENE)
    assert near[0, 0] == pytest.approx(FAR + RAMP / 128)
    assert (np.diff(near[:, 63]) > 0).all()
    star, block = world.masks(SCENE)
    assert near[star].min() > near[~(star | block)].max()
    assert near[block].mean() > near[star].mean()
    assert 0 <= near.min() <= near.max() <= 1


def test_normals_are_unit_vectors_and_survive_the_map():
    world = World(64)
    normals = world.normals(SCENE)
    assert np.allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    assert np.allclose(normals[0, 0], (0, 0, 1), atol=0.01)
    shaped = form("circle", 27)
    left, right = shaped.normals[13, 3], shaped.normals[13, 23]
    assert left[0] < -0.1
    assert right[0] > 0.1  # the sides of a ball face left and right
    assert shaped.normals[3, 13][1] > 0.1  # its upper side faces up
    assert np.allclose(decode_normals((shaped.normals + 1) * 127.5), shaped.normals, atol=1e-4)


def test_maps_agree_with_the_masks():
    world = World(64)
    star, block = world.masks(SCENE)
    classes = world.class_map(SCENE)
    assert (classes[star] == CLASS_COLOURS["star"]).all()
    assert (classes[block] == CLASS_COLOURS["square"]).all()
    assert not classes[~(star | block)].any()
    sketch = world.sketch(SCENE)
    assert (sketch[0, 0] == 255).all()
    assert sketch.min() < 60
    assert len(set(CLASS_COLOURS.values())) == len(SHAPES)


def test_key_points_lie_on_their_thing():
    world = World(64)
    person = Thing("person", "green", "plain", 3, 0.5, 0.5, 2)
    scene = Scene(GREY, (person,))
    points = world.key_points(scene)[0]
    assert points.shape == (len(JOINTS), 2)
    mask = world.full_mask(person)
    for x, y in points:
        assert mask[max(int(y) - 2, 0) : int(y) + 3, max(int(x) - 2, 0) : int(x) + 3].any()
    corners = world.key_points(SCENE)[1]
    assert np.allclose(corners[0], corners[1:].mean(axis=0), atol=0.5)


def test_poses_differ_and_only_persons_are_in_pose_maps():
    world = World(64)
    drawn = [
        world.pose_map(Scene(GREY, (Thing("person", "red", "plain", 3, 0.5, 0.5, pose), STAR))).tobytes()
        for pose in range(NUM_POSES)
    ]
    assert len(set(drawn)) == NUM_POSES
    assert not world.pose_map(SCENE).any()


@pytest.mark.parametrize("place", ["top", "middle", "bottom"])
def test_words_fit_and_differ(place):
    world = World(32)
    drawn = set()
    for word in WORDS:
        scene = Scene(GREY, (), Writing(word, "red", "sans", place))
        drawn.add(world.picture(scene).tobytes())
        assert 20 < world.writing_mask(scene).sum() < 32 * 32 / 2
    assert len(drawn) == len(WORDS)
    by_font = {world.picture(Scene(GREY, (), Writing("HOME", "red", font, place))).tobytes() for font in fonts()}
    assert len(by_font) == len(fonts())


def test_without_matplotlib_pillow_writes(monkeypatch):
    from latentia.methods.emu_edit.world import writing

    monkeypatch.setattr(writing, "_folder", lambda: None)
    writing.fonts.cache_clear()
    assert writing.fonts() == ("sans",)
    letters, edged = writing._letters.__wrapped__("GO", "sans", 64)
    assert letters.max() > 0.9
    assert (edged >= letters - 1e-6).all()
    writing.fonts.cache_clear()


def test_backgrounds():
    assert photos_of("train") == ("astronaut", "china", "flower", "motorcycle", "rocket")
    assert photos_of("select") == ("chelsea",)
    assert set(photos_of("test")) <= {"coffee", "grace_hopper"}
    for zoom in range(len(ZOOMS)):
        for corner in (0.0, 1.0):
            assert backdrop(Background("photo", "rocket", zoom, corner, corner), 32).shape == (32, 32, 3)
    pictures = {backdrop(Background("scenery", name), 32).tobytes() for name in SCENERIES}
    assert len(pictures) == len(SCENERIES)
    straight = backdrop(Background("photo", "china", 0, 0.0, 0.0), 32)
    assert np.allclose(straight, backdrop(Background("photo", "china", 0, 1.0, 0.0, True), 32)[:, ::-1])
    with pytest.raises(UnknownChoiceError, match="meadow"):
        backdrop(Background("scenery", "medow"), 32)


def test_training_varies_its_photographs_and_the_others_show_theirs_as_they_are():
    crop = Background("photo", photos_of("train")[0], 1, 0.4, 0.3)
    plain = backdrop(crop, 32)
    toned = [backdrop(crop._replace(tone=tone), 32) for tone in range(TONES)]
    assert np.array_equal(toned[0], plain)
    assert len({picture.tobytes() for picture in toned}) == TONES == 6 * 2 * 2 * len(CONTRASTS)
    whole = [picture for picture in toned if np.array_equal(np.sort(picture, axis=None), np.sort(plain, axis=None))]
    assert len(whole) == TONES // len(CONTRASTS)  # channels exchanged, turned: no value is new
    assert min(picture.min() for picture in toned) >= 0
    assert max(picture.max() for picture in toned) <= 255
    tones = {split: {random_background(Random(seed), split).tone for seed in range(400)} for split in SPLITS}
    assert tones["select"] == tones["test"] == {0}
    assert len(tones["train"]) > TONES * 0.9


def test_held_out_pairs_part_the_world():
    for names in (SHAPES, WORDS):
        owned = {split: set(own_pairs(names, split)) for split in SPLITS}
        assert sum(map(len, owned.values())) == len(names) * len(COLOURS)
        for name in names:
            by_split = [split_of_pair(name, colour) for colour in COLOURS]
            assert [by_split.count(split) for split in SPLITS] == [6, 1, 1]
        for colour in COLOURS:
            assert sum((name, colour) in owned["train"] for name in names) >= len(names) // 2
        assert set(allowed_pairs(names, "train")) == owned["train"]
        assert set(allowed_pairs(names, "test")) == owned["train"] | owned["test"]
        assert not set(allowed_pairs(names, "test")) & owned["select"]


def test_colours_and_textures_look_different():
    world = World(64)
    pictures = {
        world.picture(Scene(GREY, (Thing("circle", colour, texture, 2, 0.5, 0.5),))).tobytes()
        for colour in COLOURS
        for texture in TEXTURES
    }
    assert len(pictures) == len(COLOURS) * len(TEXTURES)


@pytest.mark.parametrize("size", [0, 15, 2.5, True])
def test_bad_sizes(size):
    with pytest.raises(InputError):
        World(size)
