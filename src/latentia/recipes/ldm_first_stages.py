"""`ldm-kl-f8` and `ldm-vq-f4`: first stages of Rombach et al. 2022, with their perceptual and adversarial losses."""

from __future__ import annotations

from typing import Any

from pydantic import Field, NonNegativeFloat

from latentia.recipes.codec_gan import Adversary, CodecGAN, Perceptual
from latentia.recipes.parts import KLCodec
from latentia.recipes.vqgan import PaperVQGAN, VQCodec, first_stage_optim


class KLFirstStage(CodecGAN):
    """An `AutoencoderKL` trained with reconstruction, perceptual and adversarial losses, and a little KL."""

    codec: KLCodec = Field(description="sizes of the codec")
    kl_weight: NonNegativeFloat = Field(default=1e-6, description="weight of the KL, both terms being sums")

    def build_codec(self) -> Any:
        """The codec."""
        return self.codec.build(self.image_size, self.image_channels)

    def weights_of_loss(self) -> dict[str, float]:
        """The KL's."""
        return {"kl_weight": self.kl_weight}


def ldm_kl_f8() -> KLFirstStage:
    """LDM's KL-autoencoder f = 8 on 256×256 crops, Stable Diffusion's first stage: 83,653,863 parameters.

    Command: latentia train ldm-kl-f8 data=FOLDER perceptual.weights=VGG16,LPIPS_VGG --out runs/ldm-kl-f8
    Cost:    23 EFLOP: about 6 A100-days. No task for 2 CPU cores.
    Expect:  on ImageNet's validation set reconstruction FID 0.90, PSNR 24.19 ± 4.19, PSIM 1.02, SSIM 0.69.

    `data` is a folder of pictures; the authors took crops of OpenImages. `perceptual.weights`: torchvision's VGG16 and
    the lpips package's heads, as files or Hub ids.

    Source: configs/autoencoder/autoencoder_kl_32x32x4.yaml and models/first_stage_models/kl-f8 of the authors
    (246,803 steps, lr 4.5e-6 a sample), table 8 of the paper. Losses are sums over elements, means over the batch.
    """
    return KLFirstStage(
        name="ldm-kl-f8",
        data="openimages",
        image_size=256,
        steps=246_803,
        batch_size=32,
        accumulate=2,
        reduction="sum",
        codec=KLCodec(channels=(128, 256, 512, 512), latent_channels=4),
        perceptual=Perceptual(kind="lpips-vgg"),
        discriminator=Adversary(start=50_001, weight=0.5, optim=first_stage_optim(32)),
        optim=first_stage_optim(32),
        save_every=5000,
        log_every=100,
        preview_every=5000,
    )


def ldm_vq_f4() -> PaperVQGAN:
    """LDM's VQ-autoencoder f = 4 on 256×256 crops (K = 8192, d = 3), the first stage of LDM-4: 55,322,782 parameters.

    Command: latentia train ldm-vq-f4 data=FOLDER perceptual.weights=VGG16,LPIPS_VGG --out runs/ldm-vq-f4
    Cost:    14 EFLOP: about 3.5 A100-days (the paper's table 18 says 29 V100-days). No task for 2 CPU cores.
    Expect:  on ImageNet's validation set reconstruction FID 0.58, PSNR 27.43 ± 4.26, PSIM 0.53, SSIM 0.82.

    `data` and `perceptual.weights` as in `ldm-kl-f8`. The discriminator joins at once, as published.

    Source: models/first_stage_models/vq-f4 of the authors (533,066 steps, lr 4.5e-6 a sample) and table 8 of the paper.
    """
    return PaperVQGAN(
        name="ldm-vq-f4",
        data="openimages",
        image_size=256,
        steps=533_066,
        batch_size=8,
        codec=VQCodec(channels=(128, 256, 512), latent_channels=3, codes=8192, code_dim=3),
        perceptual=Perceptual(kind="lpips-vgg"),
        discriminator=Adversary(weight=0.75, optim=first_stage_optim(8)),
        optim=first_stage_optim(8),
        save_every=5000,
        log_every=100,
        preview_every=5000,
    )
