"""TokenPrior: a codec's tokens, and a transformer that learns which of them go together (Esser 2021, Chang 2022).

images ─▶ codec (trained here, or given as a folder) ─▶ tokens, once ─▶ transformer, averaged ─▶ judged
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from latentia.errors import InputError
from latentia.recipes.parts import Average, Fraction, Optim
from latentia.recipes.recipe import Bench, Recipe, Value, use_average
from latentia.recipes.sources import MirroredDataset, class_names, codec_like, load_codec, open_data
from latentia.recipes.vqvae import Tokenizer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from latentia.core.protocols import Dataset
    from latentia.denoisers.token_transformer import TokenTransformer
    from latentia.pipelines.tokens import TokenPipeline
    from latentia.recipes.plan import Work
    from latentia.schedulers.tokens import TokenScheduler
    from latentia.training.phase import Phase, PhaseResult
    from latentia.training.token_objectives import TokenObjective

JUDGED = 64
"""Images in one step of the judge's training."""


class TrainedTokenizer(Tokenizer):
    """A `VQModel` and the phase that trains it, by reconstruction alone."""

    steps: PositiveInt = Field(description="optimizer steps of the codec's phase")
    batch_size: PositiveInt = Field(description="images in one optimizer step, over all processes")
    loss: Literal["l1", "l2", "huber"] = Field(default="l2", description="reconstruction error")
    optim: Optim = Field(default=Optim(), description="optimizer of the codec")
    ema: Average = Field(default=Average(decay=0.0), description="average of the codec's weights, which is kept")


class Transformer(Value):
    """The sizes of a transformer over tokens; the recipe adds the codec's tokens and the classes."""

    width: PositiveInt = Field(description="channels")
    layers: PositiveInt = Field(description="blocks")
    heads: PositiveInt = Field(description="attention heads, a divisor of width")
    mlp_ratio: PositiveFloat = Field(default=4.0, description="width of the MLP's inside over width")
    dropout: Fraction = Field(default=0.0, description="of embeddings, attention and both branches")

    def arguments(self) -> dict[str, Any]:
        """Keywords of `MaskedTransformer` and `AutoregressiveTransformer`."""
        return {
            "width": self.width,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "mlp_ratio": self.mlp_ratio,
            "dropout": self.dropout,
        }


