"""What `digits-text` draws when asked in words that it never read, judged beside real images and trivial controls."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.files import write_text_atomic
from latentia.core.rng import derive_seed, sample_generators
from latentia.data.captioned_digits import NO_DIGIT, CaptionedDigits, captioned_digits, look_at, phrase
from latentia.data.digits import NUM_CLASSES, digits
from latentia.metrics.evaluate import Classifier, Judge, predict
from latentia.metrics.measurement import Measurement
from latentia.metrics.psnr import psnr
from latentia.recipes.training_section import trained

if TYPE_CHECKING:
    from latentia.pipelines.ldm_text_to_image import LDMTextToImagePipeline
    from latentia.recipes.digits_text import DigitsText
    from latentia.recipes.recipe import Bench
    from latentia.training.phase import PhaseResult

CONTENTS = ("single", "pair", "held_out_pair")
STEPS = 10
GUIDANCE = (1.0, 1.5, 3.0)
PROMISED = 1.5
"""The guidance of the row that the recipe states, of its controls, and of every picture shown."""

PANEL = "a picture of the digits {left} and {right}"
"""One of the held-out phrasings."""

CHUNK = 250


@dataclass(frozen=True)
class Row:
    """Pictures of one origin for each of `CONTENTS`, and what the judge says of them.

    Attributes:
        name: what they are.
        phrasings: of the captions, `train` or `held_out`; empty for pictures that no caption made.
        guidance: scale of classifier-free guidance, None for pictures that no sampler made.
        x: by content, (n, 1, S, 2·S) in [-1, 1].
        numbers: by content, by metric name.
        seconds: of making them all.
    """

    name: str
    phrasings: str
    guidance: float | None
    x: Mapping[str, torch.Tensor]
    numbers: Mapping[str, dict[str, Measurement]]
    seconds: float


@dataclass
class Story:
    """Everything that the report shows."""

    recipe: DigitsText
    judge: Judge
    asked: dict[str, CaptionedDigits]
    vocabulary: int
    rows: list[Row] = field(default_factory=list)
    floor: Measurement | None = None
    codec_psnr: Measurement | None = None
    by_phrasing: dict[str, dict[str, Measurement]] = field(default_factory=dict)
    one_noise: torch.Tensor | None = None
    all_pairs: torch.Tensor | None = None
    phases: dict[str, dict[str, float]] = field(default_factory=dict)

    def row(self, name: str, guidance: float | None = None) -> Row:
        """The row of that name (and guidance, if given)."""
        return next(r for r in self.rows if r.name == name and guidance in (None, r.guidance))

    def best(self) -> Row:
        """The row that the recipe promises."""
        return self.row("held-out phrasings", PROMISED)


def tell(recipe: DigitsText, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> Story:
    """Make, judge and show pictures; writes report.html, report.json and overview.png into `out`."""
    from latentia.recipes.digits_text_report import write_report

    classifier = bench.parts["judge"].cpu().eval()
    everything, train, test = (digits(split, recipe.image_size).tensors for split in ("all", "train", "test"))
    judge = Judge(classifier, everything["x"], everything["label"], train["x"], test["x"], seed=recipe.seed)
    asked = {content: questions(recipe, "held_out", content) for content in CONTENTS}
    pipe = recipe.pipeline(bench)
    pipe.set_progress_bar_config(disable=True)
    story = Story(recipe, judge, asked, len(pipe.tokenizer))
    story.floor = judge.floor(recipe.judged, balanced=False, draws=50)
    story.phases.update(trained(results))
    look_at_real_images(story, bench)
    draw(story, pipe)
    story.by_phrasing = by_phrasing(story)
    story.one_noise, story.all_pairs = one_noise(pipe, recipe.seed), all_pairs(pipe, recipe.seed)
    write_text_atomic(out / "report.json", json.dumps(as_json(story), indent=2) + "\n")
    write_report(story, out)
    return story


def questions(recipe: DigitsText, phrasings: str, content: str) -> CaptionedDigits:
    """What is asked for, with test scans beside it."""
    seed = derive_seed("judged", recipe.seed)
    return captioned_digits(recipe.judged, "test", phrasings, content, recipe.image_size, seed)


@torch.no_grad()
def look_at_real_images(story: Story, bench: Bench) -> None:
    """Rows of real pictures, as they are and through the codec: no model can be expected to score higher."""
    codec: Any = bench.module("codec").eval()
    real = {content: asked.x for content, asked in story.asked.items()}
    story.rows.append(judged(story, "real images", "", None, real, story.asked, 0.0))
    started = time.perf_counter()
    noises = sample_generators(story.recipe.seed, range(story.recipe.judged))
    coded = {}
    for content, x in real.items():
        z = codec.to_latents(x.to(codec.device), noises)
        coded[content] = codec.from_latents(z).cpu().clamp_(-1, 1)
    seconds = time.perf_counter() - started
    story.rows.append(judged(story, "real images through the codec", "", None, coded, story.asked, seconds))
    values = torch.cat([psnr(real[content], coded[content]) for content in CONTENTS])
    story.codec_psnr = Measurement("psnr", float(values.mean()), len(values), len(values))


def draw(story: Story, pipe: LDMTextToImagePipeline) -> None:
    """Rows of generated pictures, with one progress bar over all of them."""
    from rich.progress import Progress

    recipe, seed = story.recipe, story.recipe.seed
    read = {content: questions(recipe, "train", content) for content in CONTENTS}
    plan = [("training phrasings", "train", read, PROMISED)]
    plan += [("held-out phrasings", "held_out", story.asked, scale) for scale in GUIDANCE]
    with Progress(transient=False) as bar:
        task = bar.add_task("pictures", total=len(plan) * len(CONTENTS) + 1)
        for name, phrasings, asked, scale in plan:
            bar.update(task, description=f"{name}, guidance {scale:g}")
            x, started = {}, time.perf_counter()
            for content in CONTENTS:
                x[content] = make(pipe, asked[content].captions, seed, scale)
                bar.advance(task)
            story.rows.append(judged(story, name, phrasings, scale, x, asked, time.perf_counter() - started))
        best = story.best()
        order = torch.randperm(recipe.judged, generator=sample_generators(derive_seed("shuffled", seed), [0])[0])
        shuffled = {content: each[order] for content, each in best.x.items()}
        story.rows.append(judged(story, "captions shuffled", "held_out", PROMISED, shuffled, story.asked, best.seconds))
        started = time.perf_counter()
        nothing = make(pipe, [""] * recipe.judged, seed, 1.0)
        seconds = time.perf_counter() - started
        same = dict.fromkeys(CONTENTS, nothing)
        story.rows.append(judged(story, "empty prompt", "", 1.0, same, story.asked, seconds))
        bar.advance(task)


def make(
    pipe: LDMTextToImagePipeline,
    prompts: Sequence[str],
    seed: int,
    guidance: float = PROMISED,
    noises: Sequence[int] | None = None,
) -> torch.Tensor:
    """Pictures (n, 1, S, 2·S) in [-1, 1] of the prompts; the i-th from noise i, or `noises[i]`, of `seed`."""
    made: Any = pipe(
        list(prompts),
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        seed=seed,
        sample_indices=noises,
        output_type="pt",
        max_batch=CHUNK,
    )
    x: torch.Tensor = made.images.cpu() * 2 - 1
    return x


def judged(
    story: Story,
    name: str,
    phrasings: str,
    guidance: float | None,
    x: Mapping[str, torch.Tensor],
    asked: Mapping[str, CaptionedDigits],
    seconds: float,
) -> Row:
    """The row of pictures `x` that were asked for as `asked`."""
    numbers = {k: score(story.judge.classifier, x[k], asked[k].digits, story.recipe.seed) for k in CONTENTS}
    own = story.judge(look_at(x["single"], "middle"))
    keep = (story.judge.name, "nearest_pixels_ratio")
    numbers["single"] |= {key: own[key] for key in keep}
    return Row(name, phrasings, guidance, x, numbers, seconds)


def score(classifier: Classifier, x: torch.Tensor, shown: torch.Tensor, seed: int) -> dict[str, Measurement]:
    """Shares of pictures that show what was asked for, all singles or all pairs.

    `accuracy`: of singles the digit, of pairs both digits, each in its place. For pairs also `each`, the share of
    digits that are right, and `swapped`, of pictures that show the right digits in the wrong order (pairs of equal
    digits left out).
    """
    if bool((shown[:, 1] == NO_DIGIT).all()):
        return {"accuracy": share("accuracy", predict(classifier, look_at(x, "middle")) == shown[:, 0], seed)}
    seen = torch.stack([predict(classifier, look_at(x, place)) for place in ("left", "right")], 1)
    unequal = shown[:, 0] != shown[:, 1]
    found = [share("accuracy", (seen == shown).all(1), seed), share("each", (seen == shown).flatten(), seed)]
    if bool(unequal.any()):
        found.append(share("swapped", (seen.flip(1) == shown).all(1)[unequal], seed))
    return {each.name: each for each in found}


def share(name: str, hits: torch.Tensor, seed: int) -> Measurement:
    """Share of hits, with its standard error √(p(1 − p)/n)."""
    p, n = float(hits.double().mean()), len(hits)
    return Measurement(name, p, n, seed=seed, details={"standard_error": (p * (1 - p) / n) ** 0.5})


def by_phrasing(story: Story) -> dict[str, dict[str, Measurement]]:
    """Accuracy of the promised row, by content and phrasing."""
    best, classifier = story.best(), story.judge.classifier
    found: dict[str, dict[str, Measurement]] = {}
    for content, asked in story.asked.items():
        found[content] = {}
        for template in sorted(set(asked.templates)):
            rows = torch.tensor([i for i, each in enumerate(asked.templates) if each == template])
            numbers = score(classifier, best.x[content][rows], asked.digits[rows], story.recipe.seed)
            found[content][template] = numbers["accuracy"]
    return found


def one_noise(pipe: LDMTextToImagePipeline, seed: int, rows: int = 3) -> torch.Tensor:
    """Pictures (rows·10, 1, S, 2·S): in each row the same noise, under "a zero" to "a nine"."""
    prompts = [phrase("a {left}", (digit,), words=True) for digit in range(NUM_CLASSES)] * rows
    return make(pipe, prompts, seed, noises=[row for row in range(rows) for _ in range(NUM_CLASSES)])


def all_pairs(pipe: LDMTextToImagePipeline, seed: int) -> torch.Tensor:
    """A hundred pictures of `PANEL`, left digit down, right digit across."""
    prompts = [PANEL.format(left=left, right=right) for left in range(NUM_CLASSES) for right in range(NUM_CLASSES)]
    return make(pipe, prompts, seed)


def as_json(story: Story) -> dict[str, Any]:
    """report.json: every number with its n, its seed and its seconds."""
    assert story.floor is not None
    assert story.codec_psnr is not None
    floor = story.floor

    def numbers(found: Mapping[str, Measurement]) -> dict[str, Any]:
        return {name: value.to_dict() for name, value in found.items()}

    def row(each: Row) -> dict[str, Any]:
        made = {"name": each.name, "phrasings": each.phrasings, "guidance": each.guidance, "n": story.recipe.judged}
        made |= {"seed": story.recipe.seed, "seconds": round(each.seconds, 2)}
        made["times_floor"] = each.numbers["single"][story.judge.name].value / floor.value
        return made | {"numbers": {content: numbers(found) for content, found in each.numbers.items()}}

    return {
        "recipe": story.recipe.model_dump(mode="json"),
        "seed": story.recipe.seed,
        "threads": torch.get_num_threads(),
        "training": story.phases,
        "vocabulary": story.vocabulary,
        "floor": floor.to_dict(),
        "codec": story.codec_psnr.to_dict(),
        "rows": [row(each) for each in story.rows],
        "by_phrasing": {content: numbers(found) for content, found in story.by_phrasing.items()},
    }
