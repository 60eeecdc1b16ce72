"""The patterns of every kind of instruction. Slots: `{the}` a thing of the picture, `{a}` a new one."""

_ASK = "(|please |now |i want you to |could you )"
_IT = "(it|this picture|the image|the whole scene)"

_EFFECTS = {
    "night": ("(make|let) " + _IT + " (look like night|be at night)", "turn day into night", "(show|give) it at night"),
    "fog": ("(add|put in|bring in) (fog|mist|thick fog)", "make it (foggy|misty)", "(cover|fill) " + _IT + " with fog"),
    "rain": ("(add|put in|bring in) (rain|heavy rain)", "make it (rainy|rain)", "let it rain"),
    "snow": ("(add|put in|bring in) (snow|falling snow)", "make it (snowy|snow)", "let it snow"),
    "dusk": ("(make|let) " + _IT + " glow in evening light", "(give|add) " + _IT + " (warm light|a sunset glow)"),
    "spotlight": (
        "(add|shine|put) a (spotlight|light beam) (on|in) the middle",
        "(light|show) only the middle",
        "(make|turn) the corners (dark|black)",
    ),
    "underwater": ("(put|sink) " + _IT + " (under water|into the sea)", "(make|let) " + _IT + " be under water"),
    "mirror": ("(mirror|flip|reverse) " + _IT + " (left to right|sideways)", "swap the left and right sides"),
}

_COLOUR_CHANGES = {
    "brighter": ("make " + _IT + " (brighter|lighter)", "(raise|increase) the brightness", "brighten " + _IT),
    "darker": ("make " + _IT + " (darker|dimmer)", "(lower|reduce) the brightness", "darken " + _IT),
    "contrast": ("(raise|increase) the contrast", "give " + _IT + " (more|stronger) contrast"),
    "flat": ("(lower|reduce) the contrast", "give " + _IT + " (less|weaker) contrast"),
    "vivid": ("make the colours (stronger|more vivid)", "(raise|increase) the saturation", "make " + _IT + " vivid"),
    "greyscale": ("(remove|take out) all (colour|colours)", "make " + _IT + " (greyscale|black and white)"),
    "warmer": (
        "make the colours (warmer|more yellow)",
        "(raise|increase) the colour temperature",
        "warm " + _IT + " up",
    ),
    "cooler": ("make the colours (cooler|more blue)", "(lower|reduce) the colour temperature", "cool " + _IT + " down"),
    "hue": ("(shift|rotate|turn) (the|all) hues", "swap the colours around in " + _IT),
    "blur": ("(blur|soften|defocus) " + _IT, "make " + _IT + " (blurry|soft|blurred)"),
    "strong blur": (
        "(blur|soften|defocus) " + _IT + " (strongly|a lot)",
        "make " + _IT + " very (blurry|soft|blurred)",
    ),
    "sharpen": ("sharpen " + _IT, "make " + _IT + " (sharper|crisper)", "(raise|increase) the sharpness"),
}

_MAPS = {
    "depth": "(depth map|map of depths)",
    "segmap": "(segmentation map|class map)",
    "normal": "(normal map|map of normals)",
    "sketch": "(sketch|line drawing)",
    "pose": "(pose map|stick figure|skeleton)",
}


def _translations() -> dict[str, tuple[str, ...]]:
    patterns: dict[str, tuple[str, ...]] = {}
    for name, called in _MAPS.items():
        patterns[f"{name}/to"] = (
            f"{_ASK}(turn|convert|change) {_IT} into a {called}",
            f"{_ASK}(show|draw|estimate) the {called} of {_IT}",
        )
        patterns[f"{name}/from"] = (
            f"{_ASK}(make|paint|create) (a picture|an image) from this {called} : {{scene}}",
            f"{_ASK}(turn|convert|change) this {called} into (a picture|an image) of {{scene}}",
        )
    return patterns


