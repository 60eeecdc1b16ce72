"""`vqvae-photos` and `vqvae-digits`: pictures as a few hundred bits, van den Oord et al. 2017; and their family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from latentia.recipes.codec_training import CodecTraining
from latentia.recipes.parts import Average, Optim, Widths
from latentia.recipes.recipe import Bench, Value, use_average

if TYPE_CHECKING:
    import torch

    from latentia.codecs.vq_model import VQModel
    from latentia.recipes.plan import Work
    from latentia.training.phase import Phase, PhaseResult

BelowOne = Annotated[float, Field(ge=0, lt=1)]


class Tokenizer(Value):
    """The sizes of a `VQModel`; it shrinks each side patch_size · 2^(levels − 1) times."""

    channels: Widths = Field(description="width of each resolution")
    layers: PositiveInt = Field(default=1, description="residual blocks in each resolution")
    patch_size: PositiveInt = Field(default=1, description="pixels a side that the networks see as one position")
    latent_channels: PositiveInt = Field(default=64, description="channels between the halves and the quantizer")
    groups: PositiveInt = Field(default=8, description="groups of GroupNorm")
    mid_attention: bool = Field(default=False, description="self-attention at the lowest resolution")
    quantizer: Literal["vq", "vq_ema", "residual", "lfq", "fsq"] = Field(default="vq_ema", description="which one")
    codes: PositiveInt = Field(default=512, description="K, values of a token: 2^code_dim for lfq, Π levels for fsq")
    code_dim: PositiveInt = Field(default=16, description="d, channels of a code")
    beta: NonNegativeFloat = Field(default=0.25, description="weight of the commitment (vq, vq_ema, residual)")
    decay: BelowOne = Field(default=0.99, description="of the codes' average (vq_ema)")
    revive: BelowOne = Field(default=0.1, description="share of fair use below which a code is moved (vq_ema)")
    cosine: bool = Field(default=False, description="codes on a sphere: directions alone count (vq_ema)")
    fsq_levels: tuple[PositiveInt, ...] | None = Field(default=None, description="levels of each channel (fsq)")
    residual_levels: PositiveInt = Field(default=2, description="codebooks, one after the other (residual)")
    entropy_weight: NonNegativeFloat = Field(default=0.0025, description="weight of the entropies (lfq)")

    def options(self) -> dict[str, Any]:
        """`quantizer_options` of the chosen quantizer."""
        average = {"decay": self.decay, "revive": self.revive, "cosine": self.cosine}
        chosen: dict[str, dict[str, Any]] = {
            "fsq": {"levels": self.fsq_levels},
            "lfq": {"entropy_weight": self.entropy_weight, "commitment_weight": self.entropy_weight / 4},
            "residual": {"levels": self.residual_levels, "codebook_options": average},
            "vq": {},
            "vq_ema": average,
        }
        return chosen[self.quantizer]

    def build(self, sample_size: int, channels: int) -> VQModel:
        """The codec for (B, `channels`, `sample_size`, `sample_size`)."""
        from latentia.codecs.vq_model import VQModel

        levels = len(self.channels)
        return VQModel(
            in_channels=channels,
            out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            latent_channels=self.latent_channels,
            sample_size=sample_size,
            num_vq_embeddings=self.codes,
            vq_embed_dim=self.code_dim,
            norm_num_groups=self.groups,
            scaling_factor=1.0,
            mid_block_add_attention=self.mid_attention,
            beta=self.beta if self.quantizer in ("vq", "vq_ema", "residual") else 0.25,
            quantizer=self.quantizer,
            quantizer_options=self.options(),
            patch_size=self.patch_size,
        )


class VQVAE(CodecTraining):
    """One phase, `codec`: reconstruction error and the quantizer's loss."""

    codec: Tokenizer = Field(description="sizes of the codec")
    loss: Literal["l1", "l2", "huber"] = Field(default="l2", description="reconstruction error")
    quantizer_weight: NonNegativeFloat = Field(default=1.0, description="weight of the quantizer's loss")
    optim: Optim = Field(default=Optim(), description="optimizer of the codec")
    ema: Average = Field(default=Average(decay=0.0), description="average of the codec's weights, which is saved")

    def build_codec(self) -> VQModel:
        """The codec for the recipe's pictures."""
        return self.codec.build(self.image_size, self.image_channels)

    def phases(self, bench: Bench) -> list[tuple[str, Callable[[], Phase]]]:
        """`codec` alone."""
        return [("codec", lambda: self.codec_phase(bench))]

    def codec_phase(self, bench: Bench) -> Phase:
        """Train the codec."""
        from latentia.training.objectives import ReconstructionObjective
        from latentia.training.phase import Phase

        codec = bench.keep("codec", self.build_codec())
        return Phase(
            name="codec",
            objective=ReconstructionObjective(codec, 0.0, "mean", self.loss, self.quantizer_weight),
            data=self.images(),
            steps=self.steps,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            optim=self.optim.build(),
            ema=self.ema.build(),
            preview=partial(self.preview, bench),
        )

    def preview(self, bench: Bench) -> torch.Tensor:
        """Eight held-out pictures above their reconstructions."""
        import torch

        codec: Any = bench.module("codec")
        x = self.glance(bench)
        with torch.no_grad():
            return torch.cat([x, codec(x).sample])

    def finish(self, bench: Bench, results: Mapping[str, PhaseResult], out: Path) -> None:
        """Save the codec into `out`/pipeline, then judge it on held-out pictures: report.json, reconstructions.png."""
        from latentia.recipes.codec_gan_judging import tell

        use_average(results["codec"])
        codec: Any = results["codec"].modules["codec"]
        codec.save_pretrained(out / "pipeline")
        judged: Any = self
        tell(judged, codec.to("cpu"), out)

    def work(self) -> list[Work]:
        """The codec's training."""
        import torch

        from latentia.recipes.plan import Work

        def images(batch: int) -> tuple[torch.Tensor, ...]:
            return (torch.zeros(batch, self.image_channels, self.image_size, self.image_size),)

        seen, micro, averaged = self.steps * self.batch_size, self.batch_size // self.accumulate, self.ema.decay > 0
        return [Work("codec", "codec", self.build_codec, images, seen, self.batch_size, micro, averaged=averaged)]


