"""`digits-ldm`: latent diffusion on real handwritten digits, small enough for two CPU cores."""

from latentia.recipes.latent import LatentDiffusion
from latentia.recipes.parts import Average, Noise, Optim, Target, TrainedKL, UNet


class DigitsLDM(LatentDiffusion):
    """A KL-VAE (32×32 → 8×8×1) and a class-conditional UNet on its latents."""


def digits_ldm() -> DigitsLDM:
    """Latent diffusion on scikit-learn's 1,257 training digits at 32×32, class-conditional.

    Command: latentia train digits-ldm --out runs/digits-ldm
    Cost:    about 140 CPU-seconds (40 for the KL-VAE, 100 for the UNet), 1.5 minutes on 2 CPU cores.
    Expect:  KL-VAE: PSNR 36.4 dB on test digits. DPM-Solver++-10 with EMA: accuracy_digits 0.99, frechet_digits
             0.9 ± 0.2 × the floor (540 random real images against all), nearest-training-image distance 1.0 × held-out
             images'.
    """
    return DigitsLDM(
        name="digits-ldm",
        data="digits",
        image_size=32,
        image_channels=1,
        num_classes=10,
        steps=1600,
        batch_size=64,
        vae=TrainedKL(
            channels=(16, 32, 48),
            layers=1,
            groups=8,
            latent_channels=1,  # the scans behind these pictures are 8×8: one channel holds them
            mid_attention=False,
            steps=400,
            batch_size=32,
            loss="l2",
            kl_weight=1e-2,
            reduction="mean",
            optim=Optim(lr=3e-3, schedule="linear", warmup=20, weight_decay=1e-3),
        ),
        unet=UNet(channels=(48, 64), layers=1, attention=(1,), head_dim=32, groups=16),
        center=True,
        objective=Target(label_dropout=0.1, times="logit_normal"),
        noise=Noise(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
        optim=Optim(lr=3e-3, schedule="linear", final_lr=0.2, warmup=50, betas=(0.9, 0.99), weight_decay=0.1),
        ema=Average(decay=0.999, warmup=True, power=0.75),
        channels_last=True,
        save_every=500,
    )
