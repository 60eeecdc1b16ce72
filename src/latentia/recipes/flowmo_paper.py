"""`flowmo-lo`, `flowmo-hi` and `flowmo-small`: the models of Sargent et al. 2025 on ImageNet 256×256."""

from latentia.recipes.codec_gan import Perceptual
from latentia.recipes.flowmo import FlowMoRecipe
from latentia.recipes.flowmo_parts import PostTraining, Sizes, Tower
from latentia.recipes.parts import Average, Optim

PUBLISHED_1B = PostTraining(steps=25_000, batch_size=64, accumulate=2)


def flowmo_lo() -> FlowMoRecipe:
    """FlowMo-Lo: 256 tokens of 18 bits, 0.0703 bits per pixel, 865.5 M parameters (945.4 M with the dead ones).

    Command: latentia train flowmo-lo data=FOLDER perceptual.weights=VGG16,LPIPS_VGG
             post.perceptual.weights=RESNET50 --out runs/flowmo-lo
    Cost:    2 ZFLOP and 0.2 for stage 1B: 7 to 10 days on 8 H100. No task for 2 CPU cores.
    Expect:  rFID 0.95, PSNR 22.07, SSIM 0.649, LPIPS 0.113 (50,000 validation pictures, 25 steps); before stage 1B
             rFID 1.10, PSNR 21.38, LPIPS 0.134.

    Published: 130 epochs (1.3 M steps of 128 pictures), the encoder frozen after 200,000, then up to 25,000 steps of
    stage 1B, of which the best checkpoint is kept. PSNR there is that of pooled batches of 5; ours is the mean of each
    picture's, some tenths of a dB higher.
    """
    return paper("flowmo-lo", 1_300_000, Sizes())


def flowmo_hi() -> FlowMoRecipe:
    """FlowMo-Hi: 256 tokens of 56 bits (1024 of 14), 0.2188 bits per pixel, 865.6 M parameters (945.5 M with the dead).

    Command: latentia train flowmo-hi data=FOLDER perceptual.weights=VGG16,LPIPS_VGG
             post.perceptual.weights=RESNET50 --out runs/flowmo-hi
    Cost:    1.3 ZFLOP and 0.2 for stage 1B: 5 to 7 days on 8 H100. No task for 2 CPU cores.
    Expect:  rFID 0.56, PSNR 24.93, SSIM 0.785, LPIPS 0.073 (50,000 validation pictures, 25 steps); before stage 1B
             rFID 0.73, PSNR 24.02, LPIPS 0.086.

    As `flowmo-lo`, with 80 epochs (0.8 M steps).
    """
    return paper("flowmo-hi", 800_000, Sizes(code_dim=56, group_bits=14))


def flowmo_small() -> FlowMoRecipe:
    """The paper's model for ablations: patches of 8, decoder of width 768, 445.3 M parameters (517.1 M with the dead).

    Command: latentia train flowmo-small data=FOLDER perceptual.weights=VGG16,LPIPS_VGG --out runs/flowmo-small
    Cost:    0.09 ZFLOP: about 3 days on one H100. No task for 2 CPU cores.
    Expect:  rFID 2.87, PSNR 20.71, LPIPS 0.15 (40 epochs, no stage 1B). Ablations: patches of 16 6.39 / 19.94; encoder
             by MSE 3.82 / 21.40; no perceptual loss 13.86 / 22.11; FSQ 3.14 / 21.31; plain logit-normal 4.08 / 16.45;
             linear sampler 3.42 / 20.25; no guidance 3.28 / 20.67.
    """
    sizes = Sizes(patch_size=8, decoder=Tower(width=768, depth=16))
    return paper("flowmo-small", 400_000, sizes, post=PostTraining(steps=0))


def paper(name: str, steps: int, sizes: Sizes, post: PostTraining = PUBLISHED_1B) -> FlowMoRecipe:
    """What the three have in common; `steps` are those of both parts of stage 1A."""
    optim = Optim(lr=1e-4, betas=(0.9, 0.95), clip=None)
    joint = 200_000
    return FlowMoRecipe(
        name=name,
        data="imagenet",
        image_size=256,
        sizes=sizes,
        steps=joint,
        frozen_steps=steps - joint,
        batch_size=128,
        accumulate=2,
        perceptual=Perceptual(kind="lpips-vgg", weight=0.1),
        optim=optim,
        ema=Average(decay=0.9999),
        precision="bf16",
        save_every=5000,
        log_every=100,
        preview_every=10_000,
        post=post,
    )
