"""A scene as a plain value: what stands where, before what, with which writing. Drawing it is `render.py`'s work.

All three records are named tuples of numbers and strings, so that JSON writes them as lists and `scene_from_json`
reads them back.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from latentia.errors import InputError
from latentia.methods.emu_edit.world.vocabulary import SIZES


class Thing(NamedTuple):
    """One object. `x`, `y`: its centre in [0, 1] from the top left; `size`: index into `SIZES`; `pose`: of a person."""

    shape: str
    colour: str
    texture: str
    size: int
    x: float
    y: float
    pose: int = 0

    @property
    def side(self) -> float:
        """Side of its box as a share of the picture's side."""
        return SIZES[self.size]

    @property
    def base(self) -> float:
        """Where it stands on the ground, y of its lower edge: the larger, the nearer."""
        return self.y + SIZES[self.size] / 2

    @property
    def small(self) -> bool:
        """Whether it is called small."""
        return self.size < len(SIZES) // 2


class Background(NamedTuple):
    """What lies behind: `photo` (a crop), `plain` (one colour) or `scenery` (a painted place).

    Of a photo, `zoom` is the crop's level, (`u`, `v`) in [0, 1] where it lies, `mirrored` whether it is flipped, and
    `tone` which of `backgrounds.TONES` variations of the crop it is: 0 the photograph as it is.
    """

    kind: str
    name: str
    zoom: int = 0
    u: float = 0.0
    v: float = 0.0
    mirrored: bool = False
    tone: int = 0


class Writing(NamedTuple):
    """A word in the picture."""

    word: str
    colour: str
    font: str
    place: str


class Scene(NamedTuple):
    """A background, things from far to near, and perhaps a word above all."""

    background: Background
    things: tuple[Thing, ...] = ()
    writing: Writing | None = None

    def with_things(self, things: Sequence[Thing]) -> "Scene":
        """The same place with other things, sorted from far to near: what stands lower covers what stands higher."""
        return self._replace(things=ordered(things))

    def changed(self, index: int, **changes: Any) -> "Scene":
        """The scene with thing `index` changed in some fields."""
        things = list(self.things)
        things[index] = things[index]._replace(**changes)
        return self.with_things(things)

    def without(self, index: int) -> "Scene":
        """The scene without thing `index`."""
        return self._replace(things=self.things[:index] + self.things[index + 1 :])


def ordered(things: Sequence[Thing]) -> tuple[Thing, ...]:
    """Things from far to near."""
    return tuple(sorted(things, key=_nearness))


def _nearness(thing: Thing) -> tuple[float, float]:
    return (thing.base, thing.x)


def overlap(a: Thing, b: Thing) -> float:
    """Common area of two boxes as a share of the smaller one, 0 to 1."""
    reach = (a.side + b.side) / 2
    least = min(a.side, b.side)
    width = min(reach - abs(a.x - b.x), least)
    height = min(reach - abs(a.y - b.y), least)
    return width * height / (least * least) if width > 0 and height > 0 else 0.0


def scene_from_json(value: Any) -> Scene:
    """The scene that JSON holds as lists. Raises `InputError` for anything that is no scene."""
    try:
        background, things, writing = value
        return Scene(
            Background(*background), tuple(Thing(*thing) for thing in things), Writing(*writing) if writing else None
        )
    except (TypeError, ValueError):
        raise InputError(f"expected a scene [background, things, writing], got {str(value)[:80]!r}") from None
