"""Random scenes, each with a subject: the thing that the edit is about, of a pair that the split owns.

In `train` every pair is one of training. In `select` and `test` the subject is a pair that training never shows, the
background a photograph that training never shows; the other things come from training's pairs and the split's own.
"""

from functools import lru_cache
from random import Random

from latentia.errors import LatentiaError
from latentia.methods.emu_edit.world.backgrounds import SCENERIES, TONES, ZOOMS, photos_of
from latentia.methods.emu_edit.world.render import World
from latentia.methods.emu_edit.world.scene import Background, Scene, Thing, ordered, overlap
from latentia.methods.emu_edit.world.shapes import NUM_POSES
from latentia.methods.emu_edit.world.vocabulary import (
    FLAT_SHAPES,
    PLAIN,
    SHAPES,
    SIZES,
    TEXTURES,
    allowed_pairs,
    own_pairs,
    split_of_pair,
)

MARGIN = 0.05
"""Least distance of a thing's box from the picture's edge, as a share of the side."""

COVERED = 0.3
"""Greatest common area of two boxes, as a share of the smaller."""

SEEN = 0.62
"""Least visible share of every thing."""

PHOTO_SHARE = 0.7
"""Share of photographs among the backgrounds of training; elsewhere every free background is a photograph."""

TEXTURED = 0.4
_TRIES = 24


class Rejected(LatentiaError):
    """A drawn row does not fulfil what rows must; the message is the reason, and the next attempt follows."""


@lru_cache
def _pairs(split: str, persons: bool) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    shapes = SHAPES if persons else FLAT_SHAPES
    return own_pairs(shapes, split), allowed_pairs(shapes, split)


def may_show(shape: str, colour: str, split: str) -> bool:
    """Whether `split` may show this pair."""
    return split_of_pair(shape, colour) in ("train", split)


def random_background(rng: Random, split: str) -> Background:
    """A free background of the split."""
    if split == "train" and rng.random() > PHOTO_SHARE:
        return named_background(rng)
    photos = photos_of(split)
    name = photos[int(rng.random() * len(photos))]
    zoom = int(rng.random() * len(ZOOMS))
    background = Background("photo", name, zoom, rng.random(), rng.random(), rng.random() < 0.5)
    # Training has five photographs only: varied, so that things are told from any picture, not from these five.
    return background._replace(tone=int(rng.random() * TONES)) if split == "train" else background


def named_background(rng: Random) -> Background:
    """A background that words alone determine."""
    if rng.random() < 0.45:
        return Background("plain", rng.choice(tuple(PLAIN)))
    return Background("scenery", rng.choice(tuple(SCENERIES)))


def random_thing(rng: Random, pair: tuple[str, str], size: int | None = None, texture: str | None = None) -> Thing:
    """A thing of a (shape, colour) pair, not yet placed. Persons are large and plain, small things plain."""
    shape, colour = pair
    half = len(SIZES) // 2
    if shape == "person":
        size, texture = half + (rng.random() < 0.5), "plain"
    elif size is None:
        size = int(rng.random() * len(SIZES))
    if texture is None:
        patterned = size >= half and rng.random() < TEXTURED
        texture = TEXTURES[1 + int(rng.random() * (len(TEXTURES) - 1))] if patterned else "plain"
    return Thing(shape, colour, texture, size, 0.5, 0.5, int(rng.random() * NUM_POSES) if shape == "person" else 0)


def placed(rng: Random, thing: Thing, others: list[Thing], covered: float = COVERED) -> Thing:
    """The thing somewhere in the picture, its box at most `covered` of any other's; raises `Rejected`."""
    for _ in range(_TRIES):
        least = thing.side / 2 + MARGIN
        moved = thing._replace(x=_between(rng, least), y=_between(rng, least))
        if all(overlap(moved, other) <= covered for other in others):
            return moved
    raise Rejected("no room")


def inside(thing: Thing) -> Thing:
    """The thing moved into the picture, as little as needed."""
    least = thing.side / 2 + MARGIN
    return thing._replace(x=min(max(thing.x, least), 1 - least), y=min(max(thing.y, least), 1 - least))


def random_scene(
    rng: Random,
    world: World,
    split: str,
    subject: Thing | None = None,
    others: int | None = None,
    background: Background | None = None,
    persons: bool = True,
    distinct_shapes: bool = False,
) -> tuple[Scene, int]:
    """A scene and the index of its subject.

    Args:
        subject: the thing to be placed; None: one of the split's own pairs.
        others: how many things beside it; None: 0 to 2.
        background: None: a free one of the split.
        persons: whether persons may appear among the drawn things.
        distinct_shapes: no two things of one shape, so that shapes name things.

    Raises `Rejected` when there is no room or something would be hidden.
    """
    own, allowed = _pairs(split, persons)
    first = subject if subject is not None else random_thing(rng, own[int(rng.random() * len(own))])
    count = int(rng.random() * 3) if others is None else others
    things = [placed(rng, first, [])]
    taken = {(first.shape, first.colour)}
    for _ in range(count):
        pair = allowed[int(rng.random() * len(allowed))]
        if pair in taken or (distinct_shapes and any(pair[0] == thing.shape for thing in things)):
            continue
        small = any(not thing.small for thing in things)
        thing = random_thing(rng, pair, int(rng.random() * 2) if small and pair[0] != "person" else None)
        things.append(placed(rng, thing, things))
        taken.add(pair)
    scene = Scene(background if background is not None else random_background(rng, split), ordered(things))
    check_seen(world, scene)
    return scene, scene.things.index(things[0])


def check_seen(world: World, scene: Scene) -> None:
    """Raise `Rejected` when less than `SEEN` of a thing is visible."""
    things = scene.things
    close = any(overlap(a, b) > 0.08 for i, a in enumerate(things) for b in things[:i])
    if (close or scene.writing is not None) and min(world.visible_shares(scene), default=1.0) < SEEN:
        raise Rejected("hidden")


def _between(rng: Random, least: float) -> float:
    return least + rng.random() * (1 - 2 * least)