class TokenPrior(Recipe):
    """Abstract. Phases: `judge` (when pictures are judged), `codec` (skipped when one is given), then `prior`."""

    data: str = Field(description="digits, photos, hf:NAME, or a folder of images (of class folders)")
    image_size: PositiveInt = Field(description="pixels a side")
    image_channels: PositiveInt = Field(default=3, description="1 (grey) or 3 (RGB)")
    num_classes: NonNegativeInt = Field(default=0, description="classes that the transformer is told; 0 for none")
    flip: bool = Field(default=False, description="learn from mirror images too")
    codec: str | None = Field(
        default=None, description="folder of a trained `VQModel` or `FlowMo`; none trains `tokenizer` first"
    )
    tokenizer: TrainedTokenizer = Field(description="the codec that is trained when none is given")
    transformer: Transformer = Field(description="the prior")
    label_dropout: Fraction = Field(default=0.0, description="share of labels replaced by the null class, for guidance")
    guidance: NonNegativeFloat = Field(default=1.0, description="guidance scale of judged pictures and previews")
    label_smoothing: Fraction = Field(default=0.0, description="share of the target that is spread over all codes")
    optim: Optim = Field(default=Optim(), description="optimizer of the prior")
    ema: Average = Field(default=Average(), description="average of the prior's weights, which is saved")
    judge_steps: PositiveInt = Field(default=400, description="optimizer steps of the judge, a small classifier")
    pictures: Annotated[int, Field(ge=0, le=5000)] = Field(
        default=0, description="pictures made and judged at the end, with a report; 0 for none"
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.label_dropout and not self.num_classes:
            raise ValueError(f"label_dropout={self.label_dropout} needs classes: set num_classes, or label_dropout=0")
        if self.guidance > 1 and not self.label_dropout:
            raise ValueError(f"guidance={self.guidance} needs a null class: set label_dropout, or guidance=1")
        if self.pictures and (self.num_classes < 2 or self.pictures % self.num_classes):
            raise ValueError(
                f"pictures={self.pictures} are judged by class: give a multiple of num_classes={self.num_classes}, at "
                "least 2 classes, or pictures=0"
            )
        return self

    # What differs between the priors

    @abstractmethod
    def network(self, codec: Any) -> TokenTransformer:
        """The transformer for a codec's tokens."""

    @abstractmethod
    def scheduler(self, codec: Any) -> TokenScheduler:
        """How tokens are drawn."""

    @abstractmethod
    def objective(self, network: Any, scheduler: Any) -> TokenObjective:
        """What is minimised."""

    @abstractmethod
    def assemble(self, **parts: Any) -> TokenPipeline:
        """The pipeline of `vqvae`, `transformer`, `scheduler` and `id2label`."""

    @abstractmethod
    def draws(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and arguments of the pipeline's calls that are judged; the first one is what the recipe promises."""

    # The phases

    def images(self, split: str = "train") -> Dataset:
        """The real images, as `{"x": (N, C, H, W) in [-1, 1]}` and `label` when there are classes."""
        found = open_data(self.data, split, self.image_size, self.image_channels, num_classes=self.num_classes)
        return MirroredDataset(found) if self.flip and split == "train" else found

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """`judge` and `codec` where they are needed, then `prior`."""
        judge = [("judge", lambda: self.judge_phase(bench))] if self.pictures else []
        codec = [] if self.codec else [("codec", lambda: self.codec_phase(bench))]
        return [*judge, *codec, ("prior", lambda: self.prior_phase(bench))]

    def build_judge(self) -> nn.Module:
        """The classifier that judges."""
        from latentia.metrics.classifier import ConvClassifier

        name = "digits" if self.data == "digits" else "data"
        return ConvClassifier(name=name, num_classes=self.num_classes, in_channels=self.image_channels)

    def judge_phase(self, bench: Bench) -> Phase:
        """Train the classifier that will judge, on real training images only."""
        from latentia.recipes.judge import judge_phase

        judge: Any = bench.keep("judge", self.build_judge())
        return judge_phase(judge, self.images(), self.judge_steps, JUDGED)

    def build_tokenizer(self) -> nn.Module:
        """The codec that is trained when none is given."""
        return self.tokenizer.build(self.image_size, self.image_channels)

    def codec_phase(self, bench: Bench) -> Phase:
        """Train the codec on the images."""
        from latentia.training.objectives import ReconstructionObjective
        from latentia.training.phase import Phase

        codec: Any = bench.keep("codec", self.build_tokenizer())
        return Phase(
            name="codec",
            objective=ReconstructionObjective(codec, 0.0, "mean", self.tokenizer.loss),
            data=self.images(),
            steps=self.tokenizer.steps,
            batch_size=self.tokenizer.batch_size,
            optim=self.tokenizer.optim.build(),
            ema=self.tokenizer.ema.build(),
        )

    def first_stage(self, bench: Bench) -> Any:
        """The codec, frozen."""
        if not self.codec:
            return bench.parts["codec"].to(bench.device).requires_grad_(False).eval()
        codec: Any = check_tokens(load_codec(self.codec), self.codec)
        return codec.to(bench.device).requires_grad_(False).eval()

    def prior_phase(self, bench: Bench) -> Phase:
        """Encode the images once, then train the transformer on their tokens."""
        from latentia.training.phase import Phase
        from latentia.training.token_objectives import token_cache

        images = self.images()
        codec = bench.keep("codec", self.first_stage(bench))
        bench.keep("id2label", class_names(images) if self.num_classes else None)
        network = bench.keep("prior", self.network(codec))
        scheduler = bench.keep("scheduler", self.scheduler(codec))
        return Phase(
            name="prior",
            objective=self.objective(network, scheduler),
            data=token_cache(codec, images),
            steps=self.steps,
            batch_size=self.batch_size,
            optim=self.optim.build(),
            accumulate=self.accumulate,
            ema=self.ema.build(),
            preview=partial(self.preview, bench),
        )

    def pipeline(self, bench: Bench) -> TokenPipeline:
        """Codec, transformer and scheduler; the weights as they are now."""
        codec, network, names = bench.module("codec"), bench.module("prior"), bench.parts.get("id2label")
        return self.assemble(vqvae=codec, transformer=network, scheduler=bench.parts["scheduler"], id2label=names)

    def preview(self, bench: Bench) -> torch.Tensor:
        """Sixteen pictures (16, C, H, W) from the present weights, for the training log."""
        from latentia.pipelines.distributed import sample_sharded

        pipe = self.pipeline(bench)
        pipe.set_progress_bar_config(disable=True)
        labels = [i % self.num_classes for i in range(16)] if self.num_classes else None
        return sample_sharded(pipe, 16, seed=self.seed, class_labels=labels, **self.draws()[0][1]) * 2 - 1

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the pipeline with averaged weights; with `pictures`, judge it: report.html, report.json, samples.png."""
        use_average(results["prior"])
        self.pipeline(bench).save_pretrained(out / "pipeline")
        if self.pictures:
            from latentia.recipes.token_prior_judging import tell

            bench.parts["judge"].save_pretrained(out / "judge")
            tell(self, bench, results, out)

    # The dry run

    def work(self) -> list[Work]:
        """The judge's and the codec's training (or not), its encoding of the data, the prior's training."""
        import torch

        from latentia.recipes.plan import Work

        size, channels = self.image_size, self.image_channels
        build = partial(codec_like, self.codec) if self.codec else self.build_tokenizer
        with torch.device("meta"):
            codec = check_tokens(build(), str(self.codec))
            shape = codec.token_shape((channels, size, size))

        def images(batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.zeros(batch, channels, size, size),)

        def tokens(batch: int) -> tuple[torch.Tensor, ...]:
            labels = (torch.zeros(batch, dtype=torch.long),) if self.num_classes else ()
            return torch.zeros(batch, *shape, dtype=torch.long), *labels

        def network() -> TokenTransformer:
            with torch.device("meta"):
                like = build()
            return self.network(like)

        both = 2 if self.flip else 1
        count, first, micro = both * self.num_images(), self.tokenizer.batch_size, self.batch_size // self.accumulate
        found = [Work("judge", "judge", self.build_judge, images, self.judge_steps * JUDGED, JUDGED, JUDGED)]
        found = found if self.pictures else []
        if not self.codec:
            found.append(Work("codec", "codec", build, images, self.tokenizer.steps * first, first, first))
        found.append(Work("prior", "codec", build, images, count, JUDGED, JUDGED, trained=False, call=encode_only))
        seen, averaged = self.steps * self.batch_size, self.ema.decay > 0
        found.append(
            Work("prior", "prior", network, tokens, seen, self.batch_size, micro, averaged=averaged, call=nats)
        )
        return found

    def num_images(self) -> int:
        """How many images there are, for the dry run: as published, or counted; 0 for what may have to be fetched."""
        from latentia.recipes.sources import PUBLISHED_SIZES

        if self.data in PUBLISHED_SIZES or self.data.startswith("hf:"):
            return PUBLISHED_SIZES.get(self.data, 0)
        return len(open_data(self.data, "train", self.image_size, self.image_channels))


def check_tokens(codec: Any, folder: str) -> Any:
    """The codec, if it has tokens; raises `InputError`."""
    from latentia.core.protocols import TokenCodec

    if not isinstance(codec, TokenCodec):
        raise InputError(
            f"codec={folder} holds {type(codec).__name__}, which has no tokens: give a folder of a VQModel or FlowMo"
        )
    return codec


def encode_only(codec: Any, x: torch.Tensor) -> torch.Tensor:
    """x → tokens, which is all that the prior's phase asks of the codec."""
    tokens: torch.Tensor = codec.to_tokens(x)
    return tokens


def nats(network: nn.Module, tokens: torch.Tensor, *labels: torch.Tensor) -> torch.Tensor:
    """−log p of every token, (B, *token_shape)."""
    log_p: torch.Tensor = network(tokens, *labels).sample.log_softmax(-1)
    return -log_p.gather(-1, tokens[..., None])[..., 0]


class MaskedPrior(TokenPrior):
    """A bidirectional transformer that fills in masked tokens, all at once in a few rounds (MaskGIT)."""

    masking: Literal["cosine", "arccos", "linear"] = Field(default="cosine", description="γ: share masked over time")
    patch_size: PositiveInt = Field(default=1, description="p×p tokens share a position: p² times shorter sequences")
    unmasked_weight: NonNegativeFloat = Field(default=0.0, description="weight of shown tokens in the loss")
    rounds: PositiveInt = Field(default=8, description="rounds of the judged pictures and of the previews")
    choice_temperature: NonNegativeFloat = Field(default=4.5, description="noise in what counts as confident")

    def network(self, codec: Any) -> TokenTransformer:
        """A `MaskedTransformer`; tokens of one position are grouped."""
        from latentia.denoisers.masked import MaskedTransformer

        shape = codec.token_shape((self.image_channels, self.image_size, self.image_size))
        return MaskedTransformer(
            num_codes=codec.num_codes,
            token_shape=shape,
            groups=codec.tokens_per_position,
            patch_size=self.patch_size,
            num_class_embeds=self.num_classes + 1 if self.num_classes else None,
            **self.transformer.arguments(),
        )

    def scheduler(self, codec: Any) -> TokenScheduler:
        """A `MaskedScheduler`."""
        from latentia.schedulers.masked import MaskedScheduler

        return MaskedScheduler(codec.num_codes, self.masking, self.choice_temperature)

    def objective(self, network: Any, scheduler: Any) -> TokenObjective:
        """Cross entropy of masked tokens."""
        from latentia.training.token_objectives import MaskedObjective

        options = (self.label_dropout, self.label_smoothing, self.unmasked_weight)
        return MaskedObjective(network, scheduler, *options)

    def assemble(self, **parts: Any) -> TokenPipeline:
        """A `MaskedPipeline`."""
        from latentia.pipelines.masked import MaskedPipeline

        return MaskedPipeline(**parts)

    def draws(self) -> list[tuple[str, dict[str, Any]]]:
        """As many rounds as the recipe says, guided as it says and not, and other numbers of rounds."""
        own: dict[str, Any] = {"num_inference_steps": self.rounds}
        found = guided(f"{self.rounds} rounds", own, self.guidance)
        return found + [
            (f"{k} rounds", {**found[0][1], "num_inference_steps": k}) for k in (1, 4, 16) if k != self.rounds
        ]


class AutoregressivePrior(TokenPrior):
    """A causal transformer that draws one token after another (VQGAN's second stage)."""

    corruption: Fraction = Field(default=0.0, description="share of shown tokens replaced by random ones (1 − pkeep)")
    temperature: NonNegativeFloat = Field(default=1.0, description="logits are divided by it when drawing")
    top_k: NonNegativeInt = Field(default=0, description="only the k likeliest codes, 0 for all")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(default=1.0, description="only the likeliest that reach p")

    def network(self, codec: Any) -> TokenTransformer:
        """An `AutoregressiveTransformer`."""
        from latentia.denoisers.autoregressive import AutoregressiveTransformer

        return AutoregressiveTransformer(
            num_codes=codec.num_codes,
            token_shape=codec.token_shape((self.image_channels, self.image_size, self.image_size)),
            num_class_embeds=self.num_classes + 1 if self.num_classes else None,
            **self.transformer.arguments(),
        )

    def scheduler(self, codec: Any) -> TokenScheduler:
        """An `AutoregressiveScheduler`."""
        from latentia.schedulers.autoregressive import AutoregressiveScheduler

        return AutoregressiveScheduler(codec.num_codes, self.temperature, self.top_k, self.top_p)

    def objective(self, network: Any, scheduler: Any) -> TokenObjective:
        """Cross entropy of every token given those before it."""
        from latentia.training.token_objectives import AutoregressiveObjective

        return AutoregressiveObjective(network, self.label_dropout, self.label_smoothing, self.corruption)

    def assemble(self, **parts: Any) -> TokenPipeline:
        """An `AutoregressivePipeline`."""
        from latentia.pipelines.autoregressive import AutoregressivePipeline

        return AutoregressivePipeline(**parts)

    def draws(self) -> list[tuple[str, dict[str, Any]]]:
        """As the recipe says, guided as it says and not, and from the model as it is."""
        found = guided("one at a time", {}, self.guidance)
        return [*found, ("temperature 1, all codes", {"temperature": 1.0, "top_k": 0, "top_p": 1.0})]


def guided(name: str, arguments: dict[str, Any], scale: float) -> list[tuple[str, dict[str, Any]]]:
    """A call under guidance, and without; a single one where both are the same."""
    plain = [(name, arguments)]
    return plain if scale == 1 else [(f"{name}, guidance {scale:g}", {**arguments, "guidance_scale": scale}), *plain]
