"""What the FlowMo recipes measure: a curve while they train, and every way of sampling when they are done."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.artifacts import read_safetensors, write_safetensors
from latentia.core.files import write_text_atomic
from latentia.core.rng import sample_generators
from latentia.recipes.codec_evaluation import judge_pictures, usage_of
from latentia.recipes.recipe import use_average

if TYPE_CHECKING:
    from latentia.core.protocols import FeatureNetwork
    from latentia.methods.flowmo.sampler import Sampler
    from latentia.recipes.flowmo import FlowMoRecipe
    from latentia.recipes.recipe import Bench
    from latentia.training.phase import PhaseResult

CURVE, NUMBERS, KEPT = "curve.jsonl", "numbers.json", "curve"
NOTED = (4, 10)
"""Steps of the sampler at each point of the curve; without guidance, which costs twice."""
COUNTS = (25, 10, 4, 2, 1)
SHIFTED = 4.0
"""The article's ρ."""
CHUNK = 180


def samplers(recipe: FlowMoRecipe) -> dict[str, Sampler]:
    """By name: fewer and fewer steps; then both grids, and no guidance or guidance everywhere, in the recipe's own."""
    from latentia.methods.flowmo.sampler import Sampler

    own = recipe.sampling
    interval, steps = (own.low, own.high), own.steps
    found = {f"{n} steps": Sampler(n, own.rho, own.guidance, interval) for n in COUNTS}
    found[f"{steps} steps"] = Sampler(steps, own.rho, own.guidance, interval)
    found["linear"] = Sampler(steps, 1.0, own.guidance, interval)
    found["shifted"] = Sampler(steps, SHIFTED, own.guidance, interval)
    found["no guidance"] = Sampler(steps, own.rho, 1.0, interval)
    found["guided everywhere"] = Sampler(steps, own.rho, own.guidance, None)
    return found


def ruler(recipe: FlowMoRecipe, bench: Bench) -> FeatureNetwork:
    """What the Fréchet distance is measured on: the digits' judge, or the ruler of photographs."""
    if "ruler" not in bench.parts:
        from latentia.recipes.judge import digits_judge
        from latentia.recipes.photo_features import ruler as photo_ruler

        if recipe.data == "digits":
            bench.keep("ruler", digits_judge(recipe.image_size))
        else:
            bench.keep("ruler", photo_ruler(None if bench.out is None else bench.out / "features"))
    found: FeatureNetwork = bench.parts["ruler"]
    return found


@torch.no_grad()
def reconstruct(codec: Any, x: torch.Tensor, sampler: Sampler, seed: int = 0) -> torch.Tensor:
    """x (N, C, H, W) there and back; picture i draws from (seed, i)."""
    made = []
    for start in range(0, len(x), CHUNK):
        part = x[start : start + CHUNK].to(codec.device)
        generators = sample_generators(seed, range(start, start + len(part)))
        made.append(codec.decode(codec.to_latents(part), generators, sampler).sample.cpu())
    return torch.cat(made)


def note(recipe: FlowMoRecipe, bench: Bench, phase: str) -> None:
    """Append a line to curve.jsonl: PSNR of held-out pictures against the CPU time of training, measuring left out.

    The reconstructions are kept until the ruler is there, which needs a training of its own: see `finish_curve`. A
    resumed run goes on from the last line's time, and lines of steps that are taken again are dropped.
    """
    assert bench.out is not None
    from latentia.methods.flowmo.sampler import Sampler

    now, step = time.process_time(), bench.parts["objective"].step + 1
    lines = [each for each in read_curve(bench.out) if (each["phase"], each["step"]) != (phase, step)]
    before = lines[-1]["cpu_seconds"] if lines else 0.0
    since = bench.parts.get("clock", bench.parts["started"])
    x = test_pictures(recipe)
    line: dict[str, Any] = {"phase": phase, "step": step, "cpu_seconds": round(before + now - since, 1)}
    kept = {}
    for steps in NOTED:
        made = reconstruct(bench.parts["codec"], x, Sampler(steps, recipe.sampling.rho, 1.0), recipe.seed)
        line[f"psnr_{steps}"] = judge_pictures(x, made)["psnr"]
        kept[str(steps)] = made
    (bench.out / KEPT).mkdir(exist_ok=True)
    write_safetensors(bench.out / KEPT / f"{phase}-{step}.safetensors", kept, {})
    write_curve(bench.out, [*lines, line])
    bench.parts["clock"] = time.process_time()


def finish_curve(recipe: FlowMoRecipe, bench: Bench, out: Path) -> None:
    """Give every line of curve.jsonl its Fréchet distances, and drop the pictures that were kept for that."""
    x, lines = test_pictures(recipe), read_curve(out)
    for line in lines:
        file = out / KEPT / f"{line['phase']}-{line['step']}.safetensors"
        if not file.is_file():
            continue
        for steps, made in read_safetensors(file).items():
            found = judge_pictures(x, made, [ruler(recipe, bench)])["frechet"]
            line |= {f"{name}_{steps}": value for name, value in found.items()}
        file.unlink()
    write_curve(out, lines)
    if (out / KEPT).is_dir() and not any((out / KEPT).iterdir()):
        (out / KEPT).rmdir()


def read_curve(out: Path) -> list[dict[str, Any]]:
    """The lines of curve.jsonl, none if there is no such file."""
    file = out / CURVE
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def write_curve(out: Path, lines: list[dict[str, Any]]) -> None:
    """All of them at once."""
    write_text_atomic(out / CURVE, "".join(json.dumps(line) + "\n" for line in lines))


def test_pictures(recipe: FlowMoRecipe) -> torch.Tensor:
    """All held-out pictures."""
    data = recipe.images("test")
    return data.batch(range(len(data)))["x"]


def judge_stages(
    recipe: FlowMoRecipe, bench: Bench, results: Mapping[str, PhaseResult], out: Path
) -> dict[str, dict[str, Any]]:
    """Every stage with every sampler, on the test pictures, into numbers.json: {stage: {sampler: numbers}}."""
    x = test_pictures(recipe)
    codec: Any = bench.parts["codec"]
    found: dict[str, dict[str, Any]] = {}
    for stage in ("pretraining", "frozen", "post-training"):
        if stage not in results:
            continue
        averaged = results[stage].averaged
        if averaged is None:
            continue
        use_average(results[stage])
        codec.eval()
        rows: dict[str, Any] = {}
        for name, sampler in samplers(recipe).items():
            started = time.process_time()
            made = reconstruct(codec, x, sampler, recipe.seed)
            seconds = (time.process_time() - started) / len(x)
            rows[name] = judge_pictures(x, made, [ruler(recipe, bench)]) | {"cpu_seconds_a_picture": seconds}
        if recipe.sizes.quantizer != "none":
            with torch.no_grad():
                tokens = torch.cat([codec.to_tokens(part.to(codec.device)) for part in x.split(CHUNK)])
            usage = usage_of(codec, tokens)
            rows["usage"] = {"perplexity": usage.perplexity, "used": usage.used, "codes": usage.codes}
        found[stage] = rows
    bits = None if recipe.sizes.quantizer == "none" else codec.bits(codec.picture_shape)
    written = {"n": len(x), "seed": recipe.seed, "bits": bits, "parameters": codec.num_parameters(), "stages": found}
    write_text_atomic(out / NUMBERS, json.dumps(written, indent=2) + "\n")
    return found
