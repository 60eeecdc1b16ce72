"""`flowmo-photos`: FlowMo on 32×32 tiles of real photographs, 576 bits a tile."""

from latentia.recipes.codec_gan import Perceptual
from latentia.recipes.flowmo import FlowMoRecipe
from latentia.recipes.flowmo_parts import FlowTarget, PostTraining, Sampling, Sizes, Tower
from latentia.recipes.parts import Average, Optim


def flowmo_photos() -> FlowMoRecipe:
    """FlowMo on 32×32 tiles of real photographs: 64 tokens of 9 bits, 0.5625 bits per pixel.

    Command: latentia train flowmo-photos --out runs/flowmo-photos
    Cost:    about 1 CPU hour; the bits are those of `vqvae-photos` and `vqgan-photos`.
    Expect:  with steps=6000 post.steps=240 (36 CPU minutes, 630 report tiles, seed 0, 10 steps): 27.1 dB and
             frechet_photo_features 0.91 after stage 1A, 27.8 dB and 1.45 after 1B; on the article's grid
             (sampling.rho=4) 1.24, without guidance 1.3. `vqvae-photos` has 28.6 dB and 2.72, `vqgan-photos` 27.6 dB
             and 1.67. The whole run is not measured.

    The design is that of `flowmo-digits`. Tiles of the training photographs, in full and half size and mirrored; judged
    on other photographs.
    """
    features = Perceptual(kind="photo_features", weight=0.1)
    return FlowMoRecipe(
        name="flowmo-photos",
        data="photos",
        image_size=32,
        augment="flip",
        stride=4,
        sizes=Sizes(
            patch_size=4,
            code_length=64,
            code_dim=8,
            quantizer="vq_ema",
            codes=512,
            group_bits=8,
            decay=0.99,
            encoder=Tower(width=128, depth=2, heads=4),
            decoder=Tower(width=128, depth=4, heads=4),
            prediction="sample",
            code_layout="grid",
            anchored=True,
        ),
        target=FlowTarget(weight_power=1.0, weight_floor=0.2),
        steps=10_000,
        batch_size=16,
        perceptual=features,
        post=PostTraining(
            steps=400,
            batch_size=16,
            perceptual=features,
            optim=Optim(lr=2e-4, betas=(0.9, 0.95), schedule="cosine", final_lr=0.1, warmup=20),
        ),
        sampling=Sampling(steps=10, rho=1.0),
        optim=Optim(lr=2e-3, betas=(0.9, 0.95), schedule="cosine", final_lr=0.02, warmup=50),
        ema=Average(decay=0.999),
        judged=True,
        preview_every=1000,
        save_every=500,
    )
