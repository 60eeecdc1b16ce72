"""The stages of `tokenizers-study`: each takes the recipe and a bench, and returns numbers that JSON holds.

Pictures for the page lie beside as OUT/stages/NAME.safetensors, uint8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from latentia.core.rng import sample_generators
from latentia.errors import InputError
from latentia.recipes import tokenizers_study_runs as sub
from latentia.recipes.codec_evaluation import evaluate_codec, evaluate_formats, judge_pictures
from latentia.recipes.study import FOLDER, missing_stages
from latentia.recipes.tokenizers_study import CODECS, DATA, SIZES, STAGES
from latentia.recipes.tokenizers_study_kept import (
    BITS,
    FIRST_STAGE,
    accuracy,
    flowmos,
    folder_of,
    judged,
    keep_pictures,
    open_saved,
    ruler,
    saved,
    slug,
    spread,
)

if TYPE_CHECKING:
    from latentia.core.protocols import FeatureNetwork
    from latentia.recipes.recipe import Bench
    from latentia.recipes.tokenizers_study import TokenizersStudy

    Numbers = dict[str, Any]

SHOWN = 12
DRAWS, DRAWN, CODES_DRAWN = 16, 5, 6
"""Samples of one code; those of them that are shown; codes."""
RATES = (0.5, 1.0, 2.0, 4.0)
"""Budgets of the formats' curves, in units of the codecs'."""
CURVE_PICTURES = 48
NEEDS = {
    "whole": tuple(name for name in CODECS if name.endswith("photos")),
    "samplers": ("flowmo-digits", "flowmo-photos"),
    "modes": ("flowmo-digits", "flowmo-photos"),
}
"""Codecs of which a stage takes what there is, and needs at least one."""


def check_needs(study: TokenizersStudy, out: Path) -> None:
    """Raise `InputError` for a chosen stage whose codecs are neither there nor chosen."""
    there = {name for name in CODECS if name in study.stages or (out / FOLDER / f"{name}.json").is_file()}
    for name in missing_stages(STAGES, study.stages, out):
        if name in NEEDS and not there & {*NEEDS[name]}:
            raise InputError(f"stage {name!r} needs a codec: add one of {', '.join(NEEDS[name])} to stages")


def codec(study: TokenizersStudy, bench: Bench, stage: str) -> Numbers:
    """Train a codec, and judge it."""
    folder, data = folder_of(bench) / stage, stage.split("-")[1]
    size = SIZES[study.size]
    x, labels = judged(bench, data, size.pictures)
    noted = judged(bench, data, size.noted)[0]
    sub.run_watched(sub.codec_run(study, stage), folder, noted, ruler(bench, data))
    spent = sub.Watch(folder).spent
    found: Numbers = {"data": data, "curve": sub.read_lines(folder / sub.CURVE), "codecs": {}}
    shown = {"original": x[spread(len(x), SHOWN)]}
    for label, path in saved(folder, stage).items():
        opened = open_saved(path, bench)
        numbers, back = evaluate_codec(opened, x, [ruler(bench, data)], seed=study.seed)
        shown[label] = back[spread(len(x), SHOWN)]
        row = numbers.to_dict() | {"parameters": sum(p.numel() for p in opened.parameters())}
        row["bits"] = opened.bits(tuple(x.shape[1:]))
        row["cpu_seconds"] = spent["pretraining"] if label == FIRST_STAGE else max(spent.values())
        row["steps"] = sub.codec_run(study, stage).steps
        found["codecs"][label] = row | accuracy(bench, data, back, labels)
    keep_pictures(bench, stage, shown)
    return found


def formats(study: TokenizersStudy, bench: Bench) -> Numbers:
    """JPEG, WebP and AVIF on the same pictures at the same bits, and at half to four times as many."""
    found: Numbers = {}
    for data in DATA:
        side, bits = BITS[data]
        rate = bits / side**2
        x = judged(bench, data, SIZES[study.size].pictures)[0]
        both = {
            name: evaluate_formats(x, rate, [ruler(bench, data)], headers=headers)
            for name, headers in (("without headers", False), ("with headers", True))
        }
        few = x[spread(len(x), CURVE_PICTURES)]
        curves: dict[str, list[list[float]]] = {}
        for factor in RATES:
            for name, row in evaluate_formats(few, factor * rate, headers=False).items():
                curves.setdefault(name, []).append([row["bits_per_pixel"], row["psnr"], row["fits"]])
        found[data] = {"n": len(x), "rate": rate, **both, "curves": curves, "curve_n": len(few)}
    return found


def whole(study: TokenizersStudy, bench: Bench) -> Numbers:
    """`coffee`, cut into tiles side by side, through every codec; and as files of the same bits, headers included."""
    from latentia.core.images import from_pil, to_pil
    from latentia.data.photos import photograph
    from latentia.metrics.image_formats import FORMATS, compress
    from latentia.recipes.compress import Cut

    x = torch.from_numpy(photograph("coffee").copy()).permute(2, 0, 1).float() / 127.5 - 1
    cut = Cut(x.shape[1], x.shape[2], BITS["photos"][0], 0)
    tiles = cut.split(x)
    bits = len(tiles) * BITS["photos"][1]
    rows: Numbers = {}
    pictures = {"original": x[None]}
    for stage in NEEDS["whole"]:
        if not (folder_of(bench) / f"{stage}.json").is_file():
            continue
        for label, path in saved(folder_of(bench) / stage, stage).items():
            numbers, back = evaluate_codec(open_saved(path, bench), tiles, seed=study.seed)
            joined = cut.join(back)[None]
            seconds = len(tiles) * (numbers.encode_seconds + numbers.decode_seconds)
            rows[label] = judge_pictures(x[None], joined) | {"bytes": math.ceil(bits / 8), "seconds": seconds}
            pictures[label] = joined
    for name in FORMATS:
        made = compress(to_pil(x[None])[0], name, bits / 8)
        back = from_pil([made.picture], 3)
        rows[name] = judge_pictures(x[None], back) | {"bytes": made.bytes, "fits": made.fits}
        pictures[name] = back
    keep_pictures(bench, "whole", pictures)
    return {"height": x.shape[1], "width": x.shape[2], "tiles": len(tiles), "bits": bits, "rows": rows}


def samplers(study: TokenizersStudy, bench: Bench) -> Numbers:
    """FlowMo in 25 to 1 steps, on both grids, without guidance and guided everywhere; after 1A and after 1B."""
    import time

    from latentia.recipes.flowmo_judging import reconstruct
    from latentia.recipes.flowmo_judging import samplers as ways

    found: Numbers = {}
    for stage, data in flowmos(bench):
        x = judged(bench, data, SIZES[study.size].sampled)[0]
        recipe: Any = sub.codec_run(study, stage)
        found[data] = {"n": len(x), "own": f"{recipe.sampling.steps} steps"}
        for label, path in saved(folder_of(bench) / stage, stage).items():
            opened, rows = open_saved(path, bench), {}
            for name, sampler in ways(recipe).items():
                began = time.process_time()
                made = reconstruct(opened, x, sampler, study.seed)
                seconds = (time.process_time() - began) / len(x)
                rows[name] = judge_pictures(x, made, [ruler(bench, data)]) | {"cpu_seconds_a_picture": seconds}
            found[data][label] = rows
    return found


@torch.no_grad()
def modes(study: TokenizersStudy, bench: Bench) -> Numbers:
    """Several samples of one code: how far apart they are, pixel by pixel, and where."""
    found: Numbers = {}
    for stage, data in flowmos(bench):
        x = judged(bench, data, SIZES[study.size].pictures)[0]
        x = x[spread(len(x), CODES_DRAWN)]
        found[data] = {"codes": len(x), "draws": DRAWS}
        for label, path in saved(folder_of(bench) / stage, stage).items():
            opened = open_saved(path, bench)
            tokens = opened.to_tokens(x.to(bench.device))
            made = torch.stack(
                [
                    opened.from_tokens(tokens, generator=sample_generators(study.seed + i, range(len(x)))).cpu()
                    for i in range(DRAWS)
                ],
                1,
            )
            deviation = made.std(1)
            repeated = x.repeat_interleave(DRAWS, 0)
            found[data][label] = {
                "deviation": float(deviation.mean()),
                "psnr": judge_pictures(repeated, made.flatten(0, 1))["psnr"],
                "psnr_of_mean": judge_pictures(x, made.mean(1))["psnr"],
            }
            strongest = deviation.mean(1, keepdim=True)
            found[data][label]["largest"] = float(strongest.max())
            scaled = (2 * strongest / strongest.amax().clamp(min=1e-6) - 1).expand(-1, x.shape[1], -1, -1)
            rows = torch.cat([x[:, None], made[:, :DRAWN], made.mean(1, keepdim=True), scaled[:, None]], 1)
            keep_pictures(bench, f"modes-{data}-{slug(label)}", {"rows": rows.flatten(0, 1)})
    return found


def ablations(study: TokenizersStudy, bench: Bench) -> Numbers:
    """FlowMo-1A on digits, whole and with one thing changed, all equally long; the sampler's need no training."""
    from latentia.recipes.flowmo import FlowMoRecipe
    from latentia.recipes.flowmo_digits import ABLATIONS
    from latentia.recipes.flowmo_judging import reconstruct
    from latentia.recipes.flowmo_judging import samplers as ways

    x = judged(bench, "digits", SIZES[study.size].pictures)[0]
    measure: FeatureNetwork = ruler(bench, "digits")
    rows: Numbers = {}
    steps = 0
    for name, recipe in sub.ablation_runs(study).items():
        assert isinstance(recipe, FlowMoRecipe)
        folder = folder_of(bench) / "ablations" / slug(name)
        sub.run_watched(recipe, folder, None, None)
        opened = open_saved(folder / sub.FIRST, bench)
        spent = max(sub.Watch(folder).spent.values())
        numbers, _ = evaluate_codec(opened, x, [measure], seed=study.seed)
        rows[name] = numbers.to_dict() | {"cpu_seconds": spent, "bits": opened.bits(tuple(x.shape[1:]))}
        if name == "whole":
            steps, found = recipe.regression_steps + recipe.steps, ways(recipe)
            chosen = {each: found[given] for each, given in SAMPLERS.items() if each in ABLATIONS}
            alone = {
                each: judge_pictures(x, reconstruct(opened, x, sampler, study.seed), [measure])
                for each, sampler in chosen.items()
            }
    order = ["whole", *(name for name in ABLATIONS if name in rows or name in alone)]
    return {"n": len(x), "steps": steps, "rows": {name: (rows | alone)[name] for name in order}}


