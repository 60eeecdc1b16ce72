"""The runs that `tokenizers-study` is made of: published recipes, shortened, watched, in folders of their own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import PrivateAttr

from latentia.core.files import read_json, write_text_atomic
from latentia.recipes import registry
from latentia.recipes.flowmo import FlowMoRecipe
from latentia.recipes.overrides import override
from latentia.recipes.recipe import Bench, Recipe, use_average
from latentia.recipes.run import run_recipe
from latentia.recipes.tokenizers_study import CODECS, SIZES
from latentia.recipes.vqgan import VQGAN
from latentia.recipes.vqvae import VQVAE

if TYPE_CHECKING:
    import torch

    from latentia.core.protocols import FeatureNetwork
    from latentia.recipes.tokenizers_study import TokenizersStudy
    from latentia.training.phase import Phase, PhaseResult

    Builder = tuple[str, Callable[[], Phase]]

QUANTIZERS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("fsq", "digits"): ("codec.quantizer=fsq", "codec.code_dim=3", "codec.fsq_levels=8,8,4"),
    ("fsq", "photos"): ("codec.quantizer=fsq", "codec.code_dim=3", "codec.fsq_levels=8,8,8"),
    ("lfq", "digits"): ("codec.quantizer=lfq", "codec.code_dim=8", "codec.latent_channels=8"),
    ("lfq", "photos"): ("codec.quantizer=lfq", "codec.code_dim=9", "codec.latent_channels=9"),
}
"""VQ-VAE with another quantizer and the same number of codes; a bit of LFQ's is a channel, so it needs as many."""

PRIORS = ("maskgit-digits", "gpt-digits")
UNWATCHED = ("features", "regression")
"""Phases before there is a codec that samples; their time counts."""
CURVE, SPENT, FIRST, LAST = "curve.jsonl", "spent.json", "pipeline-1a", "pipeline"


class Watch:
    """Measures a codec while it trains: numbers against CPU seconds, with the time that measuring takes left out.

    Args:
        folder: of the run; curve.jsonl and spent.json are written there, and read by a run that goes on.
        pictures: held-out (N, C, H, W); None notes no curve.
        ruler: of the Fréchet distance.
    """

    def __init__(self, folder: Path, pictures: torch.Tensor | None = None, ruler: FeatureNetwork | None = None) -> None:
        self.folder, self.pictures, self.ruler = folder, pictures, ruler
        self.lines = read_lines(folder / CURVE)
        self.spent: dict[str, float] = read_json(folder / SPENT) if (folder / SPENT).is_file() else {}
        self.before = max([0.0, *self.spent.values(), *(line["cpu_seconds"] for line in self.lines)])
        self.clock = time.process_time()
        self.step, self.phase = 0, ""

    def seconds(self) -> float:
        """CPU seconds of training so far."""
        return self.before + time.process_time() - self.clock

    def wrap(self, bench: Bench, phases: list[Builder]) -> list[Builder]:
        """The same phases, watched."""
        self.clock = time.process_time()
        return [(name, partial(self._build, bench, name, build)) for name, build in phases]

    def _build(self, bench: Bench, name: str, build: Callable[[], Phase]) -> Phase:
        self.end()
        self.phase = name
        phase = build()
        phase.objective.register_forward_pre_hook(self._see)
        watched = self.pictures is not None and name not in UNWATCHED
        return replace(phase, preview=partial(self.note, bench) if watched else None)

    def _see(self, _: Any, given: tuple[Any, ...]) -> None:
        self.step = given[2] + 1

    def end(self) -> None:
        """The current phase is over: keep what it cost, unless it was over before this run went on."""
        if self.phase and self.phase not in self.spent:
            self.spent[self.phase] = round(self.seconds(), 1)
            write_text_atomic(self.folder / SPENT, json.dumps(self.spent) + "\n")

    def note(self, bench: Bench) -> None:
        """A point of the curve."""
        from latentia.recipes.codec_evaluation import evaluate_codec

        assert self.pictures is not None
        assert self.ruler is not None
        seconds, here = self.seconds(), (self.phase, self.step)
        numbers, _ = evaluate_codec(bench.parts["codec"], self.pictures, [self.ruler])
        line = {"phase": self.phase, "step": self.step, "cpu_seconds": round(seconds, 1), "n": numbers.n}
        line |= {"psnr": numbers.psnr, **numbers.frechet}
        self.lines = [*(each for each in self.lines if (each["phase"], each["step"]) != here), line]
        write_text_atomic(self.folder / CURVE, "".join(json.dumps(each) + "\n" for each in self.lines))
        self.before, self.clock = seconds, time.process_time()


class WatchedVQVAE(VQVAE):
    """Saves its codec and leaves the judging to the study."""

    _watch: Watch = PrivateAttr()

    def phases(self, bench: Bench) -> list[Builder]:
        """As published, watched."""
        return self._watch.wrap(bench, super().phases(bench))

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """`out`/pipeline."""
        keep_codec(self._watch, results["codec"], bench, out / LAST)


class WatchedVQGAN(VQGAN):
    """Saves its codec and leaves the judging to the study."""

    _watch: Watch = PrivateAttr()

    def phases(self, bench: Bench) -> list[Builder]:
        """As published, watched."""
        return self._watch.wrap(bench, super().phases(bench))

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """`out`/pipeline."""
        keep_codec(self._watch, results["codec"], bench, out / LAST)


