"""The tiniest pipelines that read texts, of Latentia's own classes with random weights."""

import torch

from latentia import AutoencoderKL, CLIPTextModel, ControlNetModel, DDIMScheduler, LDMBertModel, UNet2DConditionModel
from latentia.conditioners.tokenizers import train_bpe

TEXTS = ["a cat sits on a mat", "two dogs, very detailed, " * 10]
"""One that fits a window of 16 tokens, one that does not."""
LENGTH = 16


def vae():
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
    ).eval()


def unet(in_channels=4):
    torch.manual_seed(2)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


def clip(tokenizer):
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CLIPTextModel(len(tokenizer), max_position_embeddings=LENGTH, **sizes).eval()


def bert(tokenizer):
    torch.manual_seed(3)
    sizes = {"encoder_layers": 2, "encoder_ffn_dim": 32, "encoder_attention_heads": 2, "head_dim": 8, "d_model": 16}
    return LDMBertModel(vocab_size=len(tokenizer), max_position_embeddings=LENGTH, **sizes).eval()


def controlnet():
    torch.manual_seed(4)
    made = ControlNetModel.from_unet(unet(), conditioning_embedding_out_channels=(4, 8))
    with torch.no_grad():
        for block in (*made.controlnet_down_blocks, made.controlnet_mid_block):
            block.weight.normal_(std=0.3)
    return made.eval()


def stable_diffusion(cls, channels=4, **more):
    tokenizer = train_bpe(TEXTS, vocab_size=400, max_length=LENGTH)
    return cls(
        vae=vae(), text_encoder=clip(tokenizer), tokenizer=tokenizer, unet=unet(channels), scheduler=sampler(), **more
    )


def sampler():
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction")


def ldm(cls):
    tokenizer = train_bpe(TEXTS, vocab_size=400, max_length=LENGTH)
    return cls(vae(), bert(tokenizer), tokenizer, unet(), sampler())
