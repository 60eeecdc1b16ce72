"""`flowmo-photos`: FlowMo on 32×32 tiles of real photographs, 576 bits a tile."""

from latentia.recipes.codec_gan import Perceptual
from latentia.recipes.flowmo import FlowMoRecipe
from latentia.recipes.flowmo_parts import FlowTarget, PostTraining, Sampling, Sizes, Tower
from latentia.recipes.parts import Average, Optim


def flowmo_photos() -> FlowMoRecipe:
    """FlowMo on 32×32 tiles of real photographs: 16 tokens of 36 bits, 0.5625 bits per pixel.

    Command: latentia train flowmo-photos --out runs/flowmo-photos
    Cost:    about 3 CPU hours; the bits are those of `vqgan-photos`.
    Expect:  PSNR 22 after 5 CPU minutes and rising; see numbers.json for what a run reached.

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
            patch_size=8,
            code_length=16,
            code_dim=36,
            group_bits=9,
            commitment_weight=0.005,
            encoder=Tower(width=256, depth=2, heads=4),
            decoder=Tower(width=256, depth=4, heads=4),
            prediction="sample",
            code_layout="grid",
        ),
        target=FlowTarget(weight_power=1.0, weight_floor=0.2, anneal_steps=4000),
        steps=40_000,
        batch_size=32,
        perceptual=features,
        post=PostTraining(
            steps=1000,
            batch_size=32,
            perceptual=features,
            optim=Optim(lr=2e-4, betas=(0.9, 0.95), schedule="cosine", final_lr=0.1, warmup=20),
        ),
        sampling=Sampling(steps=10),
        optim=Optim(lr=2e-3, betas=(0.9, 0.95), schedule="cosine", final_lr=0.02, warmup=50),
        ema=Average(decay=0.999),
        judged=True,
        preview_every=2000,
        save_every=500,
    )