class WatchedFlowMo(FlowMoRecipe):
    """Saves its codec after stage 1A and after 1B, and leaves the judging to the study."""

    _watch: Watch = PrivateAttr()

    def phases(self, bench: Bench) -> list[Builder]:
        """As published, watched."""
        return self._watch.wrap(bench, super().phases(bench))

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """`out`/pipeline-1a and, where there is a stage 1B, `out`/pipeline."""
        keep_codec(self._watch, results["pretraining"], bench, out / FIRST)
        keep_codec(self._watch, results[list(results)[-1]], bench, out / LAST)


WATCHED: Mapping[type[Recipe], type[Recipe]] = {VQVAE: WatchedVQVAE, VQGAN: WatchedVQGAN, FlowMoRecipe: WatchedFlowMo}


def keep_codec(watch: Watch, result: PhaseResult, bench: Bench, folder: Path) -> None:
    """Save the codec with a phase's averaged weights."""
    watch.end()
    use_average(result)
    codec: Any = bench.parts["codec"]
    codec.eval().save_pretrained(folder)


def published(stage: str) -> Recipe:
    """The recipe of a codec's stage, with its quantizer and no judging of its own."""
    kind, data = stage.split("-")
    name = f"vqvae-{data}" if kind in ("fsq", "lfq") else stage
    changes = QUANTIZERS.get((kind, data), ())
    return override(registry.recipe(name), [*changes, *(("judged=false",) if kind == "flowmo" else ())])


def codec_run(study: TokenizersStudy, stage: str) -> Recipe:
    """The shortened run of a codec's stage."""
    size = SIZES[study.size]
    return shortened(
        published(stage), size.shares[stage], size.points, size.shares[f"post-{stage.split('-')[1]}"], study
    )


def ablation_runs(study: TokenizersStudy) -> dict[str, Recipe]:
    """By name: stage 1A alone, whole and with one thing changed, all of the same length."""
    from latentia.recipes.flowmo_digits import ABLATIONS

    size = SIZES[study.size]
    whole = override(published("flowmo-digits"), ["post.steps=0"])
    chosen = {name: ABLATIONS[name] for name in size.ablations or ABLATIONS if not sampler_only(ABLATIONS[name])}
    return {
        name: shortened(override(whole, list(changes)), size.shares["ablations"], 0, 0.0, study)
        for name, changes in {"whole": (), **chosen}.items()
    }


def sampler_only(changes: tuple[str, ...]) -> bool:
    """Whether an ablation changes nothing but the sampler, and so needs no training."""
    return all(each.startswith("sampling.") for each in changes)


def prior_run(study: TokenizersStudy, name: str) -> Recipe:
    """A prior's recipe, shortened."""
    size = SIZES[study.size]
    plain = registry.recipe(name)
    steps = max(1, round(plain.steps * size.shares["priors"]))
    return override(plain, [f"steps={steps}", *size.settings.get(name, ()), *shared(study)])


def shared(study: TokenizersStudy) -> list[str]:
    """What all runs have from the study."""
    return [f"seed={study.seed}", f"device={study.device}"]


def shortened(plain: Recipe, share: float, points: int, post: float, study: TokenizersStudy) -> Recipe:
    """The recipe with a share of its steps; what is given in steps (when the discriminator joins, until when codes
    are continuous) shrinks along. `points`: of its curve; `post`: share of stage 1B's steps.
    """
    steps = max(1, round(plain.steps * share))
    steps = max(1, steps // points) * points if points else steps
    changes = [f"steps={steps}", f"preview_every={steps // points if points else 0}", *shared(study)]

    def part(value: int) -> int:
        return round(value * steps / plain.steps)

    if isinstance(plain, VQGAN):
        joins = plain.discriminator
        changes += [f"discriminator.{name}={part(getattr(joins, name))}" for name in ("start", "warmup", "ramp")]
    if isinstance(plain, FlowMoRecipe):
        changes.append(f"target.anneal_steps={part(plain.target.anneal_steps)}")
        changes.append(f"regression_steps={part(plain.regression_steps)}")
        if plain.post.steps:
            changes.append(f"post.steps={max(1, round(plain.post.steps * post))}")
    return override(override(plain, changes), SIZES[study.size].settings.get(plain.name, ()))


def run_watched(recipe: Recipe, folder: Path, pictures: torch.Tensor | None, ruler: FeatureNetwork | None) -> None:
    """Carry a codec's run out in `folder`, or go on with the one that is there."""
    kind: Any = WATCHED[type(recipe)]
    changed = kind.model_validate(recipe.model_dump())
    changed._watch = Watch(folder, pictures, ruler)
    go_on(changed, folder)


def go_on(recipe: Recipe, folder: Path) -> None:
    """Run the recipe in `folder`, from where it was stopped."""
    run_recipe(recipe, folder, resume=(folder / "recipe.json").is_file())


def runs(study: TokenizersStudy) -> Iterator[tuple[str, Recipe]]:
    """Every run of the chosen stages."""
    yield from ((stage, codec_run(study, stage)) for stage in CODECS if stage in study.stages)
    if "ablations" in study.stages:
        yield from ((f"ablation {name}", run) for name, run in ablation_runs(study).items())
    if "priors" in study.stages:
        yield from ((name, prior_run(study, name)) for name in PRIORS)


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file, none if there is no such file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
