"""`maskgit-digits` and `gpt-digits`: handwritten digits as 64 tokens, drawn all at once or one after another."""

from latentia.recipes.parts import Average, Optim
from latentia.recipes.token_prior import AutoregressivePrior, MaskedPrior, TrainedTokenizer, Transformer


def digit_tokenizer() -> TrainedTokenizer:
    """VQ-VAE, 32×32 → 8×8 tokens of 5 bits: as many as the scans behind the pictures have pixels."""
    return TrainedTokenizer(
        channels=(48,),
        patch_size=4,
        latent_channels=32,
        codes=32,
        code_dim=8,
        steps=400,
        batch_size=64,
        optim=Optim(lr=3e-3, betas=(0.9, 0.99), weight_decay=1e-3, schedule="cosine", warmup=20),
    )


def maskgit_digits() -> MaskedPrior:
    """MaskGIT on scikit-learn's 1,257 training digits at 32×32, class-conditional: 64 tokens in 8 rounds.

    Command: latentia train maskgit-digits --out runs/maskgit-digits
    Cost:    about 2 CPU minutes.
    Expect:  accuracy_digits 0.985 in 8 rounds, without guidance (540 pictures, seed 0, at least 0.95); frechet_digits
             3; nearest-training-image distance 1.2 × held-out images'. A single picture is drawn 6.0 × as fast as by
             `gpt-digits` with guidance, 5.3 × without. With 2 layers accuracy is 0.983 ± 0.006, and speed 4.3 ×.

    2×2 tokens share a position, so that a round costs a quarter, and one layer is enough for 16 positions. What counts
    as confident is noisier than in MaskGIT: with choice_temperature=4.5 pictures are sharper, and less like all that
    there are (frechet_digits 5).
    """
    return MaskedPrior(
        name="maskgit-digits",
        data="digits",
        image_size=32,
        image_channels=1,
        num_classes=10,
        steps=2500,
        batch_size=64,
        tokenizer=digit_tokenizer(),
        patch_size=2,
        transformer=Transformer(width=128, layers=1, heads=4, dropout=0.1),
        label_dropout=0.1,
        optim=Optim(lr=2e-3, betas=(0.9, 0.96), schedule="cosine", warmup=50, weight_decay=0.05),
        ema=Average(decay=0.999, warmup=True, power=0.75),
        choice_temperature=9.0,
        pictures=540,
        channels_last=True,
    )


def gpt_digits() -> AutoregressivePrior:
    """VQGAN's second stage on scikit-learn's 1,257 training digits at 32×32, class-conditional: 64 tokens in turn.

    Command: latentia train gpt-digits --out runs/gpt-digits
    Cost:    about 5 CPU minutes.
    Expect:  accuracy_digits 0.973 ± 0.013 with guidance 1.5 (540 pictures, 3 seeds, at least 0.95), 0.85 to 0.89
             without; frechet_digits 8 to 10.

    A token drawn wrongly is never drawn again, so guidance is worth more than to `maskgit-digits`.
    """
    return AutoregressivePrior(
        name="gpt-digits",
        data="digits",
        image_size=32,
        image_channels=1,
        num_classes=10,
        steps=700,
        batch_size=64,
        tokenizer=digit_tokenizer(),
        transformer=Transformer(width=96, layers=4, heads=4, dropout=0.2),
        label_dropout=0.1,
        guidance=1.5,
        optim=Optim(lr=2e-3, betas=(0.9, 0.96), schedule="cosine", warmup=50, weight_decay=0.05),
        ema=Average(decay=0.999, warmup=True, power=0.75),
        corruption=0.1,
        top_p=0.95,
        pictures=540,
        channels_last=True,
    )
