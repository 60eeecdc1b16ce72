"""`pdiff-seeds`: whole networks from independent seeds, where plain p-diff collapses to chance.

networks of many seeds ─▶ matched ─▶ codes by tokens, judged by behaviour ─▶ UNet over the codes
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from latentia.recipes.parts import Average, Fraction, Noise, Optim
from latentia.recipes.pdiff_parts import Fitting, LatentUNet, NoisyDigits, ParameterCodec
from latentia.recipes.recipe import Bench, Recipe, Value, use_average

if TYPE_CHECKING:
    import torch
    from torch import nn

    from latentia.methods.pdiff.checkpoints import Checkpoints
    from latentia.methods.pdiff.layout import ParameterLayout
    from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline
    from latentia.methods.pdiff.token_codec import ParameterTokenCodec
    from latentia.recipes.pdiff import ParameterDiffusion
    from latentia.recipes.plan import Work
    from latentia.training.phase import Phase, PhaseResult

CHECKPOINTS = "originals"
"""Subfolder of a run that holds the networks to imitate, as they were trained."""
NEVER = 10**9
SIZES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"convnet3": {"width": 16}, "mlp3": {}, "resnet": {"width": 8, "blocks": (1, 1)}}
)
"""About 5,000 parameters each: 5,450, 4,785 and 5,122."""
HALVINGS = 8
"""Of the interval in which the share that stays in the weights is sought."""


Share = Annotated[float, Field(ge=0, le=2)]


class TokenCodec(Value):
    """The codec of whole networks (`ParameterTokenCodec`) and the phase that trains it on behaviour."""

    told: PositiveInt = Field(default=8, description="components of a code that its decoder is told")
    rests: tuple[Share, Share] = Field(
        default=(0.5, 1.0), description="shares in which the others stay in the weights while training"
    )
    rest: Share | None = Field(
        default=None, description="that share in generating: more is newer, less accurate; none: sought, see `newer`"
    )
    newer: PositiveFloat = Field(
        default=0.015,
        description="similarity to the originals that is worth a point of accuracy, in seeking that share",
    )
    token_size: PositiveInt = Field(default=144, description="parameters in one token; 144 is a filter of 16 × 3 × 3")
    width: PositiveInt = Field(default=64, description="width of the transformer over tokens")
    layers: PositiveInt = Field(default=2, description="its layers")
    noise: Fraction = Field(default=0.5, description="share of noise in the codes while training")
    pure: Fraction = Field(default=1.0, description="share of codes of one original; the rest lies between two")
    structure: NonNegativeFloat = Field(default=0.001, description="weight of the correction's size in the loss")
    num_images: PositiveInt = Field(default=128, description="images on which behaviour is compared in one step")
    image_noise: NonNegativeFloat = Field(default=0.1, description="standard deviation of the noise added to them")
    steps: PositiveInt = Field(default=2200, description="optimizer steps of the codec's phase")
    batch_size: PositiveInt = Field(default=8, description="networks in one optimizer step, over all processes")
    optim: Optim = Field(
        default=Optim(lr=4e-3, schedule="linear", warmup=20, weight_decay=0.01), description="optimizer of the codec"
    )

    def build(self, shapes: tuple[tuple[int, ...], ...], codes: int) -> ParameterTokenCodec:
        """The codec with `codes` codes for networks with tensors of these shapes."""
        from latentia.methods.pdiff.token_codec import ParameterTokenCodec

        return ParameterTokenCodec(
            shapes,
            num_codes=codes,
            token_size=self.token_size,
            width=self.width,
            num_layers=self.layers,
            num_told=self.told,
            rest=1.0 if self.rest is None else self.rest,
        )

    def objective(self) -> dict[str, Any]:
        """Keywords of `BehaviourObjective`."""
        return {
            name: getattr(self, name) for name in ("num_images", "image_noise", "noise", "pure", "structure", "rests")
        }


class Plain(Value):
    """Plain p-diff on the same networks, for comparison: `pdiff-digits` but for its networks."""

    codec: ParameterCodec = Field(default=ParameterCodec(), description="its parameter autoencoder")
    steps: PositiveInt = Field(default=1000, description="optimizer steps of its UNet")


class SeedDiffusion(Recipe):
    """Two phases: `codec`, which trains the networks and matches them first, then `unet` on their codes."""

    next_command: ClassVar[str] = "latentia params generate {pipeline} -n 100 --out nets"
    runtime: ClassVar[frozenset[str]] = Recipe.runtime | {"runs"}

    task: NoisyDigits = Field(default=NoisyDigits(), description="what the small networks learn")
    network: Literal["convnet3", "mlp3", "resnet"] = Field(default="convnet3", description="the architecture")
    width: PositiveInt | None = Field(default=None, description="of a convnet3 or resnet; none for 16 and 8")
    seeds: Annotated[int, Field(ge=3)] = Field(default=120, description="networks to imitate, each from its own seed")
    fitting: Fitting = Field(
        default=Fitting(lr=8e-3, epochs=20, batch_size=64, weight_decay=0.5), description="training of each of them"
    )
    codec: TokenCodec = Field(default=TokenCodec(), description="the codec of whole networks")
    unet: LatentUNet = Field(
        default=LatentUNet(channels=(128, 128), kernel_size=1, downsample=False, positions=False),
        description="the denoiser of codes",
    )
    noise: Noise = Field(default=Noise(), description="the diffusion process")
    optim: Optim = Field(default=Optim(), description="optimizer of the UNet")
    ema: Average = Field(default=Average(), description="average of the UNet's weights")
    samples: Annotated[int, Field(ge=2)] = Field(default=100, description="networks that are generated and judged")
    sampling_steps: PositiveInt = Field(default=250, description="steps of the ancestral sampler")
    runs: PositiveInt = Field(default=3, description="times that all is done anew, other networks included")
    plain: Plain = Field(default=Plain(), description="plain p-diff beside it")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.codec.told > self.codes:
            raise ValueError(f"codec.told={self.codec.told} needs more networks than seeds={self.seeds}: lower it")
        if self.sampling_steps > self.noise.num_train_timesteps:
            raise ValueError(
                f"sampling_steps={self.sampling_steps} is more than noise.num_train_timesteps="
                f"{self.noise.num_train_timesteps}: take fewer"
            )
        return self

    @property
    def codes(self) -> int:
        """Numbers in a network's code: as many components as the networks have."""
        return self.seeds - 1

    def sizes(self) -> dict[str, Any]:
        """What `networks.build` is told beside the name."""
        sizes = dict(SIZES[self.network])
        if self.width is not None and "width" in sizes:
            sizes["width"] = self.width
        return sizes

    def build(self) -> nn.Module:
        """A new network."""
        from latentia.methods.pdiff.networks import build

        return build(self.network, **self.sizes())

    def checkpoints(self, bench: Bench) -> Checkpoints:
        """The originals as they were trained: those on the bench, or trained into the run's folder."""
        from latentia.methods.pdiff.collect import train_seeds

        if "checkpoints" not in bench.parts:
            trained = train_seeds(
                self.build,
                self.task.build().fit,
                "*",
                range(self.seed * self.seeds, (self.seed + 1) * self.seeds),
                self.fitting.build(),
                folder=bench.out / CHECKPOINTS if bench.out else None,
            )
            bench.keep("checkpoints", trained)
        found: Checkpoints = bench.parts["checkpoints"]
        return found

    def matched(self, bench: Bench) -> torch.Tensor:
        """The originals (K, D) in one order and scale of units."""
        from latentia.methods.pdiff.matching import canonicalise

        if "matched" not in bench.parts:
            originals = self.checkpoints(bench)
            example = self.task.build().fit[0][:2]
            bench.keep("matched", canonicalise(originals.vectors, self.build(), originals.layout, example).vectors)
        found: torch.Tensor = bench.parts["matched"]
        return found

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """`codec`, then `unet`."""
        return [("codec", lambda: self.codec_phase(bench)), ("unet", lambda: self.unet_phase(bench))]

    def codec_phase(self, bench: Bench) -> Phase:
        """Measure the codes of the matched networks, and train their decoder on what the networks do."""
        from latentia.data.dataset import TensorDataset
        from latentia.methods.pdiff.token_codec import BehaviourObjective
        from latentia.training.phase import Phase

        originals, matched = self.checkpoints(bench), self.matched(bench)
        layout = originals.layout
        codec = bench.keep("codec", self.codec.build(layout.shapes, self.codes))
        bench.keep("codes", codec.fit(matched))
        images = self.task.build().fit[0]
        return Phase(
            name="codec",
            objective=BehaviourObjective(codec, self.build(), layout, originals.base, images, **self.codec.objective()),
            data=TensorDataset({"x": matched}),
            steps=self.codec.steps,
            batch_size=self.codec.batch_size,
            optim=self.codec.optim.build(),
        )

    def unet_phase(self, bench: Bench) -> Phase:
        """Train the denoiser on the networks' codes, which are white already."""
        from latentia.data.dataset import TensorDataset
        from latentia.methods.pdiff.normalise import Whitener
        from latentia.methods.pdiff.objectives import LatentPriorObjective
        from latentia.training.phase import Phase

        codes = bench.parts["codes"]
        whitener = bench.keep("whitener", Whitener.fit(codes, "coordinate"))
        unet = bench.keep("unet", self.unet.build((self.codes, 1)))
        return Phase(
            name="unet",
            objective=LatentPriorObjective(unet, bench.keep("scheduler", self.noise.build())),
            data=TensorDataset({"x": whitener(codes)}),
            steps=self.steps,
            batch_size=self.batch_size,
            optim=self.optim.build(),
            accumulate=self.accumulate,
            ema=self.ema.build(),
        )

    def pipeline(self, bench: Bench) -> ParameterDiffusionPipeline:
        """Codec, UNet, sampler and template on the CPU; the weights as they are now."""
        from latentia.methods.pdiff.normalise import Standardiser
        from latentia.methods.pdiff.pipeline import ParameterDiffusionPipeline
        from latentia.methods.pdiff.template import ParameterTemplate

        originals, parts = self.checkpoints(bench), bench.parts
        images = self.measuring_images()
        template = ParameterTemplate.of(
            originals.layout,
            originals.base,
            Standardiser(originals.layout.size, "none"),
            parts["whitener"],
            measuring=None if images is None else (self.network, self.sizes(), images),
        )
        codec, unet = (parts[name].cpu().requires_grad_(False).eval() for name in ("codec", "unet"))
        if self.codec.rest is None:
            codec.set_rest(parts["rest"] if "rest" in parts else bench.keep("rest", self.sought_rest(bench, codec)))
        pipe = ParameterDiffusionPipeline(codec, unet, parts["scheduler"], template)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sought_rest(self, bench: Bench, codec: ParameterTokenCodec) -> float:
        """The share in the weights at which networks of normal codes are as safely new as they are safely accurate.

            slack in novelty = (originals' similarity to their nearest other − ours to the nearest original) / `newer`
            slack in accuracy = 1 + (mean accuracy − originals' mean) / one point

        More makes them newer and less accurate; where both slacks are equal is found by halving. Both are measured on
        the selection images alone: test images play no part.
        """
        import torch

        from latentia.core.rng import derive_seed
        from latentia.methods.pdiff.similarity import nearest_similarity, own_nearest_similarity
        from latentia.methods.pdiff.token_codec import MOST
        from latentia.recipes.pdiff_seeds_judging import ALLOWED, scorers

        select, _ = scorers(self, self.checkpoints(bench))
        originals = select.wrong(self.matched(bench))
        own = float(own_nearest_similarity(originals).mean())
        generator = torch.Generator().manual_seed(derive_seed("rest", self.seed))
        z = torch.randn(self.samples, self.codes, 1, generator=generator)
        low, high = 0.0, MOST
        for _ in range(HALVINGS):
            codec.set_rest((low + high) / 2)
            made = select.wrong(codec.decode_all(z))
            newer = own - float(nearest_similarity(made, originals)[0].mean())
            lost = float(made.double().mean() - originals.double().mean())
            low, high = (codec.rest, high) if newer / self.codec.newer < 1 - lost / ALLOWED else (low, codec.rest)
        return (low + high) / 2

    def measuring_images(self) -> torch.Tensor | None:
        """Images on which BatchNorm's statistics are measured anew; None where there is no BatchNorm."""
        return self.task.build().fit[0] if self.network == "resnet" else None

    def fit(self, bench: Bench) -> ParameterDiffusionPipeline:
        """Do all of it under this recipe's seed with what is on the bench, leaving nothing on disk."""
        from latentia.training.loop import train
        from latentia.training.parallel import alone

        settings = replace(self.settings(progress=False), device="cpu", tensorboard=False, save_every=NEVER, fsdp=False)
        with tempfile.TemporaryDirectory() as folder, alone():
            results = train(self.phases(bench), Path(folder), settings)
        use_average(results["unet"])
        return self.pipeline(bench)

    def generate(self, pipe: ParameterDiffusionPipeline) -> torch.Tensor:
        """The networks that are judged, (samples, D)."""
        made: Any = pipe(num_samples=self.samples, seed=self.seed, num_inference_steps=self.sampling_steps)
        vectors: torch.Tensor = made.vectors
        return vectors

    def plain_recipe(self) -> ParameterDiffusion:
        """Plain p-diff with as many samples, for the same networks."""
        from latentia.recipes.pdiff_digits import pdiff_digits

        given = {"codec": self.plain.codec, "steps": self.plain.steps, "samples": self.samples}
        return pdiff_digits().model_copy(update={**given, "sampling_steps": self.sampling_steps})

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the pipeline with averaged weights, do the other runs, write report.html and report.json."""
        from latentia.recipes.pdiff_seeds_report import tell

        use_average(results["unet"])
        self.pipeline(bench).save_pretrained(out / "pipeline")
        tell(self, bench, results, out)

    def layout(self) -> ParameterLayout:
        """Of the network's parameters; nothing is allocated."""
        import torch

        from latentia.methods.pdiff.layout import ParameterLayout

        with torch.device("meta"):
            return ParameterLayout.select(self.build(), "*")

    def work(self) -> list[Work]:
        """The originals' training, the codec's, the UNet's."""
        import torch

        from latentia.recipes.plan import Work

        layout, codec, micro = self.layout(), self.codec, self.batch_size // self.accumulate

        def images(batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.zeros(batch, 1, 8, 8),)

        def codes(batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.zeros(batch, self.codes, 1),)

        def noisy(batch: int) -> tuple[torch.Tensor, ...]:
            return *codes(batch), torch.zeros(batch)

        seen = self.seeds * self.fitting.epochs * self.task.train
        fitted = min(self.fitting.batch_size, self.task.train)
        return [
            Work("codec", self.network, self.build, images, seen, fitted, fitted),
            Work(
                *("codec", "codec", partial(codec.build, layout.shapes, self.codes), codes),
                *(codec.steps * codec.batch_size, codec.batch_size, codec.batch_size),
                call=decode_only,
            ),
            Work(
                *("unet", "unet", partial(self.unet.build, (self.codes, 1)), noisy),
                *(self.steps * self.batch_size, self.batch_size, micro),
                averaged=self.ema.decay > 0,
            ),
        ]


