"""What stands where: told by the world, and learnt from a network's maps."""

import numpy as np
import pytest
import torch

from latentia import EmuEditModel
from latentia.methods.emu_edit.datasets import SceneRows
from latentia.methods.emu_edit.parsing import FIELDS, STEPS, SceneParser
from latentia.methods.emu_edit.world.render import World
from latentia.methods.emu_edit.world.scene import Background, Scene, Thing
from tiny_editor import UNET

STAR = Thing("star", "red", "dotted", 2, 0.4, 0.4)
BLOCK = Thing("square", "blue", "plain", 1, 0.55, 0.6)
SCENE = Scene(Background("plain", "grey")).with_things([BLOCK, STAR])


def test_every_pixel_tells_its_thing_and_where_its_centre_is():
    world = World(64)
    told = world.things(SCENE)
    star, block = world.masks(SCENE)
    assert (told[:4, star].T == [4, 1, 3, 3]).all()  # star, red, dotted, the third size: counted from 1
    assert (told[:4, block].T == [2, 5, 1, 2]).all()
    assert (told[:, ~star & ~block] == 0).all()
    assert np.abs(told[4:].astype(int)).max() <= STEPS / 2
    rows, columns = np.nonzero(block)
    top, left = world.corner(BLOCK)
    side = world.sides[BLOCK.size]
    assert told[4, block] / STEPS * side + side / 2 + top == pytest.approx(rows + 0.5, abs=0.1)
    assert told[5, block] / STEPS * side + side / 2 + left == pytest.approx(columns + 0.5, abs=0.1)


def test_rows_tell_things_when_asked_and_nothing_of_maps():
    rows = SceneRows("train", 60, 32, tasks=("depth", "remove"), parsed=True)
    batch = rows.batch(range(60))
    assert batch["things"].shape == (60, 12, 32, 32)
    assert batch["things"].dtype == torch.int8
    for i in range(60):
        row = rows.row(i)
        before, after = batch["things"][i].chunk(2)
        assert bool((before == -1).all()) == (row.meta["kind"] == "depth/from")
        assert int(after.min()) >= -STEPS / 2
        if row.task == "remove":
            gone = (before[0] > 0) & (before[:4] != after[:4]).any(0)
            assert bool((gone <= torch.from_numpy(row.mask)).all())
            assert bool(gone.any())
    assert "things" not in SceneRows("train", 4, 32).batch([0])


def test_a_parser_that_is_sure_and_right_has_no_loss_and_maps_count_for_nothing():
    unet = EmuEditModel(unet=UNET, sample_size=16, in_channels=3, patch_size=2, copy_gate=True).unet
    parser = SceneParser(unet)
    things = torch.from_numpy(World(16).things(SCENE))[None]
    said = torch.zeros(1, sum(FIELDS) + 2, 16, 16)
    blind = float(parser._loss(said, things))
    assert blind == pytest.approx(
        (2 * np.log(10) + np.log(9) + np.log(5) + np.log(5) + float(_off(things))) / 6, rel=1e-4
    )
    at = 0
    for place, count in enumerate(FIELDS):
        said[0, at : at + count].scatter_(0, things[0, place].long()[None], 100.0)
        at += count
    said[0, at:] = things[0, 4:] / STEPS
    assert float(parser._loss(said, things)) == pytest.approx(0, abs=1e-6)
    assert float(parser._loss(torch.randn_like(said), torch.full_like(things, -1))) == 0


def _off(things):
    there = things[0, 0] > 0
    return (things[0, 4:, there] / STEPS).abs().mean()
