"""ParameterDiffusion: the recipe of Wang et al. 2024 (arXiv:2402.13144), whatever the networks and the sizes.

checkpoints ─▶ standardised vectors ─▶ autoencoder ─▶ white latents ─▶ UNet, averaged
"""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from latentia.recipes.parts import Average, Noise, Optim
from latentia.recipes.pdiff_parts import LatentUNet, NoisyDigits, Originals, ParameterCodec
from latentia.recipes.recipe import Bench, Recipe, use_average

if TYPE_CHECKING:
    import torch

    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline
    from latentia.recipes.plan import Work
    from latentia.training.phase import Phase, PhaseResult

CHECKPOINTS = "originals"
"""Subfolder of a run that holds the checkpoints to imitate."""
NEVER = 10**9
ONE_STEPS = 20
"""Optimizer steps on a single checkpoint where whatever is generated comes back as that checkpoint."""


class NetworkDiffusion(Recipe):
    """Two phases: `autoencoder`, which collects the checkpoints first, then `unet` on its latents.

    A recipe says where the checkpoints come from (`collect`) and what a dry run counts (`work`).
    """

    next_command: ClassVar[str] = "latentia params generate {pipeline} -n 100 --out nets"

    codec: ParameterCodec = Field(default=ParameterCodec(), description="the parameter autoencoder")
    unet: LatentUNet = Field(default=LatentUNet(), description="the denoiser of latents")
    noise: Noise = Field(default=Noise(), description="the diffusion process")
    optim: Optim = Field(default=Optim(), description="optimizer of the UNet")
    ema: Average = Field(default=Average(), description="average of the UNet's weights")
    samples: Annotated[int, Field(ge=2)] = Field(default=100, description="networks that are generated and judged")
    sampling_steps: PositiveInt = Field(
        default=250, description="steps of the ancestral sampler; the article takes all"
    )

    @model_validator(mode="after")
    def _steps_exist(self) -> Self:
        if self.sampling_steps > self.noise.num_train_timesteps:
            raise ValueError(
                f"sampling_steps={self.sampling_steps} is more than noise.num_train_timesteps="
                f"{self.noise.num_train_timesteps}: take fewer"
            )
        return self

    @abstractmethod
    def collect(self, folder: Path | None) -> Checkpoints:
        """The originals, written into `folder`, where a stopped run goes on; None leaves nothing on disk."""

    def gathered(self, bench: Bench) -> Checkpoints:
        """The originals: those on the bench, or collected into the run's folder."""
        if "checkpoints" not in bench.parts:
            bench.keep("checkpoints", self.collect(bench.out / CHECKPOINTS if bench.out else None))
        found: Checkpoints = bench.parts["checkpoints"]
        return found

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """`autoencoder`, then `unet`."""
        return [("autoencoder", lambda: self.codec_phase(bench)), ("unet", lambda: self.unet_phase(bench))]

    def codec_phase(self, bench: Bench) -> Phase:
        """Train the autoencoder on the standardised checkpoints."""
        from latentia.data.dataset import TensorDataset
        from latentia.methods.pdiff.normalise import Standardiser
        from latentia.methods.pdiff.objectives import ParameterReconstructionObjective
        from latentia.training.phase import Phase

        originals = self.gathered(bench)
        fitted = Standardiser.fit(originals.vectors, self.codec.standardise, originals.layout.slices)
        standardiser = bench.keep("standardiser", fitted)
        codec = bench.keep("codec", self.codec.build(originals.layout.size))
        return Phase(
            name="autoencoder",
            objective=ParameterReconstructionObjective(codec, self.codec.parameter_noise, self.codec.latent_noise),
            data=TensorDataset({"x": standardiser(originals.vectors)}),
            steps=self.codec.steps,
            batch_size=self.codec.batch_size,
            optim=self.codec.optim.build(),
        )

    def unet_phase(self, bench: Bench) -> Phase:
        """Train the denoiser on the checkpoints' whitened latents."""
        from latentia.data.dataset import TensorDataset
        from latentia.methods.pdiff.normalise import Whitener
        from latentia.methods.pdiff.objectives import LatentPriorObjective
        from latentia.training.phase import Phase

        codec = bench.parts["codec"].requires_grad_(False).eval()
        z = codec.encode_all(bench.parts["standardiser"](self.gathered(bench).vectors))
        whitener = bench.keep("whitener", Whitener.fit(z, self.codec.whiten))
        unet = bench.keep("unet", self.unet.build(codec.latents))
        return Phase(
            name="unet",
            objective=LatentPriorObjective(unet, bench.keep("scheduler", self.noise.build())),
            data=TensorDataset({"x": whitener(z)}),
            steps=self.steps,
            batch_size=self.batch_size,
            optim=self.optim.build(),
            accumulate=self.accumulate,
            ema=self.ema.build(),
        )

    def pipeline(self, bench: Bench) -> ParameterDiffusionPipeline:
        """Codec, UNet, sampler and template on the CPU; the weights as they are now."""
        from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline
        from latentia.methods.pdiff.template import ParameterTemplate

        originals, parts = self.gathered(bench), bench.parts
        template = ParameterTemplate.of(originals.layout, originals.base, parts["standardiser"], parts["whitener"])
        codec, unet = (parts[name].cpu().requires_grad_(False).eval() for name in ("codec", "unet"))
        pipe = ParameterDiffusionPipeline(codec, unet, parts["scheduler"], template)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def fit(self, originals: Checkpoints) -> ParameterDiffusionPipeline:
        """Train codec and denoiser on `originals` under this recipe's seed, leaving nothing on disk."""
        from latentia.training.loop import train
        from latentia.training.parallel import alone

        bench = Bench()
        bench.keep("checkpoints", originals)
        settings = replace(self.settings(progress=False), device="cpu", tensorboard=False, save_every=NEVER, fsdp=False)
        with tempfile.TemporaryDirectory() as folder, alone():
            results = train(self.phases(bench), Path(folder), settings)
        use_average(results["unet"])
        return self.pipeline(bench)

    def regenerate(self, vectors: torch.Tensor, originals: Checkpoints) -> torch.Tensor:
        """The K = 1 control: train on the one network `vectors` (1, D), generate as many as ever (samples, D).

        About its own mean a single checkpoint has no spread, so that every latent decodes to it: there the training
        is cut to a few steps, which change nothing.
        """
        alone = replace(originals, vectors=vectors, own={})
        recipe = self
        if self.codec.standardise in ("center", "coordinate"):
            few = self.codec.model_copy(update={"steps": min(ONE_STEPS, self.codec.steps)})
            recipe = self.model_copy(update={"codec": few, "steps": min(ONE_STEPS, self.steps)})
        return recipe.generate(recipe.fit(alone))

    def generate(self, pipe: ParameterDiffusionPipeline) -> torch.Tensor:
        """The networks that are judged, (samples, D)."""
        made: Any = pipe(num_samples=self.samples, seed=self.seed, num_inference_steps=self.sampling_steps)
        vectors: torch.Tensor = made.vectors
        return vectors

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the pipeline with averaged weights."""
        use_average(results["unet"])
        self.pipeline(bench).save_pretrained(out / "pipeline")

    def generator_work(self, size: int) -> list[Work]:
        """What the autoencoder's and the UNet's training cost for vectors of `size` parameters."""
        import torch

        from latentia.recipes.plan import Work

        with torch.device("meta"):
            latents = self.codec.build(size).latents

        def vectors(batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.zeros(batch, size),)

        def noisy(batch: int) -> tuple[torch.Tensor, ...]:
            return torch.zeros(batch, *latents), torch.zeros(batch)

        codec, micro = self.codec.batch_size, self.batch_size // self.accumulate
        return [
            Work(
                "autoencoder", "codec", partial(self.codec.build, size), vectors, self.codec.steps * codec, codec, codec
            ),
            Work(
                *("unet", "unet", partial(self.unet.build, latents), noisy),
                *(self.steps * self.batch_size, self.batch_size, micro),
                averaged=self.ema.decay > 0,
            ),
        ]


class ParameterDiffusion(NetworkDiffusion):
    """Networks of our own on noisy digits: one training run, and K checkpoints at its end."""

    task: NoisyDigits = Field(default=NoisyDigits(), description="what the small networks learn")
    originals: Originals = Field(description="the networks to imitate")

    def checkpoints(self, bench: Bench) -> Checkpoints:
        """The originals, collected once."""
        return super().gathered(bench)

    def gathered(self, bench: Bench) -> Checkpoints:
        """`checkpoints`."""
        return self.checkpoints(bench)

    def collect(self, folder: Path | None) -> Checkpoints:
        """The checkpoints of one training run; of several processes the first writes."""
        from latentia.methods.pdiff.collect import train_trajectory

        return train_trajectory(
            self.originals.build(),
            self.task.build().fit,
            self.originals.patterns,
            self.originals.count,
            self.originals.trajectory(),
            seed=self.seed,
            folder=folder if os.environ.get("RANK", "0") == "0" else None,
        )

    def work(self) -> list[Work]:
        """The originals' training, the autoencoder's, the UNet's."""
        import torch

        from latentia.recipes.plan import Work

        def images(batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.zeros(batch, 1, 8, 8),)

        originals = self.originals
        collecting = originals.skip + 1 + (originals.count - 1) * originals.every
        seen = originals.main.epochs * self.task.train + collecting * originals.collect.batch_size
        first = Work("autoencoder", originals.network, originals.build(), images, seen, 32, 32)
        return [first, *self.generator_work(originals.size())]
