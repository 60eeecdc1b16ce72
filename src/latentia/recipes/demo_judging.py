"""The demo's second half: pictures from every model, one judge for all, numbers with their n and their floor."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from latentia.core.files import write_text_atomic
from latentia.core.rng import derive_seed, randn, sample_generators
from latentia.data.digits import digits
from latentia.metrics.evaluate import Judge, evaluate_reconstruction
from latentia.metrics.measurement import Measurement
from latentia.pipelines.latent import LatentDiffusionPipeline
from latentia.recipes.samplers import make_sampler
from latentia.recipes.sampling import Request, sample
from latentia.recipes.training_section import trained

if TYPE_CHECKING:
    from latentia.recipes.demo import Demo
    from latentia.recipes.recipe import Bench
    from latentia.training.phase import PhaseResult

Numbers = Mapping[str, Measurement]
CHUNK = 180
LOOKED_AT = ("latents", "pred_original_sample")


@dataclass(frozen=True)
class Row:
    """One model's pictures and what the judge says of them.

    Attributes:
        model, sampler, weights, guidance: what made the pictures.
        x: (n, 1, 32, 32) in [-1, 1]; picture i is of class i mod 10 (for models without classes: of any).
        numbers: by metric name.
        seconds: of making them.
    """

    model: str
    sampler: str
    weights: str
    guidance: float | None
    x: torch.Tensor
    numbers: Numbers
    seconds: float

    @property
    def n(self) -> int:
        """Number of pictures."""
        return len(self.x)


@dataclass
class Story:
    """Everything that the report shows."""

    recipe: Demo
    train: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor
    judge: Judge
    rows: list[Row] = field(default_factory=list)
    references: dict[str, Numbers] = field(default_factory=dict)
    floors: dict[int, tuple[Measurement, Measurement]] = field(default_factory=dict)
    ceiling: Measurement | None = None
    reconstructions: dict[str, tuple[torch.Tensor, Numbers]] = field(default_factory=dict)
    strip: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    phases: dict[str, dict[str, float]] = field(default_factory=dict)

    def floor(self, n: int) -> tuple[Measurement, Measurement]:
        """What n real images score against all: drawn at random, and with equally many of each class."""
        if n not in self.floors:
            self.floors[n] = self.judge.floor(n, balanced=False, draws=50), self.judge.floor(n, balanced=True, draws=50)
        return self.floors[n]

    def times_floor(self, numbers: Numbers, n: int, balanced: bool = False) -> float:
        """Fréchet distance over the floor of the same n."""
        return numbers[self.judge.name].value / self.floor(n)[balanced].value

    def best(self) -> Row:
        """The row that the demo promises: DPM-Solver++-10, averaged weights, no guidance."""
        return next(r for r in self.rows if r.sampler == "DPM-Solver++ 10" and r.weights == "EMA" and r.guidance == 1)


def tell(recipe: Demo, bench: Bench, results: Mapping[str, PhaseResult], raw_unet: nn.Module, out: Path) -> Story:
    """Make, judge and show the pictures of all models; writes report.html, report.json and overview.png into `out`."""
    from latentia.recipes.demo_report import write_report

    train, test = digits("train", recipe.image_size), digits("test", recipe.image_size)
    everything = digits("all", recipe.image_size)
    judge = Judge(
        bench.parts["judge"].cpu().eval(),
        everything.tensors["x"],
        everything.tensors["label"],
        train=train.tensors["x"],
        held_out=test.tensors["x"],
        seed=recipe.seed,
    )
    story = Story(recipe, train.tensors["x"], test.tensors["x"], test.tensors["label"], judge)
    story.phases.update(trained(results))
    pipe = recipe.pipeline(bench)
    raw = LatentDiffusionPipeline(vae=pipe.codec, unet=raw_unet.to(pipe.device).eval(), scheduler=pipe.scheduler)
    references(story)
    reconstruct(story, bench)
    make_pictures(story, bench, pipe, raw)
    story.strip = denoising_strip(pipe, recipe.seed)
    write_text_atomic(out / "report.json", json.dumps(as_json(story), indent=2) + "\n")
    write_report(story, out)
    return story


def references(story: Story) -> None:
    """What real images score, what copies of training images score, and what noise scores."""
    n, seed = story.recipe.pictures, story.recipe.seed
    story.references["real, never trained on"] = story.judge(story.test, story.test_labels)
    labels = digits("train", story.recipe.image_size).tensors["label"]
    generator = sample_generators(derive_seed("copies", seed), [0])[0]
    members = [torch.nonzero(labels == c).flatten() for c in range(10)]
    rows = torch.cat([m[torch.randint(len(m), (n // 10,), generator=generator)] for m in members])
    story.references["copies of training images"] = story.judge(story.train[rows], labels[rows])
    story.ceiling = story.judge.ceiling(n)


@torch.no_grad()
def reconstruct(story: Story, bench: Bench) -> None:
    """Encode and decode the test images with both codecs."""
    for name, part in (("autoencoder", "autoencoder"), ("KL-VAE", "codec")):
        codec: Any = bench.module(part).eval()
        x = codec.from_latents(codec.to_latents(story.test.to(codec.device))).cpu().clamp(-1, 1)
        numbers = evaluate_reconstruction(story.test, x) | {
            name: value for name, value in story.judge(x, story.test_labels).items() if name == story.judge.name
        }
        story.reconstructions[name] = (x, numbers)


def make_pictures(story: Story, bench: Bench, pipe: LatentDiffusionPipeline, raw: LatentDiffusionPipeline) -> None:
    """Every row of the table, with one progress bar over all of them."""
    from rich.progress import Progress

    n, few, chain = story.recipe.pictures, story.recipe.chain_pictures, story.recipe.chain_steps
    plan = [
        ("DDIM 20", "ddim", 20, n, (1.0, 2.0), ("EMA", "raw")),
        ("DPM-Solver++ 10", "dpm++", 10, n, (1.0, 2.0), ("EMA", "raw")),
        (f"DDPM {chain}", "ddpm", chain, few, (1.0, 2.0), ("EMA", "raw")),
    ]
    jobs = [(name, short, k, m, g, w) for name, short, k, m, scales, ws in plan for g in scales for w in ws]
    with Progress(transient=False) as bar:
        task = bar.add_task("pictures", total=sum(k * m * g for _, _, k, m, g, _ in jobs))
        for label, part in (("autoencoder", "autoencoder"), ("KL-VAE", "codec")):
            story.rows.append(decode_noise(story, label, bench.module(part)))
        for name, short, steps, count, scale, weights in jobs:
            bar.update(task, description=f"{name}, {weights}, guidance {scale:g}")
            story.rows.append(
                sample_row(story, pipe if weights == "EMA" else raw, name, short, steps, count, scale, weights)
            )
            bar.advance(task, steps * count * scale)


@torch.no_grad()
def decode_noise(story: Story, model: str, codec: Any) -> Row:
    """Pictures of a codec alone: decode z ~ N(0, I), as a VAE's prior says."""
    started = time.perf_counter()
    shape = codec.latent_shape(story.test.shape[1:])
    generators = sample_generators(story.recipe.seed, range(story.recipe.pictures))
    x = codec.decode(randn((len(generators), *shape), generators, codec.device)).sample.cpu().clamp(-1, 1)
    seconds = time.perf_counter() - started
    return Row(model, "decode N(0, I)", "raw", None, x, story.judge(x), seconds)


