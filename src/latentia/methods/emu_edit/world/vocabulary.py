"""What exists in the world: shapes, colours, textures, sizes, places; and what is kept from training.

Every (shape, colour) pair, and every (word, colour) pair of writing, belongs to one of three groups. The two small
groups, one eighth each, are met in the `test` and in the `select` split alone; each shape and each colour is met in
training with six of its eight partners.
"""

from functools import cache

from latentia.errors import check_choice

Colour = tuple[int, int, int]

SPLITS = ("train", "select", "test")
"""Learning, choosing settings, reporting."""

COLOURS: dict[str, Colour] = {
    "red": (226, 42, 42),
    "orange": (255, 142, 20),
    "yellow": (252, 222, 50),
    "green": (42, 168, 66),
    "blue": (36, 96, 224),
    "purple": (136, 62, 182),
    "white": (248, 248, 248),
    "black": (44, 44, 50),
}
"""Colours of things and of writing, sRGB."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "moon", "person")
FLAT_SHAPES = SHAPES[:-1]
"""Shapes without pose: those that may be added or put in another's place."""

TEXTURES = ("plain", "striped", "dotted", "checked")

SIZES = (0.27, 0.31, 0.43, 0.5)
"""Sides of a thing as shares of the picture's side: two that are called small, two that are called large."""

SMALL, LARGE = 0, 2
"""Index of the size that an added thing has, when it is called small or large."""

PLACES = {
    "top left": (0.23, 0.23),
    "top": (0.5, 0.23),
    "top right": (0.77, 0.23),
    "left": (0.23, 0.5),
    "centre": (0.5, 0.5),
    "right": (0.77, 0.5),
    "bottom left": (0.23, 0.77),
    "bottom": (0.5, 0.77),
    "bottom right": (0.77, 0.77),
}
"""Where something may be put, (x, y) of its centre in [0, 1] from the top left corner."""

PLAIN: dict[str, Colour] = {
    "grey": (138, 138, 138),
    "beige": (232, 214, 178),
    "pink": (246, 170, 190),
    "teal": (24, 132, 136),
    "navy": (22, 32, 86),
    "lavender": (190, 178, 236),
}
"""Backgrounds of one colour."""

WORDS = ("GO", "HI", "NO", "OK", "UP", "CAT", "FUN", "JOY", "SUN", "YES", "HOME", "LOVE", "OPEN", "STOP", "WARM", "ZOO")
"""What is written in pictures."""

TEXT_PLACES = {"top": 0.17, "middle": 0.5, "bottom": 0.83}
"""Where writing may stand: y of its centre."""

MARK: Colour = (255, 0, 255)
"""Boxes around found things: a colour that nothing else has."""

PAINT: Colour = (0, 255, 255)
"""Pixels of found things."""

CLASS_COLOURS: dict[str, Colour] = {
    "circle": (230, 25, 75),
    "square": (60, 180, 75),
    "triangle": (255, 225, 25),
    "star": (0, 130, 200),
    "heart": (245, 130, 48),
    "cross": (145, 30, 180),
    "diamond": (70, 240, 240),
    "moon": (240, 50, 230),
    "person": (250, 250, 250),
}
"""Colours of segmentation maps: one for each shape, black for the background."""

_SELECT, _TEST = 4, 0


@cache
def split_of_pair(shape: str, colour: str) -> str:
    """The split that owns a (shape or word, colour) pair: 6/8 `train`, 1/8 `select`, 1/8 `test`."""
    names = SHAPES if shape in SHAPES else WORDS
    group = (names.index(shape) + list(COLOURS).index(colour)) % len(COLOURS)
    return {_TEST: "test", _SELECT: "select"}.get(group, "train")


@cache
def own_pairs(names: tuple[str, ...], split: str) -> tuple[tuple[str, str], ...]:
    """The (name, colour) pairs that `split` owns, of the shapes or words `names`."""
    check_choice("split", split, SPLITS)
    return tuple((name, colour) for name in names for colour in COLOURS if split_of_pair(name, colour) == split)


@cache
def allowed_pairs(names: tuple[str, ...], split: str) -> tuple[tuple[str, str], ...]:
    """The pairs that `split` may show: those of training, and its own."""
    return own_pairs(names, "train") if split == "train" else own_pairs(names, "train") + own_pairs(names, split)
