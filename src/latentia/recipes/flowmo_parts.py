"""The groups of fields of the FlowMo recipes, each beside the object it builds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from latentia.recipes.codec_gan import Perceptual
from latentia.recipes.parts import Fraction, Optim
from latentia.recipes.recipe import Value

if TYPE_CHECKING:
    from latentia.methods.flowmo.model import DiffusionAutoencoder


class Tower(Value):
    """A transformer's size."""

    width: PositiveInt = Field(description="channels of a token")
    depth: PositiveInt = Field(description="double-stream blocks")
    heads: PositiveInt = Field(default=12, description="attention heads; they divide the width")

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads or self.width // self.heads % 2 or self.width // self.heads < 4:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads of an even width, 4 or more")
        return self


class Sampling(Value):
    """How a picture is sampled from its code; see `Sampler`."""

    steps: PositiveInt = Field(default=25, description="calls of the decoder, not counting guidance")
    rho: PositiveFloat = Field(default=4.0, description="t = ((n − i + 1)/n)^rho; 1 is linear (ablation)")
    guidance: NonNegativeFloat = Field(default=1.5, description="strength; 1 is none (ablation)")
    low: NonNegativeFloat = Field(default=0.17, description="least sigma that is guided")
    high: NonNegativeFloat = Field(default=1.02, description="greatest sigma that is guided")


class Sizes(Value):
    """The codec. Fields of one quantizer say which: LFQ's, FSQ's or VQ's."""

    patch_size: PositiveInt = Field(default=4, description="side of a patch; doubled in an ablation")
    code_length: PositiveInt = Field(default=256, description="code tokens")
    code_dim: PositiveInt = Field(default=18, description="channels of a code token; bits, for lfq")
    quantizer: Literal["lfq", "fsq", "vq_ema", "none"] = Field(default="lfq", description="none: continuous, as DiTo")
    group_bits: PositiveInt = Field(default=9, description="lfq: bits in one token; they divide code_dim")
    levels: PositiveInt = Field(default=4, description="fsq: levels of each channel")
    entropy_weight: NonNegativeFloat = Field(default=0.0025, description="lfq: weight of the entropies")
    commitment_weight: NonNegativeFloat = Field(default=0.000625, description="lfq: weight of the commitment")
    tau: PositiveFloat = Field(default=0.1, description="lfq: temperature of the entropies")
    codes: PositiveInt = Field(default=256, description="vq_ema: codes in the codebook")
    decay: Fraction = Field(default=0.97, description="vq_ema: of the codes' average")
    revive: Fraction = Field(default=0.1, description="vq_ema: share of fair use below which a code is moved")
    encoder: Tower = Field(default=Tower(width=768, depth=8), description="the encoder")
    decoder: Tower = Field(default=Tower(width=1152, depth=16), description="the decoder")
    mlp_ratio: PositiveFloat = Field(default=4.0, description="hidden width of an MLP over the width")
    prediction: Literal["flow_prediction", "sample", "preconditioned"] = Field(
        default="flow_prediction",
        description="the decoder says v, the clean picture, or what leads from one to the other",
    )
    sigma_data: PositiveFloat = Field(
        default=0.5, description="preconditioned: root mean square of the pictures' values"
    )
    code_layout: Literal["diagonal", "grid"] = Field(
        default="diagonal", description="positions of code tokens; grid shares the patches' picture"
    )
    anchored: bool = Field(default=False, description="code tokens start from the patches they stand on (grid)")

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if self.quantizer == "lfq" and self.code_dim % self.group_bits:
            raise ValueError(f"group_bits {self.group_bits} does not divide the code_dim of {self.code_dim} bits")
        return self

    def build(self, image_size: int, channels: int, sampling: Sampling) -> DiffusionAutoencoder:
        """The codec for (B, `channels`, `image_size`, `image_size`)."""
        from latentia.methods.flowmo.codecs import ContinuousFlowMo, FlowMo

        given: dict[str, Any] = {f"encoder_{k}": v for k, v in self.encoder.model_dump().items()}
        given |= {f"decoder_{k}": v for k, v in self.decoder.model_dump().items()}
        given |= {
            "image_size": image_size,
            "in_channels": channels,
            "patch_size": self.patch_size,
            "code_length": self.code_length,
            "code_dim": self.code_dim,
            "mlp_ratio": self.mlp_ratio,
            "prediction_type": self.prediction,
            "sigma_data": self.sigma_data,
            "code_layout": self.code_layout,
            "anchored": self.anchored,
            "num_inference_steps": sampling.steps,
            "rho": sampling.rho,
            "guidance_scale": sampling.guidance,
            "guidance_interval": (sampling.low, sampling.high),
        }
        if self.quantizer == "none":
            return ContinuousFlowMo(**given)
        names = ("group_bits", "entropy_weight", "commitment_weight", "tau")
        options: dict[str, dict[str, Any]] = {
            "lfq": {name: getattr(self, name) for name in names},
            "fsq": {"levels": (self.levels,) * self.code_dim},
            "vq_ema": {"num_codes": self.codes, "decay": self.decay, "revive": self.revive},
        }
        return FlowMo(**given, quantizer=self.quantizer, quantizer_options=options[self.quantizer])


class FlowTarget(Value):
    """What stage 1A minimises, in the vocabulary of `FlowMoObjective`."""

    weight_power: NonNegativeFloat = Field(default=2.0, description="w(t) = max(t, floor)^−power of the error in x")
    weight_floor: Fraction = Field(default=0.0, description="floor of w(t); power 2 and floor 0 are the paper's")
    times_mean: float = Field(default=0.0, description="t = sigmoid(n): mean of n")
    times_std: PositiveFloat = Field(default=1.0, description="deviation of n")
    uniform_times: Fraction = Field(default=0.1, description="share of uniform t; 0 is plain logit-normal (ablation)")
    code_dropout: Fraction = Field(default=0.1, description="share of pictures that lose their code, for guidance")
    anneal_steps: NonNegativeInt = Field(default=0, description="steps over which continuous codes become quantised")
    noise_sync: Fraction = Field(default=0.0, description="DiTo's augmentation of continuous codes")
    weight_norm: Literal["l2", "channel", "none"] = Field(default="l2", description="forced norms of the matrices")

    def options(self) -> dict[str, Any]:
        """Arguments of `FlowMoObjective`."""
        return {**self.model_dump(), "weight_norm": None if self.weight_norm == "none" else self.weight_norm}


class PostTraining(Value):
    """Stage 1B."""

    steps: NonNegativeInt = Field(default=25_000, description="optimizer steps; 0 leaves the stage out")
    batch_size: PositiveInt = Field(default=64, description="pictures in one optimizer step")
    accumulate: PositiveInt = Field(default=1, description="micro-batches summed into one optimizer step")
    chain_steps: PositiveInt = Field(default=8, description="steps of the chain that is differentiated")
    perceptual: Perceptual = Field(
        default=Perceptual(kind="resnet50-logits", weight=0.01), description="distance of the sample, and its weight"
    )
    optim: Optim = Field(default=Optim(lr=5e-5, betas=(0.9, 0.95), clip=None), description="optimizer of stage 1B")

    @model_validator(mode="after")
    def _splits(self) -> Self:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} does not split into accumulate={self.accumulate} parts")
        return self