def decode_only(codec: ParameterTokenCodec, z: torch.Tensor) -> torch.Tensor:
    """Codes → networks, which is all that is trained of the codec."""
    return codec.from_latents(z)


def pdiff_seeds() -> SeedDiffusion:
    """Whole networks from independent seeds, with plain p-diff and every control beside them.

    Command: latentia train pdiff-seeds network=convnet3 --out runs/seeds      (or mlp3, or resnet)
    Cost:    2 to 6 CPU minutes for the three runs of one network: 160 CPU-seconds were measured for MLP-3.
    Expect:  on fresh seeds and fresh pixel noise, generated against originals: ConvNet-3 92.0 % against 92.0 %
             (-0.02 ± 0.09 points, three runs), MLP-3 91.7 % against 92.1 % (-0.36 ± 0.15, three runs), ResNet
             -0.4 ± 0.4 (four trainings); similarity to the nearest original 0.01 to 0.02 below the originals' own.
             Plain p-diff 10 to 11 %. Gaussian codes do as well: matching and distillation make the networks work.
    """
    return SeedDiffusion(
        name="pdiff-seeds",
        steps=400,
        batch_size=64,
        noise=Noise(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2"),
        optim=Optim(lr=2e-3, schedule="cosine", warmup=20),
        ema=Average(decay=0.99),
    )
