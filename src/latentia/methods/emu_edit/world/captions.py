"""What a scene shows, in words: the captions of rows, and the orders of pictures from maps."""

from random import Random

from latentia.methods.emu_edit.world.phrasings import PHOTO_WORDS, SCENERY_WORDS
from latentia.methods.emu_edit.world.references import exact, phrase, with_article
from latentia.methods.emu_edit.world.scene import Background, Scene, Thing


def caption(scene: Scene, rng: Random, sizes: bool = True) -> str:
    """`a small red star and a blue moon in front of a temple, with the word JOY`."""
    named = [with_article(_named(thing, rng, sizes)) for thing in scene.things]
    where = place_of(scene.background)
    text = f"{joined(named)} {where}" if named else f"only {where[3:] if where.startswith('on ') else where}"
    if scene.writing is None:
        return text
    word = scene.writing
    return f"{text} , with the word {word.word} in {word.colour} {word.font} letters at the {word.place}"


def place_of(background: Background) -> str:
    """Where a scene plays, with its preposition."""
    if background.kind == "plain":
        return f"on a {background.name} background"
    words = SCENERY_WORDS if background.kind == "scenery" else PHOTO_WORDS
    return f"in front of {words[background.name]}"


def joined(parts: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join([" , ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def _named(thing: Thing, rng: Random, sizes: bool) -> str:
    reference = exact(thing)
    return phrase(reference if sizes else reference._replace(size=""), rng)
