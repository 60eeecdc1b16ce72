"""What the makers of rows share: names of things in sentences, the changed region, the finished row."""

from random import Random
from typing import Any

import numpy as np

from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.world.captions import caption
from latentia.methods.emu_edit.world.grammar import say
from latentia.methods.emu_edit.world.references import Reference, describe, exact, phrase, with_article
from latentia.methods.emu_edit.world.render import World
from latentia.methods.emu_edit.world.sampling import Rejected
from latentia.methods.emu_edit.world.scene import Scene, Thing

LEAST_CHANGE = 6
"""Fewest pixels that an edit of a region changes."""


def the(scene: Scene, index: int, rng: Random) -> tuple[str, Reference]:
    """`the red square`, fitting that thing alone, and the description behind it; raises `Rejected`."""
    reference = describe(scene, index, rng)
    if reference is None:
        raise Rejected("ambiguous")
    return f"the {phrase(reference, rng)}", reference


def a_new(thing: Thing, rng: Random, sized: bool = True) -> str:
    """`a small red square`: everything that a new thing needs."""
    reference = exact(thing)
    return with_article(phrase(reference if sized else reference._replace(size=""), rng))


def changed(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Pixels that differ, bool (H, W)."""
    return (image != target).any(axis=-1)


def edited_region(
    rng: Random,
    world: World,
    split: str,
    task: str,
    kind: str,
    scene: Scene,
    after: Scene,
    slots: dict[str, str],
    meta: dict[str, Any],
) -> Row:
    """The row of an edit that leads from one scene to another; raises `Rejected` when hardly a pixel changes."""
    image, target = world.picture(scene), world.picture(after)
    mask = changed(image, target)
    if int(mask.sum()) < LEAST_CHANGE:
        raise Rejected("unchanged")
    instruction = say(kind, split, rng, **slots)
    whole: dict[str, Any] = {"kind": kind, "scene": scene, "after": after, **meta}
    return Row(image, instruction, target, task, caption(scene, rng), caption(after, rng), mask, whole)


def whole_picture(
    world: World,
    task: str,
    image: np.ndarray,
    instruction: str,
    target: np.ndarray,
    captions: tuple[str, str],
    meta: dict[str, Any],
) -> Row:
    """The row of an edit of the whole picture: its mask is all True."""
    mask = np.ones((world.size, world.size), dtype=bool)
    return Row(image, instruction, target, task, *captions, mask, meta)
