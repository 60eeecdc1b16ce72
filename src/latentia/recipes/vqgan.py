"""`vqgan-photos`, `vqgan-digits` and `vqgan-imagenet`: the first stage of Esser et al. 2021, taming-transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from latentia.recipes.codec_gan import Adversary, CodecGAN, Perceptual
from latentia.recipes.parts import Optim, Widths
from latentia.recipes.recipe import Value
from latentia.recipes.vqvae import VQVAE, Tokenizer, vqvae_digits, vqvae_photos

if TYPE_CHECKING:
    from torch import nn

Error = Literal["l1", "l2", "huber"]


class VQCodec(Value):
    """The sizes of a published `VQModel`, with attention at chosen resolutions; it shrinks each side 2^(levels − 1)
    times and writes log2(codes) bits a position.
    """

    channels: Widths = Field(description="width of each resolution")
    layers: PositiveInt = Field(default=2, description="residual blocks in each resolution")
    latent_channels: PositiveInt = Field(default=256, description="channels between the halves")
    codes: PositiveInt = Field(default=1024, description="K, codes in the codebook")
    code_dim: PositiveInt = Field(default=256, description="d, channels of a code")
    attention: tuple[int, ...] = Field(default=(), description="resolutions with self-attention, 0 for the highest")
    mid_attention: bool = Field(default=True, description="self-attention at the lowest resolution's middle")
    groups: PositiveInt = Field(default=32, description="groups of GroupNorm")
    beta: NonNegativeFloat = Field(default=0.25, description="weight of the commitment")

    def build(self, sample_size: int, channels: int) -> nn.Module:
        """The codec for (B, `channels`, `sample_size`, `sample_size`)."""
        from latentia.codecs.vq_model import VQModel

        attends = [i in self.attention for i in range(len(self.channels))]
        return VQModel(
            in_channels=channels,
            out_channels=channels,
            down_block_types=tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends),
            up_block_types=tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)),
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            latent_channels=self.latent_channels,
            sample_size=sample_size,
            num_vq_embeddings=self.codes,
            vq_embed_dim=self.code_dim,
            norm_num_groups=self.groups,
            scaling_factor=1.0,
            mid_block_add_attention=self.mid_attention,
            beta=self.beta,
        )


class VQGANBase(CodecGAN):
    """What all VQGANs have in common."""

    codec: Any
    quantizer_weight: NonNegativeFloat = Field(default=1.0, description="weight of the quantizer's loss")

    def build_codec(self) -> Any:
        """The codec."""
        return self.codec.build(self.image_size, self.image_channels)

    def weights_of_loss(self) -> dict[str, float]:
        """The quantizer's."""
        return {"quantizer_weight": self.quantizer_weight}


class VQGAN(VQGANBase):
    """The codec of `vqvae-photos` or `vqvae-digits`, trained with perceptual and adversarial losses as well."""

    codec: Tokenizer = Field(description="sizes of the codec")


class PaperVQGAN(VQGANBase):
    """A published `VQModel`, trained with reconstruction, perceptual and adversarial losses."""

    codec: VQCodec = Field(description="sizes of the codec")


def like(plain: VQVAE, name: str, perceptual: Perceptual, discriminator: Adversary, loss: Error) -> VQGAN:
    """The VQGAN of a VQ-VAE: network, bits, pictures and steps alike."""
    same = ("data", "image_size", "image_channels", "augment", "stride", "scales", "codec", "optim", "ema")
    run = ("steps", "batch_size", "channels_last", "save_every")
    given = {field: getattr(plain, field) for field in (*same, *run)}
    return VQGAN(name=name, perceptual=perceptual, discriminator=discriminator, loss=loss, **given)


