"""Networks that are trained in part, each as one module: what the dry run of a fine-tuning recipe costs."""

from typing import Any

import torch
from torch import nn

from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.denoisers.controlnet import ControlNetModel
from latentia.denoisers.unet_2d_condition import UNet2DConditionModel

WIDTHS = (16, 32, 96, 256)
"""Of a steering picture's features while its sides are halved to those of the latents."""


class AdaptedNetwork(nn.Module):
    """A frozen network and the adapters in it."""

    def __init__(self, network: nn.Module, adapters: nn.ModuleDict) -> None:
        super().__init__()
        self.network, self.adapters = network, adapters

    def forward(self, *inputs: torch.Tensor) -> Any:
        """What the network says."""
        return self.network(*inputs)


class SteeredUNet(nn.Module):
    """A frozen UNet and the ControlNet beside it."""

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel) -> None:
        super().__init__()
        self.unet, self.controlnet = unet.requires_grad_(False), controlnet.requires_grad_(True)

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        """What the steered UNet says."""
        down, mid = self.controlnet(x, t, text, picture, return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        said: torch.Tensor = self.unet(x, t, text, **added).sample
        return said


def controlnet_beside(unet: UNet2DConditionModel, vae: AutoencoderKL) -> ControlNetModel:
    """A ControlNet that starts as a copy of the UNet's way down, for pictures of the codec's input size."""
    halvings = len(vae.config.block_out_channels)
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS[:halvings])


def masked(unet: UNet2DConditionModel, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """x_t with a mask and latents behind it, through a UNet for inpainting."""
    said: torch.Tensor = unet(torch.cat([x, x[:, :1], x], dim=1), t, text).sample
    return said
