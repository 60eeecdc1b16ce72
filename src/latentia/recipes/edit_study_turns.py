"""Ten edits of one scene, one after the other, with and without the thresholding rule: what happens elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from latentia.core.rng import derive_seed
from latentia.data.decode import to_unit
from latentia.methods.emu_edit.engine import MAX_ATTEMPTS
from latentia.methods.emu_edit.tasks.building import changed, the
from latentia.methods.emu_edit.tasks.scoring import squared_error
from latentia.methods.emu_edit.world.grammar import say
from latentia.methods.emu_edit.world.render import World
from latentia.methods.emu_edit.world.sampling import Rejected, may_show, random_scene
from latentia.methods.emu_edit.world.vocabulary import COLOURS

if TYPE_CHECKING:
    from latentia.methods.emu_edit.pipeline import EmuEditPipeline
    from latentia.methods.emu_edit.thresholding import Thresholding
    from latentia.methods.emu_edit.world.scene import Scene

TURNS = 10
TASK = "local"


@dataclass(frozen=True, slots=True)
class Chain:
    """One picture and what is done to it.

    Attributes:
        image: at first, uint8 (H, W, 3).
        instructions: one a turn.
        targets: how it then looks.
        masks: which pixels any turn up to this one edits, bool (H, W).
    """

    image: np.ndarray
    instructions: tuple[str, ...]
    targets: tuple[np.ndarray, ...]
    masks: tuple[np.ndarray, ...]


def chain(size: int, seed: int, index: int, split: str = "test", turns: int | None = None) -> Chain:
    """Things of one scene, recoloured in turn (`TURNS` times by default); a function of its arguments alone."""
    for attempt in range(MAX_ATTEMPTS):
        try:
            rng = Random(derive_seed("turns", seed, split, index, attempt))
            return _chain(rng, World.of(size), split, turns or TURNS)
        except Rejected:
            continue
    raise Rejected(f"{MAX_ATTEMPTS} attempts gave no chain of turns")


def _chain(rng: Random, world: World, split: str, turns: int) -> Chain:
    scene, _ = random_scene(rng, world, split)
    began, first = scene, world.picture(scene)
    picture = first
    edited = np.zeros(picture.shape[:2], dtype=bool)
    instructions, targets, masks = [], [], []
    for turn in range(turns):
        after, instruction = _recoloured(rng, scene, turn, split, began)
        before, picture = picture, world.picture(after)
        edited = edited | changed(before, picture)
        scene = after
        instructions.append(instruction)
        targets.append(picture)
        masks.append(edited)
    return Chain(first, tuple(instructions), tuple(targets), tuple(masks))


def _recoloured(rng: Random, scene: Scene, turn: int, split: str, began: Scene) -> tuple[Scene, str]:
    """The scene with another thing recoloured, not as it was at first, and the words for it; raises `Rejected`."""
    index = turn % len(scene.things)
    thing = scene.things[index]
    known = (thing.colour, began.things[index].colour)
    colours = [name for name in COLOURS if name not in known and may_show(thing.shape, name, split)]
    named, _ = the(scene, index, rng)
    new = rng.choice(colours)
    return scene.changed(index, colour=new), say("local/recolour", split, rng, the=named, colour=new)


def take_turns(
    pipe: EmuEditPipeline,
    chains: Sequence[Chain],
    rule: Thresholding | None,
    seed: int,
    task: str = TASK,
    **options: Any,
) -> list[list[np.ndarray]]:
    """Every turn's pictures: for each turn those of all chains, each edited from what the turn before left."""
    pictures = [each.image for each in chains]
    made: list[list[np.ndarray]] = []
    for turn in range(len(chains[0].instructions)):
        out: Any = pipe(
            [Image.fromarray(picture) for picture in pictures],
            [each.instructions[turn] for each in chains],
            task,
            seed=derive_seed("turn", seed, turn) % 2**31,
            thresholding=rule,
            **options,
        )
        pictures = [np.asarray(picture) for picture in out.images]
        made.append(pictures)
    return made


def calibrated(
    pipe: EmuEditPipeline, chains: Sequence[Chain], made: Sequence[np.ndarray], quantile: float = 0.99
) -> Thresholding:
    """The rule with the α that passes over what a first turn changed where nothing was asked for."""
    before = np.stack([each.image for each in chains])
    edited = np.stack([each.masks[0] for each in chains])[..., None]
    again = np.where(edited, before, np.stack(list(made)))
    return pipe.thresholding.calibrated(_tensor(before), again=_tensor(again), quantile=quantile)


def _tensor(pictures: np.ndarray) -> torch.Tensor:
    return to_unit(torch.from_numpy(pictures).movedim(-1, 1).contiguous())


def outside(chains: Sequence[Chain], made: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """Turn by turn, mean |picture − first picture| in [0, 1] over the pixels that no turn so far was to edit."""
    return [
        float(
            np.mean(
                [
                    np.abs(picture.astype(np.float32) - each.image)[~each.masks[turn]].mean() / 255
                    for each, picture in zip(chains, pictures, strict=True)
                ]
            )
        )
        for turn, pictures in enumerate(made)
    ]


def inside(chains: Sequence[Chain], made: Sequence[Sequence[np.ndarray]]) -> list[float]:
    """Turn by turn, the gain over the edited pixels: 1 − e(picture, target) / e(first picture, target)."""
    found = []
    for turn, pictures in enumerate(made):
        shares = []
        for each, picture in zip(chains, pictures, strict=True):
            mask, target = each.masks[turn], each.targets[turn]
            copied = squared_error(each.image, target, mask)
            if copied > 0:
                shares.append(1 - squared_error(picture, target, mask) / copied)
        found.append(float(np.mean(shares)) if shares else 0.0)
    return found


def film(each: Chain, made: Sequence[np.ndarray], shown: Sequence[int] = (0, 2, 4, 6, 9)) -> np.ndarray:
    """The first picture and some turns' in a row, uint8 (H, W', 3)."""
    frames = [each.image, *(made[turn] for turn in shown if turn < len(made))]
    return np.concatenate(frames, axis=1)
