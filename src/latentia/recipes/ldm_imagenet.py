"""`ldm4-imagenet` and `ldm8-imagenet`: class-conditional latent diffusion, Rombach et al. 2022."""

from latentia.recipes.latent import LatentDiffusion
from latentia.recipes.parts import Average, Noise, Optim, Target, TrainedKL, UNet


class LDMImageNet(LatentDiffusion):
    """A UNet on the latents of 256×256 ImageNet, told one of 1000 classes."""


def kl_f4() -> TrainedKL:
    """LDM's KL-autoencoder f = 4, z = 64×64×3: 176,991 steps of 10 images, lr 4.5e-6 a sample."""
    return TrainedKL(
        channels=(128, 256, 512), latent_channels=3, steps=176_991, batch_size=10, optim=_first_stage_optim(10)
    )


def kl_f8() -> TrainedKL:
    """LDM's KL-autoencoder f = 8, z = 32×32×4: 246,803 steps of 4 images, lr 4.5e-6 a sample."""
    return TrainedKL(
        channels=(128, 256, 512, 512), latent_channels=4, steps=246_803, batch_size=4, optim=_first_stage_optim(4)
    )


def _first_stage_optim(batch_size: int) -> Optim:
    return Optim(lr=4.5e-6 * batch_size, betas=(0.5, 0.9), clip=None)


def ldm4_imagenet() -> LDMImageNet:
    """LDM-4 on ImageNet 256×256, class-conditional: 178,000 steps of 1200 latents of 64×64×3.

    Command: latentia train ldm4-imagenet data=FOLDER codec=FIRST_STAGE --out runs/ldm4-imagenet
    Cost:    176 EFLOP: about 22 A100-days, 9 of them encoding; the paper used one A100. No task for 2 CPU cores.
    Expect:  FID 10.56 and IS 103.5 (250 DDIM steps); with guidance 1.5 (LDM-4-G) FID 3.60 and IS 247.7; 50,000 samples.

    `data` is a folder of 1000 class folders. `codec` is the folder of a trained first stage, `VQModel` or
    `AutoencoderKL`; the paper's is VQ-f4 (K = 8192, reconstruction FID 0.58), whose latents are diffused unquantised
    and as they are (scaling_factor 1). Without `codec` the KL-autoencoder f4 of LDM is trained first, on L1 and
    1e-6 KL alone: LDM adds LPIPS and a patch discriminator, and without these reconstructions are blurred.

    Deviation: the release tells the UNet its class by cross-attention (transformer blocks, 400 M parameters). Here the
    class embedding is added to that of time (`UNet2DModel`, 264 M), so the published numbers are a goal, not a promise.
    Source: configs/latent-diffusion/cin256-v2.yaml of the authors and tables 3 and 10 of the paper; label 1000 is null.
    """
    return LDMImageNet(
        name="ldm4-imagenet",
        data="imagenet",
        image_size=256,
        num_classes=1000,
        steps=178_000,
        batch_size=1200,
        accumulate=20,
        cache=False,
        vae=kl_f4(),
        unet=UNet(channels=(192, 384, 576, 960), attention=(1, 2, 3)),
        objective=Target(label_dropout=0.1),
        noise=Noise(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195),
        optim=Optim(lr=1e-4, clip=None, weight_decay=0.01),
        ema=Average(decay=0.9999),
        precision="bf16",
        save_every=5000,
        log_every=100,
        preview_every=5000,
    )


def ldm8_imagenet() -> LDMImageNet:
    """LDM-8 on ImageNet 256×256, class-conditional: 2.9 M steps of 64 latents of 32×32×4.

    Command: latentia train ldm8-imagenet data=FOLDER codec=FIRST_STAGE --out runs/ldm8-imagenet
    Cost:    95 EFLOP: about 12 A100-days, 6 of them encoding; the paper used one A100. No task for 2 CPU cores.
    Expect:  FID 17.41 and IS 72.9 (paper, 200 DDIM steps); 15.82 and 78.8 (the authors' README); 50,000 samples.

    `data` is a folder of 1000 class folders. `codec` is the folder of a trained first stage, `VQModel` or
    `AutoencoderKL`; the paper's is VQ-f8 (K = 16384), whose latents are diffused unquantised and as they are
    (scaling_factor 1). Without `codec` the KL-autoencoder f8 of LDM is trained first, on L1 and 1e-6 KL alone: LDM
    adds LPIPS and a patch discriminator, and without these reconstructions are blurred.

    Deviation: the release tells the UNet its class by cross-attention (transformer blocks, 395 M parameters). Here the
    class embedding is added to that of time (`UNet2DModel`, 259 M). Labels are dropped for guidance, which the paper
    did for LDM-4 only; `objective.label_dropout=0` gives the paper's training.
    Source: configs/latent-diffusion/cin-ldm-vq-f8.yaml of the authors (lr 1e-6 a sample) and table 10 of the paper.
    """
    return LDMImageNet(
        name="ldm8-imagenet",
        data="imagenet",
        image_size=256,
        num_classes=1000,
        steps=2_900_000,
        batch_size=64,
        cache=False,
        vae=kl_f8(),
        unet=UNet(channels=(256, 512, 1024), attention=(0, 1, 2), head_dim=32),
        objective=Target(label_dropout=0.1),
        noise=Noise(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195),
        optim=Optim(lr=6.4e-5, clip=None, weight_decay=0.01),
        ema=Average(decay=0.9999),
        precision="bf16",
        save_every=10_000,
        log_every=100,
        preview_every=10_000,
    )
