"""The region tasks: local, texture, add, remove, background."""

from random import Random

import numpy as np

from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.tasks.building import a_new, edited_region, the
from latentia.methods.emu_edit.tasks.scoring import nearest, region, verdict
from latentia.methods.emu_edit.tasks.task import Task
from latentia.methods.emu_edit.world.backgrounds import SCENERIES
from latentia.methods.emu_edit.world.phrasings import BESIDE_WORDS, MARKS, PLACE_WORDS, SCENERY_WORDS
from latentia.methods.emu_edit.world.references import TEXTURE_WORDS
from latentia.methods.emu_edit.world.render import World
from latentia.methods.emu_edit.world.sampling import (
    COVERED,
    MARGIN,
    Rejected,
    check_seen,
    inside,
    may_show,
    named_background,
    random_scene,
    random_thing,
)
from latentia.methods.emu_edit.world.scene import Background, Scene, Thing, overlap, scene_from_json
from latentia.methods.emu_edit.world.vocabulary import (
    COLOURS,
    FLAT_SHAPES,
    LARGE,
    PLACES,
    PLAIN,
    SIZES,
    SMALL,
    TEXTURES,
    own_pairs,
)

HALF = len(SIZES) // 2

# --- local: one thing gets another colour, shape or size ------------------------------------------------------------


def make_local(rng: Random, world: World, split: str) -> Row:
    """Recolour, swap, enlarge or shrink one thing."""
    kind = ("recolour", "swap", "recolour", "swap", "grow", "shrink")[int(rng.random() * 6)]
    return {"recolour": _recolour, "swap": _swap}.get(kind, _resize)(rng, world, split, kind)


def _recolour(rng: Random, world: World, split: str, kind: str) -> Row:
    scene, index = random_scene(rng, world, split)
    thing = scene.things[index]
    # The new pair is the held-out one; the old one, drawn afresh, any that may be shown.
    new = thing.colour
    old = rng.choice([colour for colour in COLOURS if colour != new and may_show(thing.shape, colour, split)])
    before = scene.changed(index, colour=old)
    named, reference = the(before, index, rng)
    return _local(rng, world, split, kind, before, scene, index, {"the": named, "colour": new}, reference)


def _swap(rng: Random, world: World, split: str, kind: str) -> Row:
    scene, index = random_scene(rng, world, split, persons=False)
    thing = scene.things[index]
    shape = rng.choice([other for other in FLAT_SHAPES if other != thing.shape])
    colours = [c for c in COLOURS if may_show(shape, c, split)]
    before = scene.changed(index, shape=shape, colour=rng.choice(colours), texture="plain")
    check_seen(world, before)
    named, reference = the(before, index, rng)
    slots = {"the": named, "a": a_new(thing, rng, sized=False)}
    return _local(rng, world, split, kind, before, scene, index, slots, reference)


def _resize(rng: Random, world: World, split: str, kind: str) -> Row:
    pairs = own_pairs(FLAT_SHAPES, split)
    size = int(rng.random() * HALF) + (HALF if kind == "shrink" else 0)
    subject = random_thing(rng, pairs[int(rng.random() * len(pairs))], size, "plain")
    other = size + (HALF if kind == "grow" else -HALF)
    # Placed at its larger size, so that it fits at both.
    larger = subject._replace(size=max(size, other))
    scene, index = random_scene(rng, world, split, subject=larger, others=int(rng.random() * 3))
    things = list(scene.things)
    small = things[index]._replace(size=min(size, other))
    shrunk = scene.with_things([*things[:index], small, *things[index + 1 :]])
    check_seen(world, shrunk)
    before, after = (shrunk, scene) if kind == "grow" else (scene, shrunk)
    at = before.things.index(small if kind == "grow" else things[index])
    named, reference = the(before, at, rng)
    return _local(rng, world, split, kind, before, after, at, {"the": named}, reference)


def _local(
    rng: Random,
    world: World,
    split: str,
    kind: str,
    before: Scene,
    after: Scene,
    index: int,
    slots: dict[str, str],
    reference: tuple[str, ...],
) -> Row:
    old = before.things[index]
    new = next(thing for thing in after.things if (thing.x, thing.y) == (old.x, old.y))
    meta = {
        "subject": index,
        "reference": reference,
        "result": after.things.index(new),
        "original_object": f"{old.colour} {old.shape}",
        "edited_object": f"{new.colour} {new.shape}",
    }
    return edited_region(rng, world, split, "local", f"local/{kind}", before, after, slots, meta)


