"""`pdiff-tasks`: networks generated for tasks that no network was trained on, beside what needs no generation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from latentia.recipes.parts import Average, Noise, Optim
from latentia.recipes.pdiff_parts import NoisyDigits, ParameterCodec
from latentia.recipes.pdiff_tasks_parts import DIGITS, DigitTasks, Guided, ToldUNet
from latentia.recipes.recipe import Bench, Recipe, use_average

if TYPE_CHECKING:
    import torch

    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.methods.pdiff.layout import StateDict
    from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline
    from latentia.recipes.plan import Work
    from latentia.training.phase import Phase, PhaseResult

NEVER = 10**9


class TaskDiffusion(Recipe):
    """Two phases: `autoencoder`, which trains the tasks' networks first, then `unet`, told each network's task."""

    next_command: ClassVar[str] = "latentia params generate {pipeline} -n 10 --condition 3,7 --out nets"

    task: NoisyDigits = Field(default=NoisyDigits(), description="the images")
    tasks: DigitTasks = Field(default=DigitTasks(), description="what is asked about them, and the networks")
    codec: ParameterCodec = Field(description="the parameter autoencoder")
    unet: ToldUNet = Field(default=ToldUNet(), description="the denoiser of latents")
    noise: Noise = Field(default=Noise(prediction_type="sample"), description="the diffusion process")
    optim: Optim = Field(default=Optim(), description="optimizer of the UNet")
    ema: Average = Field(default=Average(), description="average of the UNet's weights")
    drawn: Guided = Field(default=Guided(), description="how networks are drawn for the held-out tasks")
    runs: PositiveInt = Field(default=3, description="times that all is done anew: tasks held out, networks, generator")
    wide: PositiveInt | None = Field(default=16, description="hidden units of a second setting; none leaves it out")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.drawn.steps > self.noise.num_train_timesteps:
            raise ValueError(f"drawn.steps={self.drawn.steps} is more than noise.num_train_timesteps: take fewer")
        if self.drawn.guidance_scale > 1 and not self.unet.condition_dropout:
            raise ValueError("drawn.guidance_scale above 1 needs unet.condition_dropout, or drawn.guidance_scale=1")
        most = 86 if self.tasks.kind == "pair" else 900
        if self.tasks.held_out > most:
            raise ValueError(f"tasks.held_out={self.tasks.held_out} leaves too little to train on: at most {most}")
        return self

    def start(self) -> StateDict:
        """The initialisation that all networks of this recipe's seed share."""
        from latentia.methods.pdiff.many import new_network

        return {n: t.clone() for n, t in new_network(self.tasks.build(), self.seed).state_dict().items()}

    def rows(self, codes: torch.Tensor) -> torch.Tensor:
        """The code of each network: every code as often as it has networks."""
        return codes.repeat(self.tasks.per_task, 1)

    def originals(self, bench: Bench) -> tuple[Checkpoints, torch.Tensor]:
        """Networks of the training tasks and their codes: those on the bench, or trained now."""
        if "checkpoints" not in bench.parts:
            rows = self.rows(self.tasks.codes(self.seed)[0])
            bench.keep("checkpoints", self.learn(rows, self.seed))
            bench.keep("codes", rows)
        found: Checkpoints = bench.parts["checkpoints"]
        codes: torch.Tensor = bench.parts["codes"]
        return found, codes

    def learn(
        self,
        codes: torch.Tensor,
        seed: int,
        start: StateDict | None = None,
        patterns: Sequence[str] = ("*",),
    ) -> Checkpoints:
        """A network for each code, trained from `start` (else the common one); the patterns' parameters are rows."""
        import torch

        from latentia.methods.pdiff.checkpoints import Checkpoints
        from latentia.methods.pdiff.digit_tasks import train_tasks
        from latentia.methods.pdiff.layout import ParameterLayout

        network, start = self.tasks.build()(), start or self.start()
        fit = self.tasks.fit.build()
        stacked = train_tasks(network, start, codes, self.task.build().fit, fit, seed, patterns)
        layout = ParameterLayout.select(network, patterns)
        return Checkpoints(layout, torch.cat([stacked[name].flatten(1) for name in layout.names], 1), start)

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """`autoencoder`, then `unet`."""
        return [("autoencoder", lambda: self.codec_phase(bench)), ("unet", lambda: self.unet_phase(bench))]

    def codec_phase(self, bench: Bench) -> Phase:
        """Train the autoencoder on the standardised networks of the training tasks."""
        from latentia.data.dataset import TensorDataset
        from latentia.methods.pdiff.normalise import Standardiser
        from latentia.methods.pdiff.objectives import ParameterReconstructionObjective
        from latentia.training.phase import Phase

        found, _ = self.originals(bench)
        standardiser = Standardiser.fit(found.vectors, self.codec.standardise, found.layout.slices)
        bench.keep("standardiser", standardiser)
        codec = bench.keep("codec", self.codec.build(found.layout.size))
        return Phase(
            name="autoencoder",
            objective=ParameterReconstructionObjective(codec, self.codec.parameter_noise, self.codec.latent_noise),
            data=TensorDataset({"x": standardiser(found.vectors)}),
            steps=self.codec.steps,
            batch_size=self.codec.batch_size,
            optim=self.codec.optim.build(),
        )

    def unet_phase(self, bench: Bench) -> Phase:
        """Train the denoiser on whitened latents, each with its network's task."""
        from latentia.data.dataset import TensorDataset
        from latentia.methods.pdiff.conditional_objective import ConditionalLatentPriorObjective
        from latentia.methods.pdiff.normalise import Whitener
        from latentia.training.phase import Phase

        found, codes = self.originals(bench)
        codec = bench.parts["codec"].requires_grad_(False).eval()
        z = codec.encode_all(bench.parts["standardiser"](found.vectors))
        whitener = bench.keep("whitener", Whitener.fit(z, self.codec.whiten))
        unet = bench.keep("unet", self.unet.build(codec.latents))
        scheduler = bench.keep("scheduler", self.noise.build())
        return Phase(
            name="unet",
            objective=ConditionalLatentPriorObjective(unet, scheduler, self.unet.condition_dropout),
            data=TensorDataset({"x": whitener(z), "condition": codes}),
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
        from latentia.schedulers.ddim import DDIMScheduler

        found, parts = self.originals(bench)[0], bench.parts
        told = self.tasks.condition(guided=self.unet.condition_dropout > 0)
        template = ParameterTemplate.of(
            found.layout, found.base, parts["standardiser"], parts["whitener"], condition=told
        )
        codec, unet = (parts[name].cpu().requires_grad_(False).eval() for name in ("codec", "unet"))
        sampler = DDIMScheduler.from_config(parts["scheduler"].config, timestep_spacing="trailing")
        pipe = ParameterDiffusionPipeline(codec, unet, sampler, template)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def imitate(self, found: Checkpoints, codes: torch.Tensor) -> ParameterDiffusionPipeline:
        """Train codec and denoiser on these networks and codes under this recipe's seed, leaving nothing on disk."""
        from latentia.training.loop import train
        from latentia.training.parallel import alone

        bench = Bench()
        bench.keep("checkpoints", found)
        bench.keep("codes", codes)
        settings = replace(self.settings(progress=False), device="cpu", tensorboard=False, save_every=NEVER, fsdp=False)
        with tempfile.TemporaryDirectory() as folder, alone():
            results = train(self.phases(bench), Path(folder), settings)
        use_average(results["unet"])
        return self.pipeline(bench)

    def generate(self, pipe: ParameterDiffusionPipeline, codes: torch.Tensor) -> torch.Tensor:
        """`drawn.samples` networks for each code (H, 10), (samples · H, D): all codes, then all again."""
        made: Any = pipe(
            condition=codes.repeat(self.drawn.samples, 1),
            seed=self.seed,
            num_inference_steps=self.drawn.steps,
            guidance_scale=self.drawn.guidance_scale,
        )
        vectors: torch.Tensor = made.vectors
        return vectors

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the pipeline, then judge it on the held-out tasks and write report.html and report.json."""
        from latentia.recipes.pdiff_tasks_judging import tell

        use_average(results["unet"])
        self.pipeline(bench).save_pretrained(out / "pipeline")
        tell(self, bench, results, out)

    def heads(self) -> TaskDiffusion:
        """The same recipe for the few numbers of a head: a latent of as many numbers, and a third of the steps."""
        size = 2 * self.tasks.hidden + 2
        codec = self.codec.model_copy(update={"latent_dim": size, "latent_channels": size})
        return self.model_copy(update={"codec": codec, "steps": -(-self.steps // 3)})

    def work(self) -> list[Work]:
        """The networks' training, the autoencoder's, the UNet's."""
        import torch

        from latentia.methods.pdiff.layout import ParameterLayout
        from latentia.recipes.plan import Work

        with torch.device("meta"):
            network = self.tasks.build()()
            size = ParameterLayout.select(network, "*").size
            latents = self.codec.build(size).latents

        def images(batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.zeros(batch, 1, 8, 8),)

        def vectors(batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.zeros(batch, size),)

        def noisy(batch: int) -> tuple[torch.Tensor, ...]:
            return torch.zeros(batch, *latents), torch.zeros(batch), torch.zeros(batch, DIGITS)

        trained = len(self.tasks.codes(self.seed)[0]) * self.tasks.per_task
        seen = trained * self.tasks.fit.epochs * self.task.train
        codec, micro = self.codec.batch_size, self.batch_size // self.accumulate
        return [
            Work("autoencoder", "networks", self.tasks.build(), images, seen, 32, 32),
            Work(
                "autoencoder", "codec", partial(self.codec.build, size), vectors, self.codec.steps * codec, codec, codec
            ),
            Work(
                *("unet", "unet", partial(self.unet.build, latents), noisy),
                *(self.steps * self.batch_size, self.batch_size, micro),
                averaged=self.ema.decay > 0,
            ),
        ]


def pdiff_tasks() -> TaskDiffusion:
    """Generate networks for tasks that none was trained on, and find out whether more than the head is generated.

    Command: latentia train pdiff-tasks --out runs/tasks
    Cost:    about 300 CPU-seconds on one CPU core: three runs of two widths, with all controls.
    Expect:  (three runs, 40 held-out tasks each, mean ± spread over runs) With 4 hidden units generated networks are
             right on 87.2 ± 0.4 % of the test images, networks trained on the tasks on 88.9 ± 0.1 %, heads alone on a
             shared trunk 71.8 ± 3.7 %, the best that any head reaches there; linear regression of weights 84.2 ± 1.8 %,
             kernel regression 87.5 ± 0.4 %, the nearest training task 81.1 ± 0.4 %, chance 61.7 %. So whole networks
             are worth having (+15.5 ± 2.0 points over heads) and more than linear (+3.0 ± 0.8), but kernel regression
             gives them too (-0.3 ± 0.2). With 16 hidden units heads alone are enough: 91.3 ± 1.5 % against 90.4 ± 0.5 %
             (kernel regression 91.8 ± 0.1 %, trained 92.8 ± 0.5 %). Networks generated for one task lie 0.04 to 0.3
             times as far apart as trained ones: the generator has learnt a function of the task, hardly a spread.
    """
    return TaskDiffusion(
        name="pdiff-tasks",
        codec=ParameterCodec(
            strides=(2, 2, 2, 2),
            latent_dim=32,
            latent_channels=32,
            whiten="coordinate",
            steps=500,
            batch_size=64,
        ),
        steps=1500,
        batch_size=128,
        optim=Optim(lr=2e-3, schedule="cosine", warmup=50),
        ema=Average(decay=0.99),
    )
