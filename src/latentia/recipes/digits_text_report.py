"""The page of `digits-text`: words above, digits below, and how they were judged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from latentia.core.files import write_atomic
from latentia.data.captioned_digits import HELD_OUT_PAIRS, PAIR_PHRASINGS, SINGLE_PHRASINGS, TRAINED_PAIRS
from latentia.recipes.demo_report import tile
from latentia.recipes.digits_text_judging import PANEL, STEPS
from latentia.recipes.report import Report
from latentia.recipes.training_section import tell_training

if TYPE_CHECKING:
    from latentia.metrics.measurement import Measurement
    from latentia.recipes.digits_text_judging import Row, Story

COLUMNS = (
    "pictures",
    "guidance",
    "n of each",
    "one digit: right",
    "two digits: both right",
    "each digit",
    "swapped",
    "unseen pairs: both right",
    "each digit",
    "swapped",
    "frechet_digits × floor",
    "nearest train / held out",
    "seconds",
)
CONTENT_NAMES = {"single": "one digit", "pair": "two digits", "held_out_pair": "an unseen pair"}
PARTS = {"judge": ("loss",), "vae": ("rec", "kl"), "unet": ("loss",)}
SHOWN, HARDEST = 6, 10


def write_report(story: Story, out: Path) -> None:
    """Write report.html and overview.png into `out`."""
    assert story.all_pairs is not None
    assert story.one_noise is not None
    best = story.best()
    overview = tile(story.all_pairs, 10)
    write_atomic(out / "overview.png", lambda beside: overview.save(beside, format="PNG"))
    page = Report("Handwritten digits, drawn from words", lead(story, best))
    page.section(
        "Asked in words that it never read",
        f"Everything here was trained from scratch on {story.recipe.num_pictures:,} pictures of one or two real digits "
        f"with a caption each: a tokenizer ({story.vocabulary} byte pairs), a text encoder, a codec, and a UNet that "
        f"looks from the codec's latents at the text. The captions came from {count('train')} phrasings; these prompts "
        f"are of {count('held_out')} others, made of the same words.",
    )
    for content, asked in story.asked.items():
        pictures = [tile(best.x[content][i : i + 1], 1, 4) for i in range(SHOWN)]
        page.pictures(list(zip(pictures, asked.captions[:SHOWN], strict=True)))
    page.section(
        "Left is left, and right is right",
        f"Asked: “{PANEL.format(left='…', right='…')}”, the left one down, the right one across. "
        f"{len(HELD_OUT_PAIRS)} of the hundred, {', '.join(f'{a}{b}' for a, b in HELD_OUT_PAIRS)}, were in no training "
        "picture; their mirror images were.",
    )
    page.pictures([(overview, f"{how(best)}; {len(TRAINED_PAIRS)} pairs trained on, {len(HELD_OUT_PAIRS)} not")])
    page.section(
        "The same noise, another word",
        "In each row ten pictures start from the same noise; asked are “a zero” to “a nine”.",
    )
    page.pictures([(tile(story.one_noise, 10), "the noise sets the hand, the word sets the digit")])
    judged(page, story, best)
    phrasings(page, story)
    page.section(
        "What guidance does",
        "Away from what the empty caption would give: digits get clearer and more alike.",
    )
    page.pictures([(tile(row.x["pair"][:20], 5), how(row)) for row in story.rows if row.name == best.name])
    real, coded = story.row("real images"), story.row("real images through the codec")
    assert story.codec_psnr is not None
    page.section("What the codec loses", "Test images above, their reconstructions below.")
    page.pictures(
        [
            (tile(torch.cat([real.x[content][:8], coded.x[content][:8]]), 8), CONTENT_NAMES[content])
            for content in ("single", "pair")
        ]
    )
    tell_training(page, out, PARTS, story.phases)
    page.write(out / "report.html")


def count(which: str) -> int:
    """Number of phrasings."""
    return len(SINGLE_PHRASINGS[which]) + len(PAIR_PHRASINGS[which])


def lead(story: Story, best: Row) -> str:
    """The result in one sentence."""
    minutes = sum(values["seconds"] for values in story.phases.values()) / 60
    single, pair, unseen = (best.numbers[content]["accuracy"].value for content in CONTENT_NAMES)
    return (
        f"Trained in {minutes:.1f} minutes, from captions alone. Asked in phrasings that it never read, it draws the "
        f"right digit {single:.1%} of the time, two digits both right and in their places {pair:.1%}, and pairs that "
        f"it never saw {unseen:.1%} ({story.recipe.judged} pictures each)."
    )


def judged(page: Report, story: Story, best: Row) -> None:
    """The table and how to read it."""
    assert story.floor is not None
    assert story.codec_psnr is not None
    page.section(
        "Judged",
        "The judge is a small classifier, trained on real training digits alone; it sees one digit at a time, cut out "
        "of the picture where it should stand. Right: it takes that for the digit asked for. Both right: both digits, "
        "each in its place. Swapped: the right digits in the wrong order, of pairs of unequal digits. The first rows "
        "say what perfect pictures score, "
        f"and what the codec leaves of them (PSNR {story.codec_psnr.value:.1f} dB). Captions shuffled: the pictures of "
        "held-out phrasings, each judged by another's caption. Empty prompt: drawn without being told anything, and "
        "judged by those captions. frechet_digits: distance of the single digits to all real ones in the judge's "
        f"features, over what as many random real ones score (n = {story.floor.n_generated}: {story.floor.value:.3g}). "
        "Nearest train / held out: median distance to the nearest training image over that of real held-out images; "
        "well below 1 would be memorising.",
    )
    rows = [table_row(row, story) for row in story.rows]
    controls = [i for i, row in enumerate(story.rows) if row.name == "captions shuffled"]
    page.table(COLUMNS, rows, best=[story.rows.index(best)], rules=[2, *controls])


def table_row(row: Row, story: Story) -> list[str]:
    """One origin of pictures."""
    assert story.floor is not None
    single = row.numbers["single"]
    pairs = [shown(row.numbers[k][name]) for k in ("pair", "held_out_pair") for name in ("accuracy", "each", "swapped")]
    distance = single[story.judge.name].value / story.floor.value
    return [
        row.name,
        "" if row.guidance is None else f"{row.guidance:g}",
        f"{story.recipe.judged:,}",
        shown(single["accuracy"]),
        *pairs,
        f"{distance:.3g}",
        f"{single['nearest_pixels_ratio'].value:.3f}",
        f"{row.seconds:.1f}" if row.seconds else "",
    ]


def shown(share: Measurement) -> str:
    """A share with three digits."""
    return f"{share.value:.3f}"


def phrasings(page: Report, story: Story) -> None:
    """Which sentences it understands least."""
    found = [
        (share, CONTENT_NAMES[content], template)
        for content, by_template in story.by_phrasing.items()
        for template, share in by_template.items()
    ]
    hardest = sorted(found, key=lambda row: row[0].value)[:HARDEST]
    page.section(
        "The hardest phrasings",
        f"The {len(hardest)} of {len(found)} held-out phrasings that it understands least, guidance "
        f"{story.best().guidance:g}; left and right are places in the picture, whatever their order in the text.",
    )
    rows = [[template, content, f"{share.n_generated}", shown(share)] for share, content, template in hardest]
    page.table(["phrasing", "asks for", "n", "right"], rows)


def how(row: Row) -> str:
    """What made a row's pictures."""
    return f"DPM-Solver++, {STEPS} steps, guidance {row.guidance:g}"
