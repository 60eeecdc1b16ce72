"""`vqgan-transformer-imagenet` and `maskgit-imagenet`: the second stages of Esser et al. 2021 and Chang et al. 2022."""

from latentia.recipes.parts import Average, Optim
from latentia.recipes.token_prior import AutoregressivePrior, MaskedPrior, TrainedTokenizer, Transformer
from latentia.recipes.vqgan import first_stage_optim


def imagenet_tokenizer() -> TrainedTokenizer:
    """The sizes of taming's VQGAN f = 16, K = 1024, without its attention at 16×16."""
    return TrainedTokenizer(
        channels=(128, 128, 256, 256, 512),
        layers=2,
        latent_channels=256,
        groups=32,
        mid_attention=True,
        quantizer="vq",
        codes=1024,
        code_dim=256,
        loss="l1",
        steps=500_000,
        batch_size=96,
        optim=first_stage_optim(96),
    )


def vqgan_transformer_imagenet() -> AutoregressivePrior:
    """VQGAN's class-conditional transformer on ImageNet 256×256: 256 tokens of 10 bits, 24 layers of 1024.

    Command: latentia train vqgan-transformer-imagenet data=FOLDER codec=FIRST_STAGE --out runs/vqgan-transformer
    Cost:    186 EFLOP: about 23 A100-days (7 more without a codec). No task for 2 CPU cores.
    Expect:  FID 15.98 of 50,000 samples without rejection (K = 16384, 1.4 B parameters), 5.20 with rejection and chosen
             sampling settings; for these 0.3 B on K = 1024 nothing is published.

    `codec` is the folder of a trained `VQModel`, of `vqgan-imagenet` or converted from taming-transformers. Without one
    a VQ-VAE of its sizes is trained first, by reconstruction alone, and pictures are blurred.

    Deviations: the published ImageNet model is larger (48 layers of 1536, transformer.width=1536 transformer.layers=48
    transformer.heads=24); how long it was trained is not published, here 300 epochs of batches of 96.
    Drawn with top-k 600 and top-p 0.92, as in its scripts.
    Source: configs and scripts of taming-transformers (24 layers, 16 heads, width 1024, lr 4.5e-6 a sample, betas 0.9
    and 0.95, weight decay 0.01).
    """
    return AutoregressivePrior(
        name="vqgan-transformer-imagenet",
        data="imagenet",
        image_size=256,
        num_classes=1000,
        steps=4_000_000,
        batch_size=96,
        accumulate=4,
        tokenizer=imagenet_tokenizer(),
        transformer=Transformer(width=1024, layers=24, heads=16),
        optim=Optim(lr=4.5e-6 * 96, betas=(0.9, 0.95), weight_decay=0.01, clip=None),
        ema=Average(decay=0.0),
        top_k=600,
        top_p=0.92,
        precision="bf16",
        save_every=5000,
        log_every=100,
        preview_every=5000,
    )


def maskgit_imagenet() -> MaskedPrior:
    """MaskGIT on ImageNet 256×256: 256 tokens of 10 bits, 24 layers of 768, 8 to 12 rounds.

    Command: latentia train maskgit-imagenet data=FOLDER codec=FIRST_STAGE --out runs/maskgit-imagenet
    Cost:    143 EFLOP: about 18 A100-days (7 more without a codec). No task for 2 CPU cores.
    Expect:  FID 6.06 of 50,000 samples by the released model (512×512: 7.32), on a tokenizer with reconstruction FID
             2.28, without guidance.

    `codec` is the folder of a trained `VQModel`, such as that of `vqgan-imagenet`; MaskGIT's own has no attention, and
    was trained on an entropy loss, R1 and a non-saturating adversary too.

    Deviations: blocks normalise before, not after, attention and MLP. Labels are dropped, for guidance, which the
    published model has not.
    Source: maskgit/configs of google-research/maskgit (dropout 0.1, label smoothing 0.1, lr 1e-4, betas 0.9 and 0.96,
    weight decay 0.045, warm-up 5,000, batch 256, 2,000,000 steps, choice temperature 4.5).
    """
    return MaskedPrior(
        name="maskgit-imagenet",
        data="imagenet",
        image_size=256,
        num_classes=1000,
        flip=True,
        steps=2_000_000,
        batch_size=256,
        accumulate=4,
        tokenizer=imagenet_tokenizer(),
        transformer=Transformer(width=768, layers=24, heads=16, dropout=0.1),
        label_dropout=0.1,
        label_smoothing=0.1,
        optim=Optim(lr=1e-4, betas=(0.9, 0.96), weight_decay=0.045, warmup=5000, clip=None),
        ema=Average(decay=0.999),
        rounds=12,
        precision="bf16",
        save_every=5000,
        log_every=100,
        preview_every=5000,
    )
