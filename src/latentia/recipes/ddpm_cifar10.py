"""`ddpm-cifar10`: Ho, Jain and Abbeel 2020, the recipe that started it."""

from latentia.recipes.parts import Average, Noise, Optim, UNet
from latentia.recipes.pixel import PixelDiffusion


class DDPMCIFAR10(PixelDiffusion):
    """The unconditional UNet of 35.7 M parameters on 32×32 pixels."""


def ddpm_cifar10() -> DDPMCIFAR10:
    """DDPM on CIFAR-10 as published: 35,746,307 parameters, 800,000 steps of 128 images.

    Command: latentia train ddpm-cifar10 --out runs/ddpm-cifar10
    Cost:    3.8 EFLOP: about 23 hours on one A100; the paper used a TPU v3-8. Months on 2 CPU cores
             (`--dry-run` says how many here).
    Expect:  FID 3.17 with 1000 DDPM steps and σ² = β (50,000 samples), 4.67 with 50 DDIM steps.

    Source: scripts/run_cifar.py of the authors: Adam 2e-4, warm-up 5000, clip 1, EMA 0.9999, β 1e-4 → 0.02 linear,
    dropout 0.1, random flips, attention at 16×16, last layers at zero. `data` is a folder of images, or hf:NAME
    with the `datasets` package.
    """
    return DDPMCIFAR10(
        name="ddpm-cifar10",
        data="hf:uoft-cs/cifar10",
        image_size=32,
        flip=True,
        steps=800_000,
        batch_size=128,
        unet=UNet(
            channels=(128, 256, 256, 256),
            attention=(1,),
            norm_eps=1e-6,
            dropout=0.1,
            flip_sin_to_cos=False,
            freq_shift=1,
            downsample_padding=0,
        ),
        noise=Noise(clip_sample=True, variance_type="fixed_large"),
        optim=Optim(lr=2e-4, warmup=5000),
        ema=Average(decay=0.9999),
        save_every=10_000,
        log_every=100,
        preview_every=10_000,
    )
