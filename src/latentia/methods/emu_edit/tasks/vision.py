"""The vision tasks detect, segment and color: recognition as an edit, and changes of the picture's tone."""

from random import Random
from typing import Any

import numpy as np

from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.tasks.building import changed, the
from latentia.methods.emu_edit.tasks.effects import COLOR
from latentia.methods.emu_edit.tasks.free_form import effect_row, score_effect
from latentia.methods.emu_edit.tasks.scoring import OVERLAP, box_iou, marked, mask_iou, measures
from latentia.methods.emu_edit.tasks.task import Task
from latentia.methods.emu_edit.world.captions import caption
from latentia.methods.emu_edit.world.grammar import say
from latentia.methods.emu_edit.world.phrasings import COLOUR_CHANGE_NAMES
from latentia.methods.emu_edit.world.render import Box, World, box_of
from latentia.methods.emu_edit.world.sampling import random_scene
from latentia.methods.emu_edit.world.scene import Scene
from latentia.methods.emu_edit.world.vocabulary import MARK, PAINT


def _found_row(
    rng: Random,
    world: World,
    split: str,
    task: str,
    scene: Scene,
    index: int,
    target: np.ndarray,
    how: str,
    meta: dict[str, Any],
) -> Row:
    image, thing = world.picture(scene), scene.things[index]
    named, reference = the(scene, index, rng)
    instruction = say(task, split, rng, the=named)
    before = caption(scene, rng)
    meta |= {"kind": task, "scene": scene, "subject": index, "reference": reference, "original_object": ""}
    meta["edited_object"] = f"{thing.colour} {thing.shape}"
    after = f"{before} , {how} {thing.colour} {thing.shape}"
    return Row(image, instruction, target, task, before, after, changed(image, target), meta)


# --- detect: a box around the named thing ---------------------------------------------------------------------------


def thickness(size: int) -> int:
    """Width of a box's line in pixels."""
    return max(1, round(size / 32))


def outer_box(world: World, scene: Scene, index: int) -> Box:
    """The box that is drawn around a thing: one pixel of air and the line, inside the picture."""
    left, top, right, bottom = world.box(scene, index)
    grow = 1 + thickness(world.size)
    return max(left - grow, 0), max(top - grow, 0), min(right + grow, world.size), min(bottom + grow, world.size)


def draw_box(picture: np.ndarray, box: Box) -> np.ndarray:
    """A copy of a picture with the outline of `box` in `MARK`, the line inside the box."""
    drawn, line = picture.copy(), thickness(len(picture))
    left, top, right, bottom = box
    for rows, columns in (
        (slice(top, top + line), slice(left, right)),
        (slice(bottom - line, bottom), slice(left, right)),
        (slice(top, bottom), slice(left, left + line)),
        (slice(top, bottom), slice(right - line, right)),
    ):
        drawn[rows, columns] = MARK
    return drawn


def read_box(before: np.ndarray, after: np.ndarray) -> Box:
    """The box drawn in `after`: around the rows and columns with at least two pixels of `MARK`."""
    mark = marked(before, after, MARK)
    mark &= (mark.sum(axis=1) >= 2)[:, None] & (mark.sum(axis=0) >= 2)[None, :]
    return box_of(mark)


def make_detect(rng: Random, world: World, split: str) -> Row:
    """Draw a box around one thing."""
    scene, index = random_scene(rng, world, split)
    box = outer_box(world, scene, index)
    target = draw_box(world.picture(scene), box)
    return _found_row(rng, world, split, "detect", scene, index, target, "a box around the", {"box": box})


def score_detect(row: Row, edited: np.ndarray) -> dict[str, float]:
    """`box_iou` of the box that is read from the picture with the true one; success from 0.5."""
    left, top, right, bottom = row.meta["box"]
    iou = box_iou(read_box(row.image, edited), (left, top, right, bottom))
    return {"success": float(iou >= OVERLAP), "box_iou": iou, **measures(row, edited)}


# --- segment: the named thing's pixels painted ----------------------------------------------------------------------


def make_segment(rng: Random, world: World, split: str) -> Row:
    """Paint the visible pixels of one thing."""
    scene, index = random_scene(rng, world, split)
    target = world.picture(scene)
    target[world.mask(scene, index)] = PAINT
    return _found_row(rng, world, split, "segment", scene, index, target, "the pixels marked of the", {})


def score_segment(row: Row, edited: np.ndarray) -> dict[str, float]:
    """`mask_iou` of the painted pixels with the thing's; success from 0.5."""
    iou = mask_iou(marked(row.image, edited, PAINT), row.mask)
    return {"success": float(iou >= OVERLAP), "mask_iou": iou, **measures(row, edited)}


# --- color: the tone of the whole picture ---------------------------------------------------------------------------


def make_color(rng: Random, world: World, split: str) -> Row:
    """Brightness, contrast, saturation, temperature, hue, blur, sharpness."""
    return effect_row(rng, world, split, "color", COLOR, rng.choice(tuple(COLOR)))


def score_color(row: Row, edited: np.ndarray) -> dict[str, float]:
    """Read the change: the nearest of all of them, and the input."""
    return score_effect(row, edited, COLOR)


VISION_TASKS = (
    Task("detect", "vision", ("detect",), make_detect, score_detect),
    Task("segment", "vision", ("segment",), make_segment, score_segment),
    Task("color", "vision", tuple(f"color/{name}" for name in COLOUR_CHANGE_NAMES), make_color, score_color),
)