PATTERNS: dict[str, tuple[str, ...]] = {
    "local/recolour": (
        _ASK + "(make|turn|colour|paint) {the} {colour}",
        _ASK + "(change|set) the colour of {the} to {colour}",
        _ASK + "give {the} a {colour} colour",
    ),
    "local/swap": (
        _ASK + "(replace|swap|exchange) {the} (with|for) {a}",
        _ASK + "(turn|change|transform) {the} into {a}",
        _ASK + "put {a} (in place of|where you see) {the}",
    ),
    "local/grow": (
        _ASK + "make {the} (bigger|larger)",
        _ASK + "(make|let) {the} grow",
        _ASK + "(enlarge|magnify|scale up) {the}",
    ),
    "local/shrink": (
        _ASK + "make {the} (smaller|littler)",
        _ASK + "(make|let) {the} shrink",
        _ASK + "(reduce|scale down) {the}",
        _ASK + "(reduce|scale down) the size of {the}",
    ),
    "texture/pattern": (
        _ASK + "make {the} {texture}",
        _ASK + "give {the} a {texture} (pattern|texture|surface)",
        _ASK + "(cover|fill|decorate) {the} with {marks}",
        _ASK + "(put|draw) {marks} on {the}",
    ),
    "texture/plain": (
        _ASK + "make {the} plain",
        _ASK + "(remove|take|wipe) the (pattern|texture|marks) (from|off) {the}",
        _ASK + "give {the} a plain (pattern|texture|surface)",
    ),
    "add/place": (
        _ASK + "(add|put|place|insert|draw) {a} {place}",
        "(|please |now ){place} (add|put|insert|draw) {a}",
        "(there should be|i would like to see) {a} {place}",
    ),
    "add/beside": (
        _ASK + "(add|put|place|insert|draw) {a} {beside} {the}",
        "(there should be|i would like to see) {a} {beside} {the}",
    ),
    "remove": (
        _ASK + "(remove|delete|erase|take away|get rid of) {the}",
        _ASK + "(remove|delete|erase) {the} from " + _IT,
        _ASK + "(make|let) {the} (disappear|vanish)",
    ),
    "background/plain": (
        _ASK + "(make|paint|turn) the (background|backdrop) {background}",
        _ASK + "(change|set) the colour of the (background|backdrop) to {background}",
        _ASK + "(put|show) (everything|all the things) on a {background} background",
    ),
    "background/scenery": (
        _ASK + "(change|switch) the (background|backdrop) to {background}",
        _ASK + "replace the (background|backdrop) (by|with) {background}",
        _ASK + "(put|show) (everything|all the things) in front of {background}",
    ),
    **{f"global/{name}": tuple(_ASK + core for core in cores) for name, cores in _EFFECTS.items()},
    "style": (
        _ASK + "(turn|convert|transform) " + _IT + " into {style}",
        _ASK + "make " + _IT + " look like {style}",
        _ASK + "(redraw|repaint|render) " + _IT + " (as|like) {style}",
    ),
    "text/add": (
        _ASK + "(write|add|print) (|the word|the text) {word} in {colour} letters {place}",
        _ASK + "(write|add|print) {place} in {colour} letters (|the word|the text) {word}",
    ),
    "text/remove": (
        _ASK + "(remove|delete|erase|wipe off) the (word|text|writing|letters)",
        _ASK + "(remove|delete|erase) the (word|text) {word}",
    ),
    "text/replace": (
        _ASK + "(replace|exchange) the (word|text) {word} (by|with) {new}",
        _ASK + "(change|rewrite|edit) {word} (to|into) {new}",
        _ASK + "let the (word|text) (say|read) {new}",
    ),
    "text/recolour": (
        _ASK + "(make|colour|paint) the (word|text|writing|letters) {colour}",
        _ASK + "(change|set) the colour of the (word|text|writing|letters) to {colour}",
    ),
    "text/font": (
        _ASK + "(set|write|print) the (word|text) in {font} letters",
        _ASK + "change the font (of the text|of the word) to {font}",
    ),
    "detect": (
        _ASK + "(draw|put|set) a (box|rectangle|frame) around {the}",
        _ASK + "(detect|find|locate) {the}",
        _ASK + "(detect|find|locate) {the} (with|by) a (box|rectangle)",
    ),
    "segment": (
        _ASK + "(segment|mask) {the}",
        _ASK + "(mark|highlight|fill) (all|the) pixels of {the}",
        _ASK + "show the (mask|segment|pixels) of {the}",
    ),
    **{f"color/{name}": tuple(_ASK + core for core in cores) for name, cores in _COLOUR_CHANGES.items()},
    **_translations(),
}
"""Kind → patterns; the part before `/` is the task."""

EFFECT_NAMES = tuple(_EFFECTS)
COLOUR_CHANGE_NAMES = tuple(_COLOUR_CHANGES)

STYLES = {
    "pixel art": ("pixel art", "a mosaic of big pixels"),
    "poster": ("a poster", "a screen print"),
    "oil": ("an oil painting", "a painting in oil"),
    "sepia": ("an old photo", "a sepia photo"),
    "negative": ("a negative", "a photo negative"),
    "comic": ("a comic", "a cartoon"),
    "halftone": ("a newspaper print", "a halftone print"),
    "neon": ("neon lines", "a neon sign"),
    "relief": ("a stone relief", "a carving in stone"),
}

MARKS = {"striped": ("stripes",), "dotted": ("dots", "spots"), "checked": ("checks", "small tiles")}

PLACE_WORDS = {
    "top left": ("in the top left corner", "at the top left"),
    "top": ("at the top",),
    "top right": ("in the top right corner", "at the top right"),
    "left": ("on the left", "at the left side"),
    "centre": ("in the middle", "in the centre"),
    "right": ("on the right", "at the right side"),
    "bottom left": ("in the bottom left corner", "at the bottom left"),
    "bottom": ("at the bottom",),
    "bottom right": ("in the bottom right corner", "at the bottom right"),
}
TEXT_PLACE_WORDS = {
    "top": ("at the top",),
    "middle": ("in the middle", "across the centre"),
    "bottom": ("at the bottom",),
}
BESIDE_WORDS = {
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
SCENERY_WORDS = {
    "meadow": "a meadow",
    "sea": "the sea",
    "desert": "a desert",
    "night sky": "a night sky",
    "sunset": "a sunset",
    "brick wall": "a brick wall",
    "tiled wall": "a tiled wall",
    "snowy field": "a snowy field",
}
PHOTO_WORDS = {
    "astronaut": "an astronaut",
    "china": "a temple",
    "flower": "a flower",
    "motorcycle": "a motorcycle",
    "rocket": "a rocket",
    "chelsea": "a cat",
    "coffee": "a cup of coffee",
    "grace_hopper": "an officer",
}
