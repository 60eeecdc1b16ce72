"""FlowMoRecipe: the diffusion autoencoder of Sargent et al. 2025, whatever the data and the sizes.

pictures ─▶ features (the perceptual network, if trained here) ─▶ regression (if wanted; pretraining goes on from its
codec and leaves the encoder as it is) ─▶ pretraining, stage 1A ─▶ frozen, 1A with a frozen encoder ─▶ post-training, 1B
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, NonNegativeInt, model_validator

from latentia.recipes.codec_gan import Perceptual
from latentia.recipes.codec_training import CodecTraining
from latentia.recipes.flowmo_parts import FlowTarget, PostTraining, Sampling, Sizes
from latentia.recipes.parts import Average, Optim
from latentia.recipes.recipe import Bench, use_average

if TYPE_CHECKING:
    import torch
    from torch import nn

    from latentia.metrics.photo_features import PhotoFeatures
    from latentia.recipes.plan import Work
    from latentia.training.phase import Phase, PhaseResult


class FlowMoRecipe(CodecTraining):
    """Up to five phases; `steps` and `batch_size` are those of `pretraining`, encoder and decoder together."""

    sizes: Sizes = Field(default=Sizes(), description="the codec")
    target: FlowTarget = Field(default=FlowTarget(), description="what stage 1A minimises")
    perceptual: Perceptual = Field(
        default=Perceptual(kind="lpips-vgg", weight=0.1), description="distance of the one-step estimate, stage 1A"
    )
    frozen_steps: NonNegativeInt = Field(default=0, description="steps of 1A that follow with a frozen encoder")
    regression_steps: NonNegativeInt = Field(
        default=0,
        description="steps in which a codec first learns by squared error; 1A goes on with its encoder frozen",
    )
    post: PostTraining = Field(default=PostTraining(), description="stage 1B")
    sampling: Sampling = Field(default=Sampling(), description="the sampler that is saved with the codec")
    optim: Optim = Field(default=Optim(), description="optimizer of stage 1A")
    ema: Average = Field(default=Average(decay=0.9999), description="average of the codec's weights, which is saved")
    judged: bool = Field(default=False, description="measure reconstructions while training, and every ablation after")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.image_size % self.sizes.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of sizes.patch_size")
        if self.target.noise_sync and self.sizes.quantizer != "none":
            raise ValueError("target.noise_sync is for sizes.quantizer=none")
        if self.post.steps and (self.post.perceptual.kind == "none" or not self.post.perceptual.weight):
            raise ValueError("stage 1B needs post.perceptual and its weight; post.steps=0 leaves the stage out")
        return self

    # Phases

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """`features`, `regression`, `pretraining`, `frozen`, `post-training`: those that have steps."""
        builders: dict[str, tuple[bool, Callable[[Bench], Phase]]] = {
            "features": (self._trains_features(), self.features_phase),
            "regression": (self.regression_steps > 0, self.regression_phase),
            "pretraining": (True, self.pretraining_phase),
            "frozen": (self.frozen_steps > 0, self.frozen_phase),
            "post-training": (self.post.steps > 0, self.post_phase),
        }
        return [(name, partial(build, bench)) for name, (wanted, build) in builders.items() if wanted]

    def _trains_features(self) -> bool:
        return self.perceptual.trained or (self.post.steps > 0 and self.post.perceptual.trained)

    def build_codec(self) -> Any:
        """The codec, with new weights."""
        return self.sizes.build(self.image_size, self.image_channels, self.sampling)

    def feature_network(self) -> PhotoFeatures:
        """The perceptual network that is trained here."""
        from latentia.metrics.photo_features import PhotoFeatures

        return PhotoFeatures(in_channels=self.image_channels)

    def features_phase(self, bench: Bench) -> Phase:
        """Train the perceptual network on the pictures, by its pretext task."""
        from latentia.recipes.photo_features import pretext_phase

        chosen = self.perceptual if self.perceptual.trained else self.post.perceptual
        network = bench.keep("features", self.feature_network())
        return pretext_phase(network, self.images(), chosen.pretext, chosen.steps)

    def regression_phase(self, bench: Bench) -> Phase:
        """Train another codec by regression; pretraining goes on from it."""
        from latentia.methods.flowmo.objectives import FlowMoRegression

        regressor = bench.keep("regressor", self.build_codec())
        objective = FlowMoRegression(regressor, **self.target.options())
        return self._phase(bench, "regression", objective, self.regression_steps)

    def pretraining_phase(self, bench: Bench) -> Phase:
        """Stage 1A; with a regressor, it goes on from there and the encoder stays."""
        codec = bench.keep("codec", self.build_codec())
        if self.regression_steps:
            regressor: Any = bench.parts["regressor"]
            codec.load_state_dict(regressor.state_dict())
        return self._phase(bench, "pretraining", self.flow_objective(bench, self.regression_steps > 0), self.steps)

    def frozen_phase(self, bench: Bench) -> Phase:
        """Stage 1A goes on with the encoder frozen, a new optimizer and a new average, as published."""
        return self._phase(bench, "frozen", self.flow_objective(bench, True), self.frozen_steps)

    def flow_objective(self, bench: Bench, freeze_encoder: bool) -> Any:
        """The objective of stage 1A."""
        from latentia.methods.flowmo.objectives import FlowMoPretraining

        return FlowMoPretraining(
            bench.parts["codec"],
            self.distance(bench, self.perceptual),
            perceptual_weight=self.perceptual.weight,
            freeze_encoder=freeze_encoder,
            **self.target.options(),
        )

    def post_phase(self, bench: Bench) -> Phase:
        """Stage 1B."""
        from latentia.methods.flowmo.objectives import FlowMoPostTraining

        post, distance = self.post, self.distance(bench, self.post.perceptual)
        assert distance is not None  # `_fits` has seen to that
        objective = FlowMoPostTraining(
            bench.parts["codec"],
            distance,
            sample_weight=post.perceptual.weight,
            chain_steps=post.chain_steps,
            **self.target.options() | {"anneal_steps": 0},
        )
        own = {"batch_size": post.batch_size, "accumulate": post.accumulate, "optim": post.optim.build()}
        return self._phase(bench, "post-training", objective, post.steps, **own)

    def _phase(self, bench: Bench, name: str, objective: Any, steps: int, **own: Any) -> Phase:
        from latentia.training.phase import Phase

        bench.keep("objective", objective)
        bench.parts.setdefault("started", time.process_time())
        shared = {"batch_size": self.batch_size, "accumulate": self.accumulate, "optim": self.optim.build()}
        return Phase(
            name=name,
            objective=objective,
            data=self.images(),
            steps=steps,
            ema=self.ema.build(),
            preview=partial(self.preview, bench, name),
            **{**shared, **own},
        )

    def distance(self, bench: Bench, chosen: Perceptual) -> nn.Module | None:
        """A perceptual distance, or None."""
        from latentia.losses.perceptual import perceptual_loss

        if chosen.kind == "none" or not chosen.weight:
            return None
        network = bench.module("features") if chosen.trained else None
        return perceptual_loss(chosen.kind, chosen.weights or None, network)

    def check(self) -> None:
        """Perceptual weights that are needed must be given."""
        from latentia.errors import InputError

        for key, chosen in (("perceptual", self.perceptual), ("post.perceptual", self.post.perceptual)):
            unused = key == "post.perceptual" and not self.post.steps
            if chosen.kind not in ("photo_features", "none") and chosen.weight and not chosen.weights and not unused:
                raise InputError(
                    f"{key}.kind={chosen.kind} needs {key}.weights=FILE,FILE (torchvision's network, for LPIPS with "
                    f"the lpips package's heads); {key}.kind=photo_features trains a network here instead"
                )
            if chosen.weights and not unused:
                self.distance(Bench(), chosen)  # weights of another network are refused before anything is written

    # Looking

    def preview(self, bench: Bench, phase: str) -> torch.Tensor:
        """Eight held-out pictures above two reconstructions of each; a judged run notes its numbers too."""
        import torch

        from latentia.core.rng import sample_generators

        codec: Any = bench.parts["regressor"] if phase == "regression" else bench.parts["codec"]
        if self.judged and phase != "regression":
            from latentia.recipes.flowmo_judging import note

            note(self, bench, phase)
        x = self.glance(bench)
        latents = codec.to_latents(x)
        made = [codec.from_latents(latents, sample_generators(seed, range(len(x)))) for seed in (0, 1)]
        return torch.cat([x, *made])

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the averaged codec into `out`/pipeline and what judged it beside; a judged run
        writes numbers.json and its report."""
        last = list(results)[-1]
        codec: Any = bench.parts["codec"]
        if self.judged:
            from latentia.recipes.flowmo_judging import finish_curve, judge_stages

            finish_curve(self, bench, out)
            judge_stages(self, bench, results, out)
        use_average(results[last])
        codec.eval().save_pretrained(out / "pipeline")
        if "features" in bench.parts:
            bench.parts["features"].save_pretrained(out / "features")
        if self.judged:
            from latentia.recipes.codec_gan_judging import tell

            judged: Any = self
            tell(judged, codec.cpu(), out)

    def work(self) -> list[Work]:
        """The dry run: training of the features and of the codec, stage by stage; pretraining last, it is the main one.

        A step of 1B decodes once for the flow and, forward and again when its activations are needed, for each step of
        the chain.
        """
        import torch

        from latentia.recipes.plan import Work

        shape = self.image_channels, self.image_size, self.image_size

        def pictures(batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.zeros(batch, *shape),)

        found = []
        if self._trains_features():
            from latentia.recipes.photo_features import BATCH

            chosen = self.perceptual if self.perceptual.trained else self.post.perceptual
            views = chosen.steps * BATCH * (2 if chosen.pretext == "instances" else 1)
            found.append(Work("features", "features", self.feature_network, pictures, views, BATCH, BATCH))
        build = self._half_frozen if self.regression_steps else self.build_codec
        stages = [
            ("regression", self.build_codec, self.regression_steps, 1),
            ("post-training", self._half_frozen, self.post.steps, 1 + self.post.chain_steps),
            ("frozen", self._half_frozen, self.frozen_steps, 1),
            ("pretraining", build, self.steps, 1),
        ]
        for name, make, steps, passes in stages:
            chained = name == "post-training"
            size = self.post.batch_size if chained else self.batch_size
            micro = size // (self.post.accumulate if chained else self.accumulate)
            seen = steps * size * passes
            own = Work(name, "codec", make, pictures, seen, size, micro, averaged=self.ema.decay > 0, call=one_pass)
            found += [replace(own, recomputed=chained)] if steps else []
        return found

    def _half_frozen(self) -> Any:
        codec = self.build_codec()
        codec.encoder.requires_grad_(False)
        return codec


def one_pass(codec: Any, x: torch.Tensor) -> torch.Tensor:
    """What one sample costs: the encoder once, the decoder once."""
    code = codec.flagged(codec.to_latents(x))
    estimate: torch.Tensor = codec.estimate(x, x.new_ones(len(x)), code)[1]
    return estimate
