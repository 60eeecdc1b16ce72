"""DINO (Caron et al. 2021) and DINOv2 (Oquab et al. 2023) as extractors: the class token after the last norm."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from latentia.core.files import read_json
from latentia.core.images import to_uint8
from latentia.errors import check_choice
from latentia.methods.emu_edit.measures.pretrained import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preparation,
    load,
    model_folder,
    processor_of,
    side_of,
    weights_digest,
)

FAMILIES = {"vit": "dino", "dinov2": "dinov2", "dinov2_with_registers": "dinov2"}
"""`model_type` of a folder → first part of the name."""

WIDTHS = {192: "t", 384: "s", 768: "b", 1024: "l", 1536: "g"}
SIDE = 224


class DinoFeatures:
    """The class token of a self-supervised vision transformer, after its last layer norm.

    `name` is torch.hub's: `dino_vits16`, `dinov2_vitb14`, `dinov2_vitl14_reg`; for sizes that it does not have,
    `dino-<digest>`. `digest` are the first 8 digits of the weights' SHA-256. A plain ViT is taken for DINO: the files
    do not tell one from another, so look at what you give.

    The pooler of a saved ViT is not used: DINO has none, and transformers would fill it with random weights. Pictures:
    shorter side to 8/7 of the crop (256 for 224) bicubic, centre, ImageNet's mean and deviation, as MagicBrush's
    evaluator; the folder's own preparation would squash them to a square.

    Args:
        name_or_path: a folder as transformers saves it, or a Hub id: `facebook/dino-vits16`, `facebook/dinov2-base`.
        device: where it runs.

    Raises `ArtifactError` for a folder that holds no whole network, `UnknownChoiceError` for another family.
    """

    def __init__(self, name_or_path: str | os.PathLike[str], device: torch.device | str = "cpu") -> None:
        import transformers

        folder = model_folder(name_or_path)
        family = str(read_json(folder / "config.json").get("model_type"))
        check_choice("model type of a DINO folder", family, FAMILIES)
        if family == "vit":
            model: Any = load(transformers.ViTModel, folder, ignore=("pooler.",), add_pooling_layer=False)
        else:
            class_name = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}[family]
            model = load(getattr(transformers, class_name), folder)
        self.model = model.to(device)
        self.digest = weights_digest(folder)
        self.name = dino_name(model.config, self.digest)
        told = processor_of(folder)
        own = int(model.config.image_size) if family == "vit" else SIDE  # DINOv2 fits its positions to any size
        crop = side_of(told.get("crop_size")) or own
        mean, std = told.get("image_mean", IMAGENET_MEAN), told.get("image_std", IMAGENET_STD)
        self.prepare = Preparation(round(crop * 8 / 7), crop, tuple(mean), tuple(std))

    @torch.no_grad()
    def pictures(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Pictures uint8 (H, W, 3), each of its own size → (B, D)."""
        seen = self.model(pixel_values=self.prepare(pictures).to(self.model.device))
        return seen.last_hidden_state[:, 0]

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, 3, H, W) in [-1, 1] → (B, D); rounded to 8 bits, as files would be."""
        return self.pictures(list(to_uint8(x)))


def dino_name(config: Any, digest: str) -> str:
    """torch.hub's name for the sizes it has, else one made of the weights' digest."""
    family, width = FAMILIES[config.model_type], WIDTHS.get(config.hidden_size)
    patch = {"dino": (8, 16), "dinov2": (14,)}[family]
    if width is None or config.patch_size not in patch or config.num_hidden_layers < 12:
        return f"{family}-{digest}"
    registers = "_reg" if config.model_type == "dinov2_with_registers" else ""
    return f"{family}_vit{width}{config.patch_size}{registers}"
