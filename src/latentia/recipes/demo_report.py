"""The demo's page: what was made, side by side, and how it was judged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from latentia.core.files import write_atomic
from latentia.core.images import grid
from latentia.metrics.neighbours import nearest
from latentia.recipes.report import Report
from latentia.recipes.training_section import tell_training

if TYPE_CHECKING:
    from latentia.recipes.demo_judging import Numbers, Row, Story

COLUMNS = (
    "model",
    "sampler",
    "weights",
    "guidance",
    "n",
    "accuracy",
    "frechet_digits",
    "× floor",
    "× balanced floor",
    "precision",
    "recall",
    "nearest train / held out",
    "seconds",
)
PARTS = {"judge": ("loss",), "autoencoder": ("rec",), "vae": ("rec", "kl"), "unet": ("loss",)}


def write_report(story: Story, out: Path) -> None:
    """Write report.html and overview.png into `out`."""
    best = story.best()
    overview = trio(story)
    write_atomic(out / "overview.png", lambda beside: overview.save(beside, format="PNG"))
    page = Report("Handwritten digits, compressed and then generated", lead(story, best))
    page.section(
        "From autoencoder to latent diffusion",
        "All three were trained here, from scratch, on 1,257 real digits. An autoencoder compresses a picture into "
        f"{numbers_of(story)}, but random numbers mean nothing to its decoder. A KL-VAE asks each to be spread like a "
        "normal distribution, softly, so as not to blur; but the numbers of a digit belong together, and random ones "
        "do not. Latent diffusion learns which belong together, and the same KL-VAE's decoder makes them pictures.",
    )
    by_model = {row.model: row for row in story.rows[:2]}
    page.pictures([(tile(by_model["autoencoder"].x[:30], 10), "Autoencoder: decode N(0, I)")])
    page.pictures([(tile(by_model["KL-VAE"].x[:30], 10), "KL-VAE: decode N(0, I)")])
    page.pictures(
        [(tile(best.x[:30], 10), "Latent diffusion: DPM-Solver++, 10 steps, EMA, no guidance; one class a column")]
    )
    page.pictures([(tile(real_by_class(story)[:30], 10), "Real digits that no model was trained on")])
    page.section(
        "Noise becomes a digit",
        "Twenty DDIM steps from left to right. Above, the latent as it loses its noise; below, the network's guess of "
        "where that will end; both decoded.",
    )
    for row, name in ((0, "the noisy latent"), (1, "the guess of the clean one")):
        frames = torch.stack([step[row] for step in story.strip], 1).flatten(0, 1)
        page.pictures([(tile(frames, len(story.strip), 1), name)])
    page.section("What the average and the guidance do")
    page.pictures([(tile(row.x[:20], 10), caption(row)) for row in story.rows if row.sampler.startswith("DPM")])
    page.section(
        "What the codecs lose",
        f"Test images above, reconstructions below: {story.test[0].numel():,} pixels through {numbers_of(story)}.",
    )
    page.pictures(
        [
            (tile(torch.cat([story.test[:10], x[:10]]), 10), f"{name}: PSNR {numbers['psnr'].value:.1f} dB")
            for name, (x, numbers) in story.reconstructions.items()
        ]
    )
    page.section(
        "Memorised or made?",
        "Generated digits above, the nearest training image of each below. Were they copies, the rows would agree; "
        "the table compares the distances with those of real images that were never trained on.",
    )
    page.pictures([(tile(torch.cat([best.x[:20], neighbours(story, best.x[:20])]), 20), "nearest in pixel distance")])
    judged(page, story, best)
    tell_training(page, out, PARTS, story.phases)
    page.write(out / "report.html")


def numbers_of(story: Story) -> str:
    """How many numbers a latent is."""
    side = story.recipe.image_size // story.recipe.vae.factor
    return f"{side * side * story.recipe.vae.latent_channels:,} numbers"


def lead(story: Story, best: Row) -> str:
    """The result in one sentence."""
    numbers = best.numbers
    minutes = sum(values["seconds"] for values in story.phases.values()) / 60
    return (
        f"Trained in {minutes:.1f} minutes. Latent diffusion in ten steps: {numbers['accuracy_digits'].value:.1%} of "
        f"{best.n} digits are what they were asked to be, their Fréchet distance is "
        f"{story.times_floor(numbers, best.n):.2f} × that of as many random real images, and they lie "
        f"{numbers['nearest_pixels_ratio'].value:.2f} × as far from the training images as real held-out ones."
    )


def judged(page: Report, story: Story, best: Row) -> None:
    """The table and how to read it."""
    n = story.recipe.pictures
    random, balanced = story.floor(n)
    assert story.ceiling is not None
    page.section(
        "Judged",
        "The judge is a small classifier trained on the same real training images. accuracy: share of pictures that "
        "it takes for the class asked for. frechet_digits: distance between its features of the pictures and of all "
        "1,797 real digits, comparable within this page only. The floor is what random real images, as many, score "
        f"against all (n = {n}: {random.value:.3g}, mean of 50 draws); drawn with equally many of each class, as the "
        f"generated ones are, {balanced.value:.3g}. Being part of the reference they score about half of what fresh "
        "images could. nearest train / held out: median distance to the nearest training image, over that of real "
        "held-out images; well below 1 would be memorising. Guidance buys accuracy with variety.",
    )
    rows = [reference_row(name, numbers, story) for name, numbers in story.references.items()]
    rows.append(
        ["noise", "", "", "", f"{n:,}", "", f"{story.ceiling.value:.4g}", *ratios(story, story.ceiling.value, n)]
    )
    rows[-1] += [""] * (len(COLUMNS) - len(rows[-1]))
    first = len(rows)
    rows += [table_row(row, story) for row in story.rows]
    page.table(COLUMNS, rows, best=[first + story.rows.index(best)], rules=[first, first + 2])


def ratios(story: Story, value: float, n: int) -> list[str]:
    """A Fréchet distance over both floors of its n."""
    random, balanced = story.floor(n)
    return [f"{value / random.value:.3g}", f"{value / balanced.value:.3g}"]


def scores(story: Story, numbers: Numbers, n: int) -> list[str]:
    """The judged columns of a row."""
    accuracy = f"{numbers['accuracy_digits'].value:.3f}" if "accuracy_digits" in numbers else ""
    value = numbers["frechet_digits"].value
    rest = [f"{numbers[name].value:.3f}" for name in ("precision_digits", "recall_digits", "nearest_pixels_ratio")]
    return [f"{n:,}", accuracy, f"{value:.4g}", *ratios(story, value, n), *rest]


def reference_row(name: str, numbers: Numbers, story: Story) -> list[str]:
    """A row about real images."""
    return [name, "", "", "", *scores(story, numbers, numbers["frechet_digits"].n_generated), ""]


def table_row(row: Row, story: Story) -> list[str]:
    """A row about generated images."""
    guidance = "" if row.guidance is None else f"{row.guidance:g}"
    return [row.model, row.sampler, row.weights, guidance, *scores(story, row.numbers, row.n), f"{row.seconds:.1f}"]


def caption(row: Row) -> str:
    """What made a row's pictures."""
    return f"{row.sampler}, {row.weights}, guidance {row.guidance:g}"


def tile(x: torch.Tensor, columns: int, scale: int = 2) -> Image.Image:
    """White paper, dark ink: the digits as they were written."""
    return grid(-x, columns, pad=2, scale=scale)


def trio(story: Story) -> Image.Image:
    """Autoencoder, KL-VAE and latent diffusion beside each other: 5 × 4 pictures each."""
    panels = [tile(row.x[:20], 5) for row in (*story.rows[:2], story.best())]
    gap = 24
    sheet = Image.new("L", (sum(p.width for p in panels) + gap * (len(panels) - 1), panels[0].height), 255)
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + gap
    return sheet


def real_by_class(story: Story) -> torch.Tensor:
    """Test images in the order of the generated ones: class i mod 10."""
    order = [torch.nonzero(story.test_labels == c).flatten() for c in range(10)]
    return story.test[torch.stack(order, 1).flatten()]


def neighbours(story: Story, x: torch.Tensor) -> torch.Tensor:
    """The nearest training image of each."""
    _, rows = nearest(x.flatten(1), story.train.flatten(1))
    return story.train[rows]