def sample_row(
    story: Story,
    pipe: LatentDiffusionPipeline,
    name: str,
    short: str,
    steps: int,
    count: int,
    guidance: float,
    weights: str,
) -> Row:
    """`count` pictures, class i mod 10, from one sampler; picture i has its own generator under the recipe's seed."""
    sampling = with_sampler(pipe, short)
    request = Request(
        count=count,
        steps=steps,
        seed=story.recipe.seed,
        guidance=guidance,
        batch_size=CHUNK,
        device=story.recipe.device,
    )
    started = time.perf_counter()
    x = sample(sampling, request)
    seconds = time.perf_counter() - started
    labels = torch.arange(count) % 10
    return Row("latent diffusion", name, weights, guidance, x, story.judge(x, labels), seconds)


def with_sampler(pipe: LatentDiffusionPipeline, short: str) -> LatentDiffusionPipeline:
    """The same networks, silent, with another sampler."""
    made = LatentDiffusionPipeline(vae=pipe.codec, unet=pipe.unet, scheduler=make_sampler(short, pipe.scheduler))
    made.set_progress_bar_config(disable=True)
    return made


def denoising_strip(pipe: LatentDiffusionPipeline, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ten digits at each of 20 DDIM steps: the noisy latent and the network's guess x̂₀ of the clean one, decoded."""
    strip = with_sampler(pipe, "ddim")
    steps: list[tuple[torch.Tensor, torch.Tensor]] = []

    def look(_pipe: Any, _step: int, _time: Any, tensors: Mapping[str, torch.Tensor]) -> None:
        noisy, guess = (strip.decode(tensors[name]).cpu().clamp(-1, 1) for name in LOOKED_AT)
        steps.append((noisy, guess))

    strip(
        class_labels=list(range(10)),
        seed=seed,
        num_inference_steps=20,
        callback_on_step_end=look,
        callback_on_step_end_tensor_inputs=LOOKED_AT,
    )
    return steps


def as_json(story: Story) -> dict[str, Any]:
    """report.json: every number with its n, its seed and its seconds."""

    def numbers(found: Numbers) -> dict[str, Any]:
        return {name: value.to_dict() for name, value in found.items()}

    def row(each: Row) -> dict[str, Any]:
        made_by = {"model": each.model, "sampler": each.sampler, "weights": each.weights, "guidance": each.guidance}
        judged = {
            "times_floor": story.times_floor(each.numbers, each.n),
            "times_balanced_floor": story.times_floor(each.numbers, each.n, balanced=True),
        }
        made_by |= {"n": each.n, "seed": story.recipe.seed, "seconds": round(each.seconds, 2)}
        return made_by | judged | {"numbers": numbers(each.numbers)}

    assert story.ceiling is not None
    rows = [row(each) for each in story.rows]  # first: this also measures the floors
    return {
        "recipe": story.recipe.model_dump(mode="json"),
        "seed": story.recipe.seed,
        "threads": torch.get_num_threads(),
        "training": story.phases,
        "floors": {str(n): {"random": a.to_dict(), "balanced": b.to_dict()} for n, (a, b) in story.floors.items()},
        "ceiling": story.ceiling.to_dict(),
        "references": {name: numbers(found) for name, found in story.references.items()},
        "reconstructions": {name: numbers(found) for name, (_, found) in story.reconstructions.items()},
        "rows": rows,
    }