def score_local(row: Row, edited: np.ndarray) -> dict[str, float]:
    """Read colour, shape or size: the nearest of all the thing might have become, among them what it was."""
    world, after = World.of(len(row.image)), scene_from_json(row.meta["after"])
    index, kind = row.meta["result"], row.meta["kind"].split("/")[1]
    thing = after.things[index]
    if kind == "recolour":
        options = [thing._replace(colour=colour) for colour in COLOURS]
    elif kind == "swap":
        options = [thing._replace(shape=shape) for shape in FLAT_SHAPES]
        options += [thing._replace(colour=colour) for colour in COLOURS if colour != thing.colour]
    else:
        options = [thing._replace(size=size) for size in range(len(SIZES))]
    return verdict(row, edited, _reads(row, edited, world, after, index, options), "read")


def _reads(row: Row, edited: np.ndarray, world: World, after: Scene, index: int, options: list[Thing]) -> bool:
    """Whether the target is nearer than the input, than it without the thing, and than it with any other option."""
    rest = list(after.things)
    pictures = [row.target, row.image, world.picture(after.without(index))]
    for option in options:
        if option != after.things[index]:
            pictures.append(world.picture(after.with_things([*rest[:index], option, *rest[index + 1 :]])))
    return nearest(edited, pictures, region(row.mask)) == 0


# --- texture: one thing's surface changes, its outline and colour stay ----------------------------------------------


def make_texture(rng: Random, world: World, split: str) -> Row:
    """Give a large thing a pattern, or take its pattern away."""
    pairs = own_pairs(FLAT_SHAPES, split)
    size = HALF + int(rng.random() * HALF)
    subject = random_thing(rng, pairs[int(rng.random() * len(pairs))], size)
    before, index = random_scene(rng, world, split, subject=subject)
    thing = before.things[index]
    texture = rng.choice([one for one in TEXTURES if one != thing.texture])
    named, reference = the(before, index, rng)
    slots = {"the": named}
    if texture != "plain":
        slots |= {"texture": rng.choice(TEXTURE_WORDS[texture]), "marks": rng.choice(MARKS[texture])}
    meta = {
        "subject": index,
        "reference": reference,
        "original_object": f"{thing.texture} {thing.colour} {thing.shape}",
        "edited_object": f"{texture} {thing.colour} {thing.shape}",
    }
    kind = "texture/plain" if texture == "plain" else "texture/pattern"
    return edited_region(
        rng, world, split, "texture", kind, before, before.changed(index, texture=texture), slots, meta
    )


def score_texture(row: Row, edited: np.ndarray) -> dict[str, float]:
    """Read the texture: the nearest of the four, of the thing absent, and of the input."""
    after, index = scene_from_json(row.meta["after"]), row.meta["subject"]
    options = [after.things[index]._replace(texture=texture) for texture in TEXTURES]
    return verdict(row, edited, _reads(row, edited, World.of(len(row.image)), after, index, options))


# --- add: a new thing at a named place, or beside another -----------------------------------------------------------


def make_add(rng: Random, world: World, split: str) -> Row:
    """Add a thing, fully described, where there is room."""
    before, _ = random_scene(rng, world, split, others=int(rng.random() * 2))
    pairs = own_pairs(FLAT_SHAPES, split)
    thing = random_thing(rng, pairs[int(rng.random() * len(pairs))], (SMALL, LARGE)[int(rng.random() * 2)])
    if rng.random() < 0.4:
        index = int(rng.random() * len(before.things))
        named, reference = the(before, index, rng)
        side, new = _first_free(
            rng, before, {side: _beside(thing, before.things[index], side) for side in BESIDE_WORDS}
        )
        kind, slots = "add/beside", {"the": named, "beside": rng.choice(BESIDE_WORDS[side])}
    else:
        reference = None
        place, new = _first_free(
            rng, before, {name: inside(thing._replace(x=x, y=y)) for name, (x, y) in PLACES.items()}
        )
        kind, slots = "add/place", {"place": rng.choice(PLACE_WORDS[place])}
    after = before.with_things([*before.things, new])
    check_seen(world, after)
    meta = {
        "result": after.things.index(new),
        "reference": reference,
        "original_object": "",
        "edited_object": f"{new.colour} {new.shape}",
    }
    return edited_region(rng, world, split, "add", kind, before, after, {**slots, "a": a_new(new, rng)}, meta)


