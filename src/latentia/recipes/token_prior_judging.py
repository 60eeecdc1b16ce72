"""A token prior's end: pictures from it, one judge, numbers with their n and their floor, and a page."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.files import write_atomic, write_text_atomic
from latentia.core.images import grid
from latentia.metrics.evaluate import Judge
from latentia.metrics.measurement import Measurement
from latentia.metrics.neighbours import nearest
from latentia.recipes.codec_evaluation import evaluate_codec
from latentia.recipes.judge import everything
from latentia.recipes.report import Report
from latentia.recipes.training_section import tell_training, trained

if TYPE_CHECKING:
    from PIL import Image

    from latentia.pipelines.tokens import TokenPipeline
    from latentia.recipes.recipe import Bench
    from latentia.recipes.token_prior import TokenPrior
    from latentia.training.phase import PhaseResult

CHUNK = 180
TIMED = 8
"""Single pictures whose making is timed."""
COLUMNS = ("drawn by", "n", "accuracy", "worst class", "Fréchet", "× floor", "nearest train / held out", "s a picture")


def tell(recipe: TokenPrior, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> dict[str, Any]:
    """Judge the pipeline: report.json, report.html and samples.png in `out`; returns what report.json holds."""
    (train, _), (test, test_labels) = everything(recipe.images("train")), everything(recipe.images("test"))
    real, labels = everything(recipe.images("all"))
    classifier: Any = bench.parts["judge"].cpu().eval()
    judge = Judge(classifier, real, labels, train, test, seed=recipe.seed)
    pipe = recipe.pipeline(bench)
    pipe.set_progress_bar_config(disable=True)
    n = recipe.pictures
    floor = judge.floor(n, balanced=True)
    made = {name: row(recipe, pipe, judge, arguments) for name, arguments in recipe.draws()}
    codec, back = evaluate_codec(pipe.codec.cpu(), test, [classifier])
    told = {
        "recipe": recipe.model_dump(mode="json"),
        "seed": recipe.seed,
        "threads": torch.get_num_threads(),
        "training": trained(results),
        "held_out_bits": held_out_bits(recipe, bench, results),
        "codec": codec.to_dict(),
        "floor": floor.to_dict(),
        "ceiling": judge.ceiling(n).to_dict(),
        "real, never trained on": numbers_of(judge(test, test_labels)),
        "rows": [
            {
                "drawn by": name,
                "n": n,
                "seconds_alone": alone,
                "seconds_in_batch": batched,
                "numbers": numbers_of(found),
            }
            for name, (_, found, alone, batched) in made.items()
        ],
    }
    write_text_atomic(out / "report.json", json.dumps(told, indent=2) + "\n")
    best = next(iter(made.values()))
    samples = tile(by_class(recipe, best[0]), 10, scale=2)
    write_atomic(out / "samples.png", lambda beside: samples.save(beside, format="PNG"))
    write_page(recipe, told, made, train, torch.cat([test[:10], back[:10]]), samples, floor, judge.name, out)
    return told


Row = tuple[torch.Tensor, Mapping[str, Measurement], float, float]
"""Pictures in [-1, 1], what the judge says, seconds a picture: made alone, and in batches."""


def row(recipe: TokenPrior, pipe: TokenPipeline, judge: Judge, arguments: Mapping[str, Any]) -> Row:
    """`recipe.pictures` pictures, class i mod the number of classes, drawn in one way, and judged."""
    n, labels = recipe.pictures, torch.arange(recipe.pictures) % recipe.num_classes
    began = time.perf_counter()
    x = pipe(class_labels=labels, seed=recipe.seed, max_batch=CHUNK, output_type="pt", **arguments).images
    batched = (time.perf_counter() - began) / n
    began = time.perf_counter()
    for i in range(TIMED):
        pipe(class_labels=i % recipe.num_classes, seed=recipe.seed, output_type="pt", **arguments)
    alone = (time.perf_counter() - began) / TIMED
    x = x.cpu() * 2 - 1
    return x, judge(x, labels), alone, batched


@torch.no_grad()
def held_out_bits(recipe: TokenPrior, bench: Bench, results: Mapping[str, PhaseResult]) -> dict[str, float]:
    """Bits a token on training and on test images, with the averaged weights: how much is memory."""
    from latentia.training.token_objectives import token_cache

    objective: Any = results["prior"].objective.eval()
    dropped, objective.label_dropout = objective.label_dropout, 0.0
    device, found = next(objective.parameters()).device, {}
    for split in ("train", "test"):
        tokens = token_cache(bench.parts["codec"].to(device), recipe.images(split))
        rows = range(0, len(tokens), max(1, len(tokens) // 540))
        with torch.random.fork_rng([]):
            torch.manual_seed(recipe.seed)
            loss = objective({name: column.to(device) for name, column in tokens.batch(rows).items()})
        found[split] = float(loss.parts["bits"])
    objective.label_dropout = dropped
    return found


def numbers_of(found: Mapping[str, Measurement]) -> dict[str, Any]:
    """For JSON."""
    return {name: value.to_dict() for name, value in found.items()}


def by_class(recipe: TokenPrior, x: torch.Tensor) -> torch.Tensor:
    """The first pictures, a class a column (at most ten classes)."""
    columns = min(10, recipe.num_classes)
    rows = x[: 6 * recipe.num_classes].view(-1, recipe.num_classes, *x.shape[1:])[:, :columns]
    return rows.flatten(0, 1)


def tile(x: torch.Tensor, columns: int, scale: int = 2) -> Image.Image:
    """Grey pictures as dark ink on white paper, others as they are."""
    return grid(-x if x.shape[1] == 1 else x, columns, pad=2, scale=scale)


def write_page(
    recipe: TokenPrior,
    told: Mapping[str, Any],
    made: Mapping[str, Row],
    train: torch.Tensor,
    pairs: torch.Tensor,
    samples: Image.Image,
    floor: Measurement,
    ruler: str,
    out: Path,
) -> None:
    """report.html."""
    name, (x, numbers, alone, _) = next(iter(made.items()))
    accuracy = next(value for key, value in numbers.items() if key.startswith("accuracy"))
    minutes = sum(each["seconds"] for each in told["training"].values()) / 60
    lead = (
        f"Trained in {minutes:.1f} minutes. {name}: {accuracy.value:.1%} of {recipe.pictures} pictures are what they "
        f"were asked to be, their Fréchet distance is {numbers[ruler].value / floor.value:.2f} × that of as many real "
        f"images, and one picture takes {alone * 1000:.0f} ms."
    )
    page = Report(f"{recipe.name}: pictures from tokens", lead)
    page.section("Drawn", f"{name}, one class a column.")
    page.pictures([(samples, name)])
    page.section("Memorised or made?", "Pictures above, the nearest training image of each below.")
    _, rows = nearest(x[:20].flatten(1), train.flatten(1))
    page.pictures([(tile(torch.cat([x[:20], train[rows]]), 20), "nearest in pixel distance")])
    usage = told["codec"]["usage"]
    page.section(
        "What the codec loses",
        f"Test images above, back from their tokens below: PSNR {told['codec']['psnr']:.1f} dB at "
        f"{told['codec']['bits_per_pixel']:.3f} bits per pixel; {usage['used']:.0f} of {usage['codes']:.0f} codes "
        f"used, perplexity {usage['perplexity']:.0f}.",
    )
    page.pictures([(tile(pairs, 10), "reconstructions")])
    page.section(
        "Judged",
        f"accuracy: share of pictures that a classifier, trained on the same real images, takes for the class asked "
        f"for. Fréchet: {ruler}; the floor is what {recipe.pictures} real images, as many of each class, score "
        f"({floor.value:.3g}). nearest train / held out: median distance to the nearest training image over that of "
        "real held-out images; well below 1 would be memorising.",
    )
    page.table(COLUMNS, [cells(key, each, floor, ruler) for key, each in made.items()], best=[0])
    bits = told["held_out_bits"]
    lines = {"judge": ("loss",), "codec": ("rec",), "prior": ("bits",)}
    told_bits = f"Bits a token: {bits['train']:.3f} on training, {bits['test']:.3f} on test images."
    tell_training(page, out, lines, told["training"], told_bits)
    page.write(out / "report.html")


def cells(name: str, made: Row, floor: Measurement, ruler: str) -> list[str]:
    """One line of the table."""
    x, numbers, alone, batched = made
    accuracy = next(value for key, value in numbers.items() if key.startswith("accuracy"))
    details = accuracy.details or {}
    return [
        name,
        f"{len(x):,}",
        f"{accuracy.value:.3f}",
        f"{details['worst_class']:.3f}",
        f"{numbers[ruler].value:.4g}",
        f"{numbers[ruler].value / floor.value:.2f}",
        f"{numbers['nearest_pixels_ratio'].value:.3f}",
        f"{alone:.4f} alone, {batched:.4f} in batches",
    ]
