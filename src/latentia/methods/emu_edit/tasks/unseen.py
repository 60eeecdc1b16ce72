"""Tasks that training never shows: what task inversion learns from a handful of examples.

Super-resolution ×4, contour detection, inpainting of a painted-over region, and add-then-detect. Made and scored like
the sixteen, but in a registry of their own.
"""

from random import Random

import numpy as np
from PIL import Image

from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.tasks.building import changed, whole_picture
from latentia.methods.emu_edit.tasks.effects import edges
from latentia.methods.emu_edit.tasks.region import make_add
from latentia.methods.emu_edit.tasks.scoring import GAIN, OVERLAP, box_iou, mask_iou, measures, verdict
from latentia.methods.emu_edit.tasks.task import Task
from latentia.methods.emu_edit.tasks.vision import draw_box, outer_box, read_box
from latentia.methods.emu_edit.world.captions import caption
from latentia.methods.emu_edit.world.render import World, to_uint8
from latentia.methods.emu_edit.world.sampling import random_scene
from latentia.methods.emu_edit.world.scene import scene_from_json

FACTOR = 4
HOLE = (128, 128, 128)
"""What a painted-over region is filled with."""


def make_super_resolution(rng: Random, world: World, split: str) -> Row:
    """A picture of a quarter the side, enlarged (bicubic), to the picture."""
    scene, _ = random_scene(rng, world, split)
    sharp = Image.fromarray(world.picture(scene))
    small = sharp.resize((max(1, world.size // FACTOR),) * 2, Image.Resampling.BOX)
    image = np.asarray(small.resize(sharp.size, Image.Resampling.BICUBIC)).copy()
    words = caption(scene, rng)
    meta = {"kind": "super-resolution", "scene": scene, "original_object": "picture", "edited_object": "picture"}
    texts = (f"a coarse picture of {words}", words)
    return whole_picture(
        world, "super-resolution", image, "upscale this picture", np.asarray(sharp).copy(), texts, meta
    )


def score_super_resolution(row: Row, edited: np.ndarray) -> dict[str, float]:
    """`gain` is the share of the enlargement's squared error that went; success from 0.2, about 1 dB."""
    found = measures(row, edited)
    return {"success": float(found["gain"] >= 0.2), **found}


def contours(picture: np.ndarray) -> np.ndarray:
    """White edges on black: the luma's gradient, uint8 (H, W, 3)."""
    return to_uint8(edges(picture) * 1.5).repeat(3, axis=-1)


def make_contour(rng: Random, world: World, split: str) -> Row:
    """A picture to its contours, those of the background too."""
    scene, _ = random_scene(rng, world, split)
    image, words = world.picture(scene), caption(scene, rng)
    meta = {"kind": "contour", "scene": scene, "original_object": "picture", "edited_object": "contours"}
    texts = (words, f"the contours of {words}")
    return whole_picture(world, "contour", image, "detect the contours", contours(image), texts, meta)


def score_contour(row: Row, edited: np.ndarray) -> dict[str, float]:
    """`line_iou` of the bright pixels."""
    found, iou = measures(row, edited), mask_iou(edited.mean(axis=-1) > 96, row.target.mean(axis=-1) > 96)
    return {"success": float(iou >= OVERLAP and found["gain"] >= GAIN), "line_iou": iou, **found}


def make_inpaint(rng: Random, world: World, split: str) -> Row:
    """A grey rectangle over part of a thing, to the picture without it."""
    scene, index = random_scene(rng, world, split)
    target, side = world.picture(scene), round(0.28 * world.size)
    left, top, right, bottom = world.box(scene, index)
    x = min(max(round((left + right - side) / 2 + (rng.random() - 0.5) * side), 0), world.size - side)
    y = min(max(round((top + bottom - side) / 2 + (rng.random() - 0.5) * side), 0), world.size - side)
    image, words = target.copy(), caption(scene, rng)
    image[y : y + side, x : x + side] = HOLE
    mask = np.zeros(target.shape[:2], dtype=bool)
    mask[y : y + side, x : x + side] = True
    meta = {"kind": "inpaint", "scene": scene, "original_object": "grey rectangle", "edited_object": ""}
    return Row(image, "fill in the grey rectangle", target, "inpaint", f"{words} , partly hidden", words, mask, meta)


def score_inpaint(row: Row, edited: np.ndarray) -> dict[str, float]:
    """`gain` in the hole; success from 0.5, for what is hidden can only be guessed."""
    found = measures(row, edited)
    return {"success": float(found["gain"] >= 0.5), **found}


def make_add_detect(rng: Random, world: World, split: str) -> Row:
    """Add a thing and draw a box around it."""
    row = make_add(rng, world, split)
    after, index = row.meta["after"], row.meta["result"]
    box = outer_box(world, after, index)
    row.target = draw_box(row.target, box)
    row.mask = changed(row.image, row.target)
    row.task, row.instruction = "add-detect", f"{row.instruction} and mark it with a box"
    row.meta |= {"kind": "add-detect", "box": box}
    row.output_caption = f"{row.output_caption} , a box around the {row.meta['edited_object']}"
    return row


def score_add_detect(row: Row, edited: np.ndarray) -> dict[str, float]:
    """The box is where it should be and the thing in it: `box_iou` and `gain`."""
    left, top, right, bottom = row.meta["box"]
    bare = World.of(len(row.image)).picture(scene_from_json(row.meta["after"]))
    iou = box_iou(read_box(bare, edited), (left, top, right, bottom))
    return {**verdict(row, edited, iou >= OVERLAP, "boxed"), "box_iou": iou}


UNSEEN_TASKS = {
    task.name: task
    for task in (
        Task("super-resolution", "vision", (), make_super_resolution, score_super_resolution),
        Task("contour", "vision", (), make_contour, score_contour),
        Task("inpaint", "region", (), make_inpaint, score_inpaint),
        Task("add-detect", "region", (), make_add_detect, score_add_detect),
    )
}
"""The tasks of task inversion."""
