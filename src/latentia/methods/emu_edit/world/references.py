"""Naming one thing among several: descriptions that fit exactly one, and the words for them."""

from random import Random
from typing import NamedTuple

from latentia.methods.emu_edit.world.scene import Scene, Thing

NOUNS = {
    "circle": ("circle", "disc"),
    "square": ("square", "block"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "plus sign"),
    "diamond": ("diamond", "rhombus"),
    "moon": ("moon", "crescent"),
    "person": ("person", "figure"),
}
ANY_NOUN = ("thing", "object", "shape")
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}
TEXTURE_WORDS = {
    "plain": ("plain",),
    "striped": ("striped", "stripy"),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "checkered"),
}
SIDE_WORDS = {
    "left": (" on the left",),
    "right": (" on the right",),
    "top": (" at the top",),
    "bottom": (" at the bottom",),
}
HALF = 0.07
"""How far from the middle a thing must be to be called left, right, top or bottom."""


class Reference(NamedTuple):
    """A description: every given field must fit. `size` is `small` or `large`, `side` the half it lies in."""

    shape: str = ""
    colour: str = ""
    texture: str = ""
    size: str = ""
    side: str = ""

    def fits(self, thing: Thing) -> bool:
        """Whether `thing` is one of those described."""
        return (
            (not self.shape or thing.shape == self.shape)
            and (not self.colour or thing.colour == self.colour)
            and (not self.texture or thing.texture == self.texture)
            and (not self.size or thing.small == (self.size == "small"))
            and (not self.side or self.side in sides(thing))
        )

    def found(self, scene: Scene) -> list[int]:
        """Indices of all things that it fits."""
        return [i for i, thing in enumerate(scene.things) if self.fits(thing)]


def sides(thing: Thing) -> tuple[str, ...]:
    """The halves of the picture that a thing clearly lies in."""
    across = ("left",) if thing.x < 0.5 - HALF else ("right",) if thing.x > 0.5 + HALF else ()
    down = ("top",) if thing.y < 0.5 - HALF else ("bottom",) if thing.y > 0.5 + HALF else ()
    return across + down


def describe(scene: Scene, index: int, rng: Random) -> Reference | None:
    """A description that fits thing `index` and no other, drawn from all that do; None when there is none."""
    thing = scene.things[index]
    size = "small" if thing.small else "large"
    shape, colour, texture = thing.shape, thing.colour, thing.texture
    candidates = [
        Reference(shape=shape),
        Reference(shape=shape, colour=colour),
        Reference(shape=shape, colour=colour),
        Reference(colour=colour),
        Reference(shape=shape, size=size),
        Reference(shape=shape, colour=colour, size=size),
    ]
    if texture != "plain":
        candidates += [Reference(shape=shape, texture=texture), Reference(shape, colour, texture)]
    for side in sides(thing):
        candidates += [Reference(side=side), Reference(shape=shape, side=side)]
    rng.shuffle(candidates)
    return next((one for one in candidates if one.found(scene) == [index]), None)


def exact(thing: Thing) -> Reference:
    """Everything that words can say of a thing but its place: what a new thing is ordered by."""
    texture = "" if thing.texture == "plain" else thing.texture
    return Reference(thing.shape, thing.colour, texture, "small" if thing.small else "large")


def phrase(reference: Reference, rng: Random) -> str:
    """The description in words, without article: `small striped red star on the left`."""
    words = [
        rng.choice(SIZE_WORDS[reference.size]) if reference.size else "",
        rng.choice(TEXTURE_WORDS[reference.texture]) if reference.texture else "",
        reference.colour,
        rng.choice(NOUNS[reference.shape] if reference.shape else ANY_NOUN),
    ]
    text = " ".join(word for word in words if word)
    return text + (rng.choice(SIDE_WORDS[reference.side]) if reference.side else "")


def with_article(text: str) -> str:
    """`a` or `an` before a noun phrase."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"