SAMPLERS = {"shifted sampler": "shifted", "no guidance": "no guidance"}
"""Ablation → its name among `flowmo_judging.samplers`."""


def priors(study: TokenizersStudy, bench: Bench) -> Numbers:
    """MaskGIT and the autoregressive transformer on digits: the first row of each one's own report."""
    from latentia.core.files import read_json

    found: Numbers = {}
    for name in sub.PRIORS:
        folder = folder_of(bench) / name
        if not (folder / "report.json").is_file():
            sub.go_on(sub.prior_run(study, name), folder)
        told = read_json(folder / "report.json")
        first = told["rows"][0]
        found[name] = {
            "drawn by": first["drawn by"],
            "n": first["n"],
            "numbers": {key: each["value"] for key, each in first["numbers"].items()},
            "floor": told["floor"]["value"],
            "seconds_alone": first["seconds_alone"],
            "seconds_in_batch": first["seconds_in_batch"],
            "training_seconds": sum(each["seconds"] for each in told["training"].values()),
        }
    return found


FUNCTIONS: dict[str, Callable[[Any, Any], Any]] = {
    **{name: partial(codec, stage=name) for name in CODECS},
    "formats": formats,
    "whole": whole,
    "samplers": samplers,
    "modes": modes,
    "ablations": ablations,
    "priors": priors,
}
