"""The free-form tasks: global, style, text."""

from random import Random

import numpy as np

from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.tasks.building import edited_region, whole_picture
from latentia.methods.emu_edit.tasks.effects import GLOBAL, STYLE, Effect
from latentia.methods.emu_edit.tasks.scoring import nearest, region, verdict
from latentia.methods.emu_edit.tasks.task import Task
from latentia.methods.emu_edit.world.captions import caption
from latentia.methods.emu_edit.world.grammar import say
from latentia.methods.emu_edit.world.phrasings import EFFECT_NAMES, STYLES, TEXT_PLACE_WORDS
from latentia.methods.emu_edit.world.render import World
from latentia.methods.emu_edit.world.sampling import (
    Rejected,
    may_show,
    random_scene,
)
from latentia.methods.emu_edit.world.scene import Scene, Writing, scene_from_json
from latentia.methods.emu_edit.world.vocabulary import COLOURS, TEXT_PLACES, WORDS, own_pairs
from latentia.methods.emu_edit.world.writing import fonts

LEAST_ERROR = 6e-4
"""Least mean squared change, values in [0, 1], that counts as a change of the whole picture."""

LEAST_VISIBLE = 0.8
"""Least share of every thing that writing leaves visible."""

# --- global: the whole picture changes in a way that no mask describes ----------------------------------------------


def make_global(rng: Random, world: World, split: str) -> Row:
    """Night, fog, rain, … over the whole scene."""
    return effect_row(rng, world, split, "global", GLOBAL, rng.choice(tuple(GLOBAL)))


def score_global(row: Row, edited: np.ndarray) -> dict[str, float]:
    """Read the effect: the nearest of all of them, and the input."""
    return score_effect(row, edited, GLOBAL)


def effect_row(
    rng: Random,
    world: World,
    split: str,
    task: str,
    effects: dict[str, Effect],
    name: str,
    kind: str = "",
    slots: dict[str, str] | None = None,
) -> Row:
    """The row of an effect on the whole picture; raises `Rejected` where it changes too little."""
    scene, _ = random_scene(rng, world, split)
    image = world.picture(scene)
    target = effects[name](image)
    if float(np.square(image.astype(np.float32) - target).mean()) < LEAST_ERROR * 255 * 255:
        raise Rejected("unchanged")
    kind = kind or f"{task}/{name}"
    instruction = say(kind, split, rng, **(slots or {}))
    before = caption(scene, rng)
    meta = {"kind": kind, "scene": scene, "effect": name, "original_object": "picture", "edited_object": name}
    return whole_picture(world, task, image, instruction, target, (before, f"{before} , {name}"), meta)


def score_effect(row: Row, edited: np.ndarray, effects: dict[str, Effect]) -> dict[str, float]:
    """Read which effect was applied: the nearest of all of them, and the input."""
    pictures = [row.target, row.image]
    pictures += [effect(row.image) for name, effect in effects.items() if name != row.meta["effect"]]
    return verdict(row, edited, nearest(edited, pictures, row.mask) == 0)


# --- style: the picture in another manner ---------------------------------------------------------------------------


def make_style(rng: Random, world: World, split: str) -> Row:
    """Pixel art, poster, oil, … with the structure kept."""
    name = rng.choice(tuple(STYLES))
    return effect_row(rng, world, split, "style", STYLE, name, "style", {"style": rng.choice(STYLES[name])})


def score_style(row: Row, edited: np.ndarray) -> dict[str, float]:
    """Read the style: the nearest of all of them, and the input."""
    return score_effect(row, edited, STYLE)


# --- text: a word is added, removed, replaced, recoloured, or set in another font -----------------------------------


def make_text(rng: Random, world: World, split: str) -> Row:
    """One of the five changes to a word; the new (word, colour) pair is the split's own."""
    kinds = ("add", "remove", "replace", "recolour", "font")
    kind = kinds[int(rng.random() * (len(kinds) if len(fonts()) > 1 else len(kinds) - 1))]
    scene, _ = random_scene(rng, world, split, others=int(rng.random() * 2))
    pairs = own_pairs(WORDS, split)
    word, colour = pairs[int(rng.random() * len(pairs))]
    font = "sans" if kind == "add" else rng.choice(fonts())
    written = Writing(word, colour, font, _free_place(rng, world, scene))
    before, after, slots = _text_change(rng, split, kind, scene, written)
    old, new = before.writing, after.writing
    meta = {"original_object": old.word if old else "", "edited_object": new.word if new else ""}
    return edited_region(rng, world, split, "text", f"text/{kind}", before, after, slots, meta)


def _free_place(rng: Random, world: World, scene: Scene) -> str:
    """A place where a wide word leaves the things visible; raises `Rejected`."""
    places = list(TEXT_PLACES)
    rng.shuffle(places)
    for place in places:
        tried = scene._replace(writing=Writing("HOME", "black", "sans", place))
        if min(world.visible_shares(tried)) >= LEAST_VISIBLE:
            return place
    raise Rejected("hidden")


def _text_change(
    rng: Random, split: str, kind: str, scene: Scene, written: Writing
) -> tuple[Scene, Scene, dict[str, str]]:
    """Before, after, and the words of the instruction."""
    with_word = scene._replace(writing=written)
    if kind == "add":
        place = rng.choice(TEXT_PLACE_WORDS[written.place])
        return scene, with_word, {"word": written.word, "colour": written.colour, "place": place}
    if kind == "remove":
        return with_word, scene, {"word": written.word}
    if kind == "replace":
        word = rng.choice([w for w in WORDS if w != written.word and may_show(w, written.colour, split)])
        return scene._replace(writing=written._replace(word=word)), with_word, {"word": word, "new": written.word}
    if kind == "recolour":
        options = [c for c in COLOURS if c != written.colour and may_show(written.word, c, split)]
        old = scene._replace(writing=written._replace(colour=rng.choice(options)))
        return old, with_word, {"colour": written.colour}
    font = rng.choice([name for name in fonts() if name != written.font])
    return scene._replace(writing=written._replace(font=font)), with_word, {"font": written.font}


def score_text(row: Row, edited: np.ndarray) -> dict[str, float]:
    """Read the text by matching templates: every word, every colour and every font in the place of the right one."""
    world, after = World.of(len(row.image)), scene_from_json(row.meta["after"])
    written = after.writing
    options: list[Writing | None] = [None]
    if written is not None:
        options += [written._replace(word=word) for word in WORDS]
        options += [written._replace(colour=colour) for colour in COLOURS]
        options += [written._replace(font=font) for font in fonts()]
    pictures = [row.target, row.image]
    pictures += [world.picture(after._replace(writing=one)) for one in options if one != written]
    return verdict(row, edited, nearest(edited, pictures, region(row.mask)) == 0)


FREE_FORM_TASKS = (
    Task("global", "free-form", tuple(f"global/{name}" for name in EFFECT_NAMES), make_global, score_global),
    Task("style", "free-form", ("style",), make_style, score_style),
    Task(
        "text",
        "free-form",
        ("text/add", "text/remove", "text/replace", "text/recolour", "text/font"),
        make_text,
        score_text,
    ),
)