def vqvae_photos() -> VQVAE:
    """VQ-VAE on 32×32 tiles of real photographs: 64 tokens of 9 bits, 0.5625 bits per pixel.

    Command: latentia train vqvae-photos --out runs/vqvae-photos
    Cost:    about 5 CPU minutes, and one for the ruler that judges it.
    Expect:  PSNR 28.7 dB and SSIM 0.75 on tiles of photographs never trained on (coffee and grace_hopper, in full
             and in half size), all 512 codes used on the training tiles.

    The networks see 4×4 pixels as channels of one position: at the same cost they learn several times faster than
    those that start at full resolution.
    """
    return VQVAE(
        name="vqvae-photos",
        data="photos",
        image_size=32,
        augment="flip",
        steps=3600,
        batch_size=32,
        codec=Tokenizer(channels=(96,), patch_size=4, latent_channels=8, code_dim=8),
        optim=Optim(lr=2e-3, betas=(0.9, 0.99), weight_decay=0.01, schedule="cosine", warmup=30),
        ema=Average(decay=0.998, warmup=True, power=0.75),
        channels_last=True,
        save_every=1000,
    )


def vqvae_digits() -> VQVAE:
    """VQ-VAE on handwritten digits at 16×16: 16 tokens of 8 bits, 128 bits a picture.

    Command: latentia train vqvae-digits --out runs/vqvae-digits
    Cost:    about 2 CPU minutes.
    Expect:  PSNR 32.6 dB and SSIM 0.96 on test digits, all 256 codes used.

    Without turned and mirrored digits the 1,257 pictures are learned by heart: 30.8 dB after a minute, then falling.
    """
    return VQVAE(
        name="vqvae-digits",
        data="digits",
        image_size=16,
        image_channels=1,
        augment="symmetries",
        steps=6000,
        batch_size=64,
        codec=Tokenizer(channels=(64,), patch_size=4, latent_channels=4, codes=256, code_dim=4),
        optim=Optim(lr=5e-3, betas=(0.9, 0.99), weight_decay=0.01, schedule="cosine", warmup=30),
        ema=Average(decay=0.998, warmup=True, power=0.75),
        channels_last=True,
        save_every=1000,
    )
