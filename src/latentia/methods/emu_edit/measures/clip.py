"""CLIP (Radford et al. 2021) as an extractor: its own weights, its own preparation of pictures, texts cut at 77."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentia.conditioners.tokenizers import load_tokenizer
from latentia.core.files import read_json
from latentia.core.images import to_uint8
from latentia.errors import check_choice
from latentia.methods.emu_edit.measures.pretrained import (
    Preparation,
    load,
    model_folder,
    processor_of,
    side_of,
    weights_digest,
)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

ARCHITECTURES = {
    (768, 12, 32, 224): "ViT-B/32",
    (768, 12, 16, 224): "ViT-B/16",
    (1024, 24, 14, 224): "ViT-L/14",
    (1024, 24, 14, 336): "ViT-L/14@336px",
    (1280, 32, 14, 224): "ViT-H/14",
    (1664, 48, 14, 224): "ViT-bigG/14",
}
"""(width, depth, patch, side) of the pictures' tower → the name that papers use."""


class ClipFeatures:
    """CLIP's two towers after their projections.

    `name` is the architecture's, `ViT-B/32`, when the activation is the one of OpenAI's weights (the others' is
    `gelu`) and the sizes are known; else `clip-<first 8 digits of the weights' SHA-256>`. `digest` are those digits
    always: two networks of one architecture do not measure the same.

    Pictures are prepared as OpenAI's code does, from values in [0, 1]: shorter side bicubic, centre, CLIP's own mean
    and deviation. (Published evaluators have fed it values in [-1, 1].) Longer texts are cut at the tower's length.

    Args:
        name_or_path: a folder as transformers saves it, or a Hub id such as `openai/clip-vit-base-patch32`.
        device: where it runs.

    Raises `ArtifactError` for a folder that holds no whole CLIP, `UnknownChoiceError` for another network.
    """

    def __init__(self, name_or_path: str | os.PathLike[str], device: torch.device | str = "cpu") -> None:
        from transformers import CLIPModel

        folder = model_folder(name_or_path)
        check_choice("model type of a CLIP folder", read_json(folder / "config.json").get("model_type"), ("clip",))
        model: Any = load(CLIPModel, folder).to(device)
        self.model = model
        self.digest = weights_digest(folder)
        self.name = clip_name(model.config, self.digest)
        self.tokenizer = load_tokenizer(folder, "CLIPTokenizer")
        self.longest = int(model.config.text_config.max_position_embeddings)
        told, side = processor_of(folder), int(model.config.vision_config.image_size)
        crop = side_of(told.get("crop_size")) or side
        mean, std = told.get("image_mean", CLIP_MEAN), told.get("image_std", CLIP_STD)
        self.prepare = Preparation(side_of(told.get("size")) or crop, crop, tuple(mean), tuple(std))

    @torch.no_grad()
    def pictures(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Pictures uint8 (H, W, 3), each of its own size → (B, D)."""
        seen = self.model.vision_model(pixel_values=self.prepare(pictures).to(self.model.device))
        return self.model.visual_projection(seen.pooler_output)

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, 3, H, W) in [-1, 1] → (B, D); rounded to 8 bits, as files would be."""
        return self.pictures(list(to_uint8(x)))

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """B texts → (B, D)."""
        ids = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
        ).to(self.model.device)
        read = self.model.text_model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"])
        return self.model.text_projection(read.pooler_output)

    def too_long(self, text: str) -> bool:
        """Whether the end of the text is cut off."""
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"]) > self.longest


def clip_name(config: Any, digest: str) -> str:
    """The name of an architecture with OpenAI's activation, else one made of the weights' digest."""
    seen = config.vision_config
    sizes = (seen.hidden_size, seen.num_hidden_layers, seen.patch_size, seen.image_size)
    if sizes in ARCHITECTURES and seen.hidden_act == "quick_gelu":
        return ARCHITECTURES[sizes]
    return f"clip-{digest}"
