"""The tiniest editors, with random weights: in pixels with and without copy gate, and in latents."""

import numpy as np
import torch

from latentia import AutoencoderKL, DDIMScheduler, EmuEditModel, EmuEditPipeline, LDMBertModel, TaskPredictor
from latentia.conditioners.tokenizers import train_bpe

LENGTH = 24
TEXTS = ["remove the red square", "make the background grey", "add a green star at the top"]
UNET = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def model(**options):
    """Weights that start at zero are drawn, so that source, text and task all say something."""
    torch.manual_seed(0)
    made = EmuEditModel(**{"unet": UNET, "sample_size": 16, "in_channels": 3, "patch_size": 2, **options}).eval()
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(made.tasks.weight)
    return made


def text_encoder():
    tokenizer = train_bpe(TEXTS, vocab_size=400, max_length=LENGTH)
    torch.manual_seed(3)
    sizes = {"encoder_layers": 1, "encoder_ffn_dim": 32, "encoder_attention_heads": 2, "head_dim": 8, "d_model": 16}
    encoder = LDMBertModel(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, **sizes).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder, tokenizer


def scheduler(prediction):
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        clip_sample=False,
        prediction_type=prediction,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def predictor():
    torch.manual_seed(4)
    return TaskPredictor(buckets=64, width=4, hidden=8).eval()


def vae():
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).eval()


def editor(gate=False, latent=False, **options):
    """16 × 16 pixels of patches of 2; or 8 × 8 latents of 16 × 16 pixels."""
    encoder, tokenizer = text_encoder()
    if latent:
        network = model(sample_size=8, in_channels=4, patch_size=1)
        options = {"codec": vae(), **options}
    else:
        network = model(copy_gate=gate)
    steps = scheduler("sample" if gate else "v_prediction")
    pipe = EmuEditPipeline(network, steps, encoder, tokenizer, **{"task_predictor": predictor(), **options})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(height=16, width=16, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
