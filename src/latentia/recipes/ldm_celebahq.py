"""`ldm-celebahq`: unconditional latent diffusion on faces, Rombach et al. 2022."""

from latentia.recipes.latent import LatentDiffusion
from latentia.recipes.ldm_imagenet import kl_f4
from latentia.recipes.parts import Average, Noise, Optim, UNet


class LDMCelebAHQ(LatentDiffusion):
    """The unconditional UNet of 274 M parameters on the latents of 256×256 faces."""


def ldm_celebahq() -> LDMCelebAHQ:
    """LDM-4 on CelebA-HQ 256×256: 274,056,163 parameters, 410,000 steps of 48 latents of 64×64×3.

    Command: latentia train ldm-celebahq data=FOLDER codec=FIRST_STAGE --out runs/ldm-celebahq
    Cost:    12 EFLOP: about 1.5 A100-days; the paper used one A100. No task for 2 CPU cores.
    Expect:  FID 5.11, precision 0.72, recall 0.49 (200 DDIM steps, η = 0, 50,000 samples).

    `data` is a folder of the 30,000 images. `codec` is the folder of a trained first stage, `VQModel` or
    `AutoencoderKL`; the paper's is VQ-f4 (K = 8192, reconstruction FID 0.58), whose latents are diffused unquantised
    and as they are (scaling_factor 1). Without `codec` the KL-autoencoder f4 of LDM is trained first, on L1 and
    1e-6 KL alone: LDM adds LPIPS and a patch discriminator, and without these reconstructions are blurred.

    Source: configs/latent-diffusion/celebahq-ldm-vq-4.yaml of the authors (lr 2e-6 a sample) and table 1 of the paper;
    the number of steps is that of its appendix, from memory.
    """
    return LDMCelebAHQ(
        name="ldm-celebahq",
        data="celebahq",
        image_size=256,
        steps=410_000,
        batch_size=48,
        vae=kl_f4(),
        unet=UNet(channels=(224, 448, 672, 896), attention=(1, 2, 3), head_dim=32),
        noise=Noise(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195),
        optim=Optim(lr=9.6e-5, clip=None, weight_decay=0.01),
        ema=Average(decay=0.9999),
        precision="bf16",
        save_every=10_000,
        log_every=100,
        preview_every=10_000,
    )