def _first_free(rng: Random, scene: Scene, options: dict[str, Thing | None]) -> tuple[str, Thing]:
    """A random one of the places where the new thing hardly touches another; raises `Rejected`."""
    names = list(options)
    rng.shuffle(names)
    for name in names:
        put = options[name]
        if put is not None and all(overlap(put, thing) <= COVERED / 2 for thing in scene.things):
            return name, put
    raise Rejected("no room")


def _beside(new: Thing, thing: Thing, side: str) -> Thing | None:
    """`new` next to `thing`, a small gap between their boxes; None where the picture ends."""
    away = (new.side + thing.side) / 2 + 0.01
    right, down = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}[side]
    put = new._replace(x=thing.x + right * away, y=thing.y + down * away)
    least = put.side / 2 + MARGIN / 2
    return put if least <= put.x <= 1 - least and least <= put.y <= 1 - least else None


def score_add(row: Row, edited: np.ndarray) -> dict[str, float]:
    """Is the object there: the nearest of it, of it in every other colour and shape, and of nothing."""
    after, index = scene_from_json(row.meta["after"]), row.meta["result"]
    thing = after.things[index]
    options = [thing._replace(colour=colour) for colour in COLOURS]
    options += [thing._replace(shape=shape) for shape in FLAT_SHAPES if shape != thing.shape]
    return verdict(row, edited, _reads(row, edited, World.of(len(row.image)), after, index, options), "there")


# --- remove: one thing goes, what lay behind it is seen -------------------------------------------------------------


def make_remove(rng: Random, world: World, split: str) -> Row:
    """Remove one thing."""
    before, index = random_scene(rng, world, split)
    thing = before.things[index]
    named, reference = the(before, index, rng)
    meta = {
        "subject": index,
        "reference": reference,
        "original_object": f"{thing.colour} {thing.shape}",
        "edited_object": "",
    }
    return edited_region(rng, world, split, "remove", "remove", before, before.without(index), {"the": named}, meta)


def score_remove(row: Row, edited: np.ndarray) -> dict[str, float]:
    """Is the object gone: nearer to the picture without it than to the input and to it in any other colour."""
    before, index = scene_from_json(row.meta["scene"]), row.meta["subject"]
    world, thing = World.of(len(row.image)), before.things[index]
    pictures = [row.target, row.image]
    pictures += [world.picture(before.changed(index, colour=c)) for c in COLOURS if c != thing.colour]
    return verdict(row, edited, nearest(edited, pictures, region(row.mask)) == 0, "gone")


# --- background: everything behind the things changes ---------------------------------------------------------------


def make_background(rng: Random, world: World, split: str) -> Row:
    """Put the things on another background, one that words determine."""
    before, _ = random_scene(rng, world, split, others=1 + int(rng.random() * 2))
    background = named_background(rng)
    if background == before.background:
        raise Rejected("unchanged")
    after = before._replace(background=background)
    words = background.name if background.kind == "plain" else SCENERY_WORDS[background.name]
    meta = {"original_object": "background", "edited_object": words}
    kind = f"background/{background.kind}"
    return edited_region(rng, world, split, "background", kind, before, after, {"background": words}, meta)


def score_background(row: Row, edited: np.ndarray) -> dict[str, float]:
    """Read the background: the nearest of all that words can name, and the input; `psnr_outside` is on the things."""
    world, after = World.of(len(row.image)), scene_from_json(row.meta["after"])
    others = [Background("plain", name) for name in PLAIN] + [Background("scenery", name) for name in SCENERIES]
    pictures = [row.target, row.image]
    pictures += [world.picture(after._replace(background=one)) for one in others if one != after.background]
    return verdict(row, edited, nearest(edited, pictures, row.mask) == 0)


REGION_TASKS = (
    Task("local", "region", ("local/recolour", "local/swap", "local/grow", "local/shrink"), make_local, score_local),
    Task("texture", "region", ("texture/pattern", "texture/plain"), make_texture, score_texture),
    Task("add", "region", ("add/place", "add/beside"), make_add, score_add),
    Task("remove", "region", ("remove",), make_remove, score_remove),
    Task("background", "region", ("background/plain", "background/scenery"), make_background, score_background),
)
