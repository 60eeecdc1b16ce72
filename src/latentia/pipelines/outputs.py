"""What a pipeline hands back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from latentia.core.outputs import Output

Images = list[Image.Image] | np.ndarray | torch.Tensor
"""`pil`: list of pictures; `np`: (B, H, W, C) in [0, 1]; `pt`: (B, C, H, W) in [0, 1]; `latent`: undecoded z."""


@dataclass(slots=True)
class ImagePipelineOutput(Output):
    """The pictures of one call, in the form that `output_type` asked for."""

    images: Images


@dataclass(slots=True)
class StableDiffusionPipelineOutput(Output):
    """The pictures of one call of a text pipeline.

    `nsfw_content_detected` is always None: no safety checker is run here.
    """

    images: Images
    nsfw_content_detected: list[bool] | None = None


def join(chunks: Sequence[Images]) -> Images:
    """Outputs of consecutive chunks, all of one form, as one output."""
    if len(chunks) == 1:
        return chunks[0]
    arrays = [chunk for chunk in chunks if isinstance(chunk, np.ndarray)]
    tensors = [chunk for chunk in chunks if isinstance(chunk, torch.Tensor)]
    if arrays:
        return np.concatenate(arrays)
    if tensors:
        return torch.cat(tensors)
    return [picture for chunk in chunks for picture in chunk]
