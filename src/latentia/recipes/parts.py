"""The groups of fields that recipes are made of, each beside the object it builds.

Names and defaults are those of the classes they build. No module here imports torch until something is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from latentia.recipes.recipe import Value

if TYPE_CHECKING:
    from latentia.codecs.autoencoder_kl import AutoencoderKL
    from latentia.denoisers.unet_2d import UNet2DModel
    from latentia.schedulers.ddpm import DDPMScheduler
    from latentia.training import phase
    from latentia.training.objectives import DiffusionObjective

Fraction = Annotated[float, Field(ge=0, le=1)]
Widths = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]


class Optim(Value):
    """The optimizer and its learning-rate schedule."""

    lr: PositiveFloat = Field(default=1e-3, description="peak learning rate")
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.999), description="Adam's decay of both moments")
    eps: PositiveFloat = Field(default=1e-8, description="Adam's denominator floor")
    weight_decay: NonNegativeFloat = Field(default=0.0, description="decoupled weight decay")
    warmup: NonNegativeInt = Field(default=0, description="steps of linear warm-up")
    schedule: Literal["constant", "cosine", "linear"] = Field(default="constant", description="after the warm-up")
    final_lr: Fraction = Field(default=0.0, description="last learning rate as a fraction of lr (cosine, linear)")
    clip: PositiveFloat | None = Field(default=1.0, description="largest gradient norm; none clips nothing")
    optimizer: Literal["adamw", "adam", "muon"] = Field(
        default="adamw", description="muon: AdamW but for matrices, whose updates are made orthogonal"
    )

    def build(self) -> phase.Optim:
        """The training floor's value."""
        from latentia.training import phase

        return phase.Optim(**self.model_dump())


class Average(Value):
    """Exponential moving average of the weights; `decay` 0 turns it off."""

    decay: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9999, description="largest decay; 0 keeps no average")
    warmup: bool = Field(default=False, description="1 − (1 + n/inv_gamma)^−power instead of (1 + n)/(10 + n)")
    inv_gamma: PositiveFloat = Field(default=1.0, description="inverse multiplicative factor of the warm-up")
    power: PositiveFloat = Field(default=2 / 3, description="exponent of the warm-up")

    def build(self) -> phase.EMA | None:
        """The training floor's value, None when off."""
        from latentia.training import phase

        return phase.EMA(**self.model_dump()) if self.decay else None


class Noise(Value):
    """The diffusion process, in the vocabulary of `DDPMScheduler`.

    LDM's configs call linspace in √β, squared, "linear"; here that is `scaled_linear`.
    """

    num_train_timesteps: PositiveInt = Field(default=1000, description="steps T of the forward process")
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = Field(
        default="linear", description="shape of β_t"
    )
    beta_start: PositiveFloat = Field(default=1e-4, description="β of the first step")
    beta_end: PositiveFloat = Field(default=0.02, description="β of the last step")
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = Field(
        default="epsilon", description="what the network predicts: ε, x₀ or v"
    )
    clip_sample: bool = Field(default=False, description="clip x̂₀ to [-1, 1] when sampling (pixels yes, latents no)")
    variance_type: Literal["fixed_small", "fixed_large"] = Field(default="fixed_small", description="β̃ or β in DDPM")

    def build(self) -> DDPMScheduler:
        """The scheduler to train with; samplers are made from its config."""
        from latentia.schedulers.ddpm import DDPMScheduler

        return DDPMScheduler(**self.model_dump())


class Target(Value):
    """What the denoiser's training minimises, in the vocabulary of `DiffusionObjective`."""

    loss: Literal["mse", "l1", "huber"] = Field(default="mse", description="error of the prediction")
    min_snr_gamma: PositiveFloat | None = Field(default=None, description="γ of min-SNR weighting; none for no weights")
    times: Literal["uniform", "antithetic", "logit_normal"] = Field(default="uniform", description="draw of t")
    label_dropout: Fraction = Field(default=0.0, description="share of labels replaced by the null class, for guidance")

    def check_classes(self, num_classes: int) -> None:
        """Raise `ValueError` for label dropout without labels."""
        if self.label_dropout and not num_classes:
            raise ValueError(
                f"objective.label_dropout={self.label_dropout} needs classes: set num_classes, or "
                "objective.label_dropout=0"
            )

    def build(self, denoiser: UNet2DModel, scheduler: DDPMScheduler) -> DiffusionObjective:
        """The objective that trains `denoiser`."""
        from latentia.training.objectives import DiffusionObjective

        return DiffusionObjective(denoiser, scheduler, **self.model_dump())


