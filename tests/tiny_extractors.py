"""Random networks of a few thousand weights in the folders of CLIP, DINO and DINOv2."""

import torch


def save_clip(folder):
    """A CLIP with its tokenizer; pictures of 32 pixels, 16 tokens, 8 features."""
    from transformers import CLIPConfig, CLIPModel

    from latentia.conditioners.tokenizers import save_tokenizer, train_bpe

    tokenizer = train_bpe(["a red square", "a blue moon on a grey background"], 400, 16)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**sizes, **words, "bos_token_id": tokenizer.bos_token_id},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def save_dino(folder):
    """A ViT without pooler, for pictures of 32 pixels; 16 features."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_dinov2(folder):
    """A DINOv2 that was trained at 28 pixels; 16 features."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return folder
