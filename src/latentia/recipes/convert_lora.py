"""LoRA files of Stable Diffusion: kohya's layout ↔ Diffusers'. Both tell the same numbers."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from latentia.core.artifacts import write_safetensors
from latentia.core.files import write_atomic
from latentia.formats import clip, unet
from latentia.formats.lora import KOHYA, read_lora, write_lora

UNET = unet.Structure(stages=4, layers=2, attends=(False, True, True, True), depth=1, resamples="conv")
"""The structure of every Stable Diffusion 1 and 2: kohya's underscores are resolved against its layers."""
TEXT_BLOCKS = 24


def convert_lora(
    state: Mapping[str, torch.Tensor], metadata: Mapping[str, str], target: Path, dtype: torch.dtype | None
) -> str:
    """Write a LoRA of Stable Diffusion in the layout that it does not have; returns which one that is.

    Raises `ArtifactError` listing layers that Stable Diffusion 1 and 2 do not have.
    """
    layout = "diffusers" if any(name.startswith(tuple(KOHYA.values())) for name in state) else "kohya"
    tensors, texts = write_lora(read_lora(state, layers(), metadata), layout)
    if dtype is not None:
        tensors = {name: t if name.endswith(".alpha") else t.to(dtype) for name, t in tensors.items()}
    write_atomic(target, partial(write_safetensors, tensors=tensors, metadata=texts))
    return layout


def layers() -> dict[str, list[str]]:
    """Component → paths of the layers of Stable Diffusion that a LoRA may adapt."""
    names = [stem for rule in unet.rules(UNET) for stem in rule.ours]
    text = [f"text_model.encoder.layers.{i}.{layer}" for i in range(TEXT_BLOCKS) for layer in clip.CLIP_LAYER]
    return {"unet": [n.removesuffix(".") for n in names], "text_encoder": [n.removesuffix(".") for n in text]}