def vqgan_photos() -> VQGAN:
    """VQGAN on 32×32 tiles of real photographs: 64 tokens of 9 bits, 0.5625 bits per pixel.

    Command: latentia train vqgan-photos --out runs/vqgan-photos
    Cost:    about 10 CPU minutes.
    Expect:  on the report photographs, seed 0: 27.6 dB, SSIM 0.736, frechet_photo_features 1.67, where `vqvae-photos`
             has 28.6 dB, 0.757 and 2.72 (39 % better). Seed 1: 26.7 dB and 1.11, where that has 28.0 dB and 2.74.

    The codec is that of `vqvae-photos`, network, bits and steps alike; added are a perceptual distance on a network
    that learns for a minute to name damages of the same tiles, and a patch discriminator. It joins a codec that has
    learned: it learns alone for 300 steps, then its pull grows over 300.

    The published adaptive weight does not do here. A discriminator that is soon sure of both sides has steep slopes, so
    the weight falls to 0.0008 and the pull with it: 2.24. One that R1 keeps flat has none, the weight follows to 2–13
    and breaks the reconstruction: 2.21 and 24.6 dB. In trials that went on from one codec at step 2,000, a constant
    0.03 reached 1.95 and 0.06 was too much (2.5), but not with a little R1; taken is 0.1 with R1. It joins late, and
    its learning rate falls with the codec's.
    """
    return like(
        vqvae_photos(),
        "vqgan-photos",
        Perceptual(),
        Adversary(
            width=32,
            layers=2,
            norm="group",
            weight=0.1,
            adaptive=False,
            start=2000,
            warmup=300,
            ramp=300,
            r1=0.003,
            optim=Optim(lr=2.5e-3, betas=(0.5, 0.9), schedule="cosine", clip=None),
        ),
        loss="l2",
    )


def vqgan_digits() -> VQGAN:
    """VQGAN on handwritten digits at 16×16: 16 tokens of 8 bits, 128 bits a picture.

    Command: latentia train vqgan-digits --out runs/vqgan-digits
    Cost:    about 5 CPU minutes.
    Expect:  on the 540 test digits, seed 0: 32.9 dB, SSIM 0.961, frechet_digits 0.10 and accuracy 0.989, where
             `vqvae-digits` has 32.7 dB, 0.966, 0.21 and 0.981.
    """
    return like(
        vqvae_digits(),
        "vqgan-digits",
        Perceptual(steps=200),
        Adversary(
            width=32,
            layers=1,
            norm="group",
            weight=0.2,
            start=1000,
            warmup=100,
            ramp=300,
            optim=Optim(lr=1e-3, betas=(0.5, 0.9)),
        ),
        loss="l1",
    )


def vqgan_imagenet() -> PaperVQGAN:
    """Taming's VQGAN f = 16 on ImageNet 256×256: 256 tokens of 10 bits (K = 1024), 72,141,699 parameters.

    Command: latentia train vqgan-imagenet data=FOLDER perceptual.weights=VGG16,LPIPS_VGG --out runs/vqgan-imagenet
    Cost:    64 EFLOP: about 16 A100-days. No task for 2 CPU cores.
    Expect:  reconstruction FID 7.94 on the validation set (10.54 on the training set), PSNR 19.4 ± 3.3, SSIM 0.50; with
             codec.codes=16384 4.98 (7.41), PSNR 19.9 ± 3.4, SSIM 0.51.

    `perceptual.weights`: torchvision's VGG16 and the lpips package's heads, as files or Hub ids.

    Deviations: how long the authors trained is not published; here as long again as before the discriminator joins. The
    commitment is weighted with β as in the papers, where their code weighs the codebook.
    Source: configs/imagenet_vqgan.yaml (lr 4.5e-6 a sample) and the README of taming-transformers.
    """
    return PaperVQGAN(
        name="vqgan-imagenet",
        data="imagenet",
        image_size=256,
        steps=500_000,
        batch_size=96,
        accumulate=8,
        codec=VQCodec(channels=(128, 128, 256, 256, 512), attention=(4,)),
        perceptual=Perceptual(kind="lpips-vgg"),
        discriminator=Adversary(start=250_001, optim=first_stage_optim(96)),
        optim=first_stage_optim(96),
        save_every=5000,
        log_every=100,
        preview_every=5000,
    )


def first_stage_optim(batch_size: int) -> Optim:
    """The Adam of taming-transformers and latent diffusion: 4.5e-6 a sample, no clipping."""
    return Optim(lr=4.5e-6 * batch_size, betas=(0.5, 0.9), clip=None)
