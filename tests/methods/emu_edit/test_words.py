"""Phrasings, their split, and references that fit one thing."""

from random import Random

import pytest

from latentia.errors import UnknownChoiceError
from latentia.methods.emu_edit.tasks.registry import TASKS
from latentia.methods.emu_edit.world.captions import caption
from latentia.methods.emu_edit.world.grammar import frames, kinds, say, split_frames, unfold, words_of
from latentia.methods.emu_edit.world.phrasings import PATTERNS
from latentia.methods.emu_edit.world.references import Reference, describe, exact, phrase, with_article
from latentia.methods.emu_edit.world.render import World
from latentia.methods.emu_edit.world.sampling import Rejected, random_scene
from latentia.methods.emu_edit.world.scene import Background, Scene, Thing, Writing
from latentia.methods.emu_edit.world.vocabulary import SPLITS


def test_a_pattern_unfolds_to_every_combination():
    assert unfold("(|please )(remove|delete) {the}") == (
        "remove {the}",
        "delete {the}",
        "please remove {the}",
        "please delete {the}",
    )


def test_no_held_out_phrasing_is_trained_on_anywhere():
    by_split = {split: {frame for kind in kinds() for frame in frames(kind, split)} for split in SPLITS}
    assert not by_split["train"] & by_split["test"]
    assert not by_split["train"] & by_split["select"]
    assert not by_split["select"] & by_split["test"]
    assert min(map(len, by_split.values())) > 300


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_has_phrasings_in_every_split_of_words_that_are_trained(kind):
    everything = {frame for pattern in PATTERNS[kind] for frame in unfold(pattern)}
    owned = {split: frames(kind, split) for split in SPLITS}
    assert sorted(frame for some in owned.values() for frame in some) == sorted(everything)
    assert len(owned["train"]) >= 10
    known = words_of(owned["train"])
    for split in ("select", "test"):
        assert owned[split]
        assert words_of(owned[split]) <= known


def test_no_phrasing_belongs_to_two_tasks():
    owner: dict[str, str] = {}
    for kind in kinds():
        for split in SPLITS:
            for frame in frames(kind, split):
                assert owner.setdefault(frame, kind.split("/")[0]) == kind.split("/")[0]


def test_tasks_and_grammar_know_the_same_kinds():
    assert sorted(kind for task in TASKS.values() for kind in task.kinds) == sorted(kinds())


def test_the_split_of_frames_depends_on_the_frames_alone():
    some = [f"a {word} b" for word in "uvwxyz"] + [f"c {word} d" for word in "uvwxyz"]
    assert split_frames(some) == split_frames(some[::-1])


def test_say_fills_the_slots():
    assert "the red star" in say("remove", "train", Random(0), the="the red star")
    with pytest.raises(UnknownChoiceError):
        say("remov", "train", Random(0))


RED, BLUE = Thing("star", "red", "plain", 0, 0.2, 0.2), Thing("star", "blue", "striped", 2, 0.7, 0.7)
TWO = Scene(Background("plain", "grey"), (RED, BLUE))


def test_a_reference_fits_by_every_field():
    assert Reference(shape="star").found(TWO) == [0, 1]
    assert Reference(colour="red").found(TWO) == [0]
    assert Reference(size="large").found(TWO) == [1]
    assert Reference(texture="striped").found(TWO) == [1]
    assert Reference(side="left").found(TWO) == [0]
    assert Reference(side="bottom").found(TWO) == [1]
    assert phrase(Reference("star", "blue", "striped", "large", "right"), Random(1)).endswith("blue star on the right")


def test_what_cannot_be_told_apart_is_not_described():
    twins = Scene(TWO.background, (RED, RED._replace(x=0.25)))
    assert describe(twins, 0, Random(0)) is None


def test_descriptions_fit_exactly_one_thing():
    world, rng, told = World.of(32), Random(5), 0
    while told < 150:
        try:
            scene, index = random_scene(rng, world, "train", others=2)
        except Rejected:
            continue
        reference = describe(scene, index, rng)
        if reference is not None:
            told += 1
            assert reference.found(scene) == [index]


def test_captions():
    assert caption(TWO, Random(0)) == "a little red star and a large stripy blue star on a grey background"
    assert caption(Scene(Background("photo", "coffee")), Random(0)) == "only in front of a cup of coffee"
    written = TWO._replace(things=(), writing=Writing("JOY", "red", "serif", "top"))
    assert caption(written, Random(0)).endswith("with the word JOY in red serif letters at the top")
    assert exact(RED) == Reference("star", "red", "", "small")
    assert with_article("orange star") == "an orange star"
