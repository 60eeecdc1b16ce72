"""The scales of published numbers, which must not be mixed: who measured, with which networks, on which captions."""

from collections.abc import Mapping
from dataclasses import dataclass

from latentia.errors import InputError, check_choice

TO_INPUT = ("clip_dir", "clip_im", "clip_out", "l1_input", "dino_input")
TO_TARGET = ("l1_target", "l2_target", "clip_i", "dino_target", "clip_t", "clip_t_of_target")
OWN = "own"
"""Of every number that no published one may stand beside."""


@dataclass(frozen=True, slots=True)
class Scale:
    """What makes numbers of one scale.

    Attributes:
        joint, alike: names of the two extractors; None: not stated by who measured.
        captions: of the Emu Edit test set, `raw` or `clean`.
        measures: by benchmark, the measures that its tables hold.
        told: in a sentence.
    """

    joint: str
    alike: str | None
    captions: str
    measures: Mapping[str, tuple[str, ...]]
    told: str


SCALES: dict[str, Scale] = {
    "A": Scale(
        "ViT-L/14",
        None,
        "raw",
        {"emu-edit": TO_INPUT, "magicbrush": TO_INPUT},
        "Emu Edit's paper, reprinted by UniReal and OmniGen. It does not name its networks; its values fit ViT-L/14.",
    ),
    "B": Scale(
        "ViT-B/32",
        "dino_vits16",
        "raw",
        {"emu-edit": TO_INPUT, "magicbrush": TO_TARGET},
        "UltraEdit, which measured all rows anew with MagicBrush's networks.",
    ),
    "C": Scale(
        "ViT-B/32",
        "dino_vits16",
        "clean",
        {"emu-edit": TO_INPUT},
        "ICEdit and OmniGen2: as B, without the rows whose captions are faulty.",
    ),
    "M": Scale(
        "ViT-B/32",
        "dino_vits16",
        "raw",
        {"magicbrush": TO_TARGET},
        "MagicBrush's paper: results against right answers.",
    ),
}
DEFAULTS = {"emu-edit": ("C", "A"), "magicbrush": ("M", "A"), "scenes": ()}
"""Benchmark → scales that are tried in turn when none is asked for."""


def choose_scale(asked: str | None, benchmark: str, joint: str | None, alike: str | None) -> str:
    """The scale on which numbers of these extractors are: the one asked for, or the first that fits, or `own`.

    None for an extractor: nothing is measured with it. Raises `InputError` when the one asked for does not fit.
    """
    if asked is None:
        return next((each for each in DEFAULTS[benchmark] if not misfit(each, benchmark, joint, alike)), OWN)
    check_choice("scale", asked, (*SCALES, OWN))
    reason = None if asked == OWN else misfit(asked, benchmark, joint, alike)
    if reason:
        raise InputError(f"these are not numbers of scale {asked} ({SCALES[asked].told}): {reason}")
    return asked


def misfit(letter: str, benchmark: str, joint: str | None, alike: str | None) -> str | None:
    """Why numbers of these extractors on this benchmark are not on a scale; None when they are."""
    scale = SCALES[letter]
    if benchmark not in scale.measures:
        return f"it has none of {benchmark}"
    if joint is not None and joint != scale.joint:
        return f"clip is {joint}, it needs {scale.joint}"
    if alike is not None and scale.alike is not None and alike != scale.alike:
        return f"dino is {alike}, it needs {scale.alike}"
    return f"it needs clip {scale.joint}" if joint is None else None


def captions_of(letter: str) -> str:
    """`raw` or `clean`: which rows of the Emu Edit test set a scale keeps."""
    return "clean" if letter == OWN else SCALES[letter].captions


def result_name(benchmark: str, split: str, protocol: str, letter: str, measure: str) -> str:
    """What a number is called before its measure: `emu-edit/test C: `, `magicbrush/dev single-turn M: `.

    A measure that the scale's tables do not hold is `own`.
    """
    on_scale = letter != OWN and measure in SCALES[letter].measures[benchmark]
    parts = [f"{benchmark}/{split}", *([protocol] if protocol else []), letter if on_scale else OWN]
    return " ".join(parts) + ": "