class UNet(Value):
    """The widths of a `UNet2DModel`; the recipe adds sizes, channels and classes."""

    channels: Widths = Field(description="width of each resolution")
    layers: PositiveInt = Field(default=2, description="residual blocks in each resolution")
    attention: tuple[NonNegativeInt, ...] = Field(default=(), description="levels with attention, 0 is the largest")
    head_dim: PositiveInt | None = Field(default=None, description="channels of a head; none is a single head")
    groups: PositiveInt = Field(default=32, description="groups of GroupNorm")
    norm_eps: PositiveFloat = Field(default=1e-5, description="ε of GroupNorm")
    dropout: Fraction = Field(default=0.0, description="dropout in residual blocks")
    flip_sin_to_cos: bool = Field(default=True, description="time as cos ‖ sin (LDM) or sin ‖ cos (DDPM)")
    freq_shift: NonNegativeInt = Field(default=0, description="0 (LDM) or 1 (DDPM) in the time embedding's frequencies")
    downsample_padding: NonNegativeInt = Field(default=1, description="0 pads right and bottom only (DDPM)")
    zero_init: bool = Field(default=True, description="start residual branches and the output at zero")

    def build(self, sample_size: int, channels: int, num_classes: int = 0) -> UNet2DModel:
        """The network for (B, `channels`, `sample_size`, `sample_size`).

        With `num_classes` it takes `class_labels`, and one embedding more than classes: the last is the null class.
        """
        from latentia.denoisers.unet_2d import UNet2DModel

        attends = [i in self.attention for i in range(len(self.channels))]
        given: dict[str, Any] = {"num_class_embeds": num_classes + 1} if num_classes else {}
        return UNet2DModel(
            sample_size=sample_size,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            attention_head_dim=self.head_dim,
            norm_num_groups=self.groups,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            flip_sin_to_cos=self.flip_sin_to_cos,
            freq_shift=self.freq_shift,
            downsample_padding=self.downsample_padding,
            zero_init=self.zero_init,
            **given,
        )


class KLCodec(Value):
    """The widths of an `AutoencoderKL`; it shrinks each side 2^(levels − 1) times."""

    channels: Widths = Field(description="width of each resolution")
    layers: PositiveInt = Field(default=2, description="residual blocks in each resolution")
    latent_channels: PositiveInt = Field(default=4, description="channels of the latent")
    groups: PositiveInt = Field(default=32, description="groups of GroupNorm")
    mid_attention: bool = Field(default=True, description="self-attention at the lowest resolution")

    @property
    def factor(self) -> int:
        """How many times smaller the latent's side is (LDM's f)."""
        return 2 ** (len(self.channels) - 1)

    def build(self, sample_size: int, channels: int = 3, **extra: Any) -> AutoencoderKL:
        """The codec for (B, `channels`, `sample_size`, `sample_size`)."""
        from latentia.codecs.autoencoder_kl import AutoencoderKL

        levels = len(self.channels)
        return AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            latent_channels=self.latent_channels,
            norm_num_groups=self.groups,
            sample_size=sample_size,
            mid_block_add_attention=self.mid_attention,
            **extra,
        )


class TrainedKL(KLCodec):
    """A KL-autoencoder and the phase that trains it."""

    steps: PositiveInt = Field(description="optimizer steps of the codec's phase")
    batch_size: PositiveInt = Field(description="images in one optimizer step, over all processes")
    kl_weight: NonNegativeFloat = Field(default=1e-6, description="weight of the KL, both terms being sums")
    loss: Literal["l1", "l2", "huber"] = Field(default="l1", description="reconstruction error")
    reduction: Literal["sum", "mean"] = Field(default="sum", description="over the elements of one image; LDM sums")
    optim: Optim = Field(default=Optim(), description="optimizer of the codec")
