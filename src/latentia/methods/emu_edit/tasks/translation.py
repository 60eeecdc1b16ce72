"""The translation tasks: between a picture and its depth, segmentation, normals, sketch or pose, in both directions.

One task a kind of map; the direction is in the instruction. From a map, the instruction says what the map cannot:
colours, textures and the background; shapes are told apart by the map, so no two things share one.
"""

from collections.abc import Callable
from functools import partial
from random import Random

import numpy as np

from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.tasks.building import whole_picture
from latentia.methods.emu_edit.tasks.scoring import GAIN, mask_iou, measures, nearest
from latentia.methods.emu_edit.tasks.task import Task
from latentia.methods.emu_edit.world.backgrounds import SCENERIES
from latentia.methods.emu_edit.world.captions import caption
from latentia.methods.emu_edit.world.grammar import say
from latentia.methods.emu_edit.world.render import World, decode_normals
from latentia.methods.emu_edit.world.sampling import named_background, random_scene, random_thing
from latentia.methods.emu_edit.world.scene import Background, Scene, scene_from_json
from latentia.methods.emu_edit.world.shapes import NUM_POSES
from latentia.methods.emu_edit.world.vocabulary import CLASS_COLOURS, COLOURS, PLAIN, own_pairs

MAPS: dict[str, Callable[[World, Scene], np.ndarray]] = {
    "depth": World.depth_map,
    "segmap": World.class_map,
    "normal": World.normal_map,
    "sketch": World.sketch,
    "pose": World.pose_map,
}
"""Task → its map of a scene."""

MEAN_ANGLE = 15.0
"""Greatest mean angle between normals of a success, in degrees."""


def make_translation(name: str, rng: Random, world: World, split: str) -> Row:
    """A picture to its map, or a map to its picture, half of the rows each."""
    backwards = rng.random() < 0.5
    subject, others = None, None
    if name == "pose":
        pairs = own_pairs(("person",), split)
        subject = random_thing(rng, pairs[int(rng.random() * len(pairs))])
        others = 0 if backwards else int(rng.random() * 2)
    scene, _ = random_scene(
        rng, world, split, subject, others, named_background(rng) if backwards else None, distinct_shapes=backwards
    )
    picture, drawn = world.picture(scene), MAPS[name](world, scene)
    kind = f"{name}/{'from' if backwards else 'to'}"
    whole, of_map = caption(scene, rng, sizes=False), f"a {name} map of "
    meta = {"kind": kind, "scene": scene}
    if backwards:
        instruction = say(kind, split, rng, scene=whole)
        meta |= {"original_object": name, "edited_object": "picture"}
        return whole_picture(world, name, drawn, instruction, picture, (of_map + whole, whole), meta)
    meta |= {"original_object": "picture", "edited_object": name}
    return whole_picture(world, name, picture, say(kind, split, rng), drawn, (whole, of_map + whole), meta)


def score_translation(name: str, row: Row, edited: np.ndarray) -> dict[str, float]:
    """To a map: its own measure (see `READERS`). From a map: `read`, the share of things and background read right."""
    found = measures(row, edited)
    world, scene = World.of(len(row.image)), scene_from_json(row.meta["scene"])
    if row.meta["kind"].endswith("/from"):
        read = _read_picture(world, scene, row, edited)
        return {"success": float(read == 1 and found["gain"] >= GAIN), "read": read, **found}
    right, own = READERS[name](world, scene, row, edited)
    return {"success": float(right and found["gain"] >= GAIN), **own, **found}


def _read_picture(world: World, scene: Scene, row: Row, edited: np.ndarray) -> float:
    """Share of what the instruction orders that is read right: each thing's colour, and the background."""
    others = [Background("plain", name) for name in PLAIN] + [Background("scenery", name) for name in SCENERIES]
    masks = world.masks(scene)
    behind = ~np.any(masks, axis=0) if masks else np.ones(row.image.shape[:2], dtype=bool)
    pictures = [row.target, row.image]
    pictures += [world.picture(scene._replace(background=one)) for one in others if one != scene.background]
    right = [nearest(edited, pictures, behind) == 0]
    for index, thing in enumerate(scene.things):
        pictures = [row.target, row.image]
        pictures += [world.picture(scene.changed(index, colour=c)) for c in COLOURS if c != thing.colour]
        right.append(nearest(edited, pictures, masks[index]) == 0)
    return sum(right) / len(right)


Reading = tuple[bool, dict[str, float]]


def _read_depth(world: World, scene: Scene, row: Row, edited: np.ndarray) -> Reading:
    """`depth_error`: mean absolute error of the nearness, in [0, 1]."""
    error = np.abs(edited.astype(np.float32).mean(axis=-1) / 255 - world.nearness(scene)).mean()
    return True, {"depth_error": max(0.0, float(error) - 0.25 / 255)}


def _read_normals(world: World, scene: Scene, row: Row, edited: np.ndarray) -> Reading:
    """`angle`: mean angle to the true normals on the things, in degrees."""
    on = np.any(world.masks(scene), axis=0) if scene.things else np.zeros(row.image.shape[:2], dtype=bool)
    cosine = (decode_normals(edited) * world.normals(scene)).sum(axis=-1)[on]
    angle = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()) if cosine.size else 0.0
    return angle <= MEAN_ANGLE, {"angle": angle}


def _read_classes(world: World, scene: Scene, row: Row, edited: np.ndarray) -> Reading:
    """`miou`: mean intersection over union over the classes of the true map and the background, nearest colours."""
    colours = np.array([(0, 0, 0), *CLASS_COLOURS.values()], dtype=np.float32)

    def classes(picture: np.ndarray) -> np.ndarray:
        return np.square(picture.astype(np.float32)[:, :, None] - colours).sum(axis=-1).argmin(axis=-1)

    read, true = classes(edited), classes(row.target)
    miou = float(np.mean([mask_iou(read == k, true == k) for k in np.unique(true)]))
    return miou >= 0.5, {"miou": miou}


def _read_lines(world: World, scene: Scene, row: Row, edited: np.ndarray) -> Reading:
    """`line_iou`: intersection over union of the dark pixels."""
    iou = mask_iou(edited.mean(axis=-1) < 150, row.target.mean(axis=-1) < 150)
    return iou >= 0.5, {"line_iou": iou}


def _read_pose(world: World, scene: Scene, row: Row, edited: np.ndarray) -> Reading:
    """`pose`: share of the persons whose pose is read right, the nearest of all poses."""
    right = []
    for index, thing in enumerate(scene.things):
        if thing.shape == "person":
            others = [scene.changed(index, pose=pose) for pose in range(NUM_POSES) if pose != thing.pose]
            pictures = [row.target, row.image, *(world.pose_map(other) for other in others)]
            right.append(nearest(edited, pictures, np.ones(row.image.shape[:2], dtype=bool)) == 0)
    share = sum(right) / len(right)
    return share == 1, {"pose": share}


READERS: dict[str, Callable[[World, Scene, Row, np.ndarray], Reading]] = {
    "depth": _read_depth,
    "segmap": _read_classes,
    "normal": _read_normals,
    "sketch": _read_lines,
    "pose": _read_pose,
}
"""Task → what is read from a map: whether it is right, and its measure."""

TRANSLATION_TASKS = tuple(
    Task(
        name,
        "vision",
        (f"{name}/to", f"{name}/from"),
        partial(make_translation, name),
        partial(score_translation, name),
    )
    for name in MAPS
)
