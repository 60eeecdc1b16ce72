"""Text-to-image models that also look at a picture: a ControlNet beside a frozen UNet, and inpainting."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from latentia.codecs.autoencoder_kl import AutoencoderKL
from latentia.core.model_loading import SkipInit
from latentia.core.protocols import Batch
from latentia.data.masks import random_masks
from latentia.denoisers.controlnet import ControlNetModel
from latentia.denoisers.unet_2d_condition import UNet2DConditionModel
from latentia.errors import InputError
from latentia.schedulers.scheduler import SchedulerMixin
from latentia.training.objective import take
from latentia.training.text_objective import TextDiffusionObjective


class ControlNetObjective(TextDiffusionObjective):
    """Learn to denoise from a caption and a picture that says where things are (Zhang et al. 2023, eq. 2).

        total = mean_b w(t_b) · mean_elements error(unet(x_t, t, τ(c) | controlnet(x_t, t, τ(c), picture)), target)

    Only the ControlNet is trained. Its results enter through convolutions that start at zero, so the first loss is the
    UNet's own.

    Args:
        denoiser: the UNet; frozen.
        scheduler, text_encoder, empty_ids: see `TextDiffusionObjective`; the text encoder is frozen.
        controlnet: `ControlNetModel` for this UNet; trained.
        options: the other arguments of `TextDiffusionObjective`; the paper drops half of the captions, so that the
            picture alone must do.

    Reads `condition` uint8 (B, C, f·H, f·W) from the batch; the ControlNet sees it in [0, 1].
    """

    def __init__(
        self,
        denoiser: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        text_encoder: nn.Module,
        empty_ids: torch.Tensor,
        controlnet: ControlNetModel,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, scheduler, text_encoder, empty_ids, train_text_encoder=False, **options)
        self.controlnet = controlnet
        self.frozen = ("denoiser", "text_encoder")
        self.train()

    def predict(self, noisy: torch.Tensor, t: torch.Tensor, batch: Batch) -> torch.Tensor:
        """What the UNet says of x_t, steered."""
        picture = take(batch, "condition")
        if picture.dtype != torch.uint8:
            raise InputError(f"condition must be uint8, 0 to 255, got {picture.dtype}")
        told = self.conditions(batch)
        down, mid = self.controlnet(noisy, t, controlnet_cond=picture / 255, **told, return_dict=False)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        prediction: torch.Tensor = self.denoiser(noisy, t, **told, **added).sample
        return prediction


class InpaintingObjective(TextDiffusionObjective):
    """Learn to repaint what a mask covers: the UNet sees [x_t | mask | latent of the picture without what is covered].

    Each step draws its own masks, of which a quarter cover everything (Rombach et al.'s inpainting model). A mask is 1
    where to repaint; the picture is grey (0) there before it is encoded.

    Args:
        denoiser: the UNet, of 2c + 1 input channels for latents of c; see `widened`. Trained.
        scheduler, text_encoder, empty_ids: see `TextDiffusionObjective`.
        vae: the codec; frozen, and computing in its own dtype whatever autocast says.
        cover: share of masks that cover everything.
        options: the other arguments of `TextDiffusionObjective`.

    Reads `pixels` (B, 3, H, W) in [-1, 1] from the batch. Their latents are encoded with them, unless the batch has
    what `DiffusionObjective` reads.
    Raises `InputError` for a UNet of another number of input channels.
    """

    def __init__(
        self,
        denoiser: UNet2DConditionModel,
        scheduler: SchedulerMixin,
        text_encoder: nn.Module,
        empty_ids: torch.Tensor,
        vae: AutoencoderKL,
        cover: float = 0.25,
        **options: Any,
    ) -> None:
        super().__init__(denoiser, scheduler, text_encoder, empty_ids, **options)
        has, wanted = denoiser.config.in_channels, 2 * vae.config.latent_channels + 1
        if has != wanted:
            raise InputError(
                f"a UNet for inpainting sees {wanted} channels (noisy latents, mask, latents), this one {has}: "
                f"widen it with widened(unet, {wanted})"
            )
        if not 0 <= cover <= 1:
            raise InputError(f"cover is a probability in [0, 1], got {cover}")
        self.vae, self.cover = vae, cover
        self.frozen = (*self.frozen, "vae")
        vae.eval()

    def settings(self) -> dict[str, Any]:
        """Everything but the modules and tokens."""
        return super().settings() | {"cover": self.cover}

    def clean(self, batch: Batch) -> torch.Tensor:
        """x₀ as the batch has it, or the pixels' latents."""
        if self.key in batch or "mean" in batch:
            return super().clean(batch)
        return self.to_latents(take(batch, "pixels"))

    def model_input(self, noisy: torch.Tensor, batch: Batch) -> torch.Tensor:
        """[x_t | mask | latents of the masked picture], under masks of this step's own."""
        pixels = take(batch, "pixels")
        height, width = pixels.shape[-2:]
        mask = random_masks(len(pixels), height, width, self.cover, device=pixels.device)
        seen = self.to_latents(pixels * (1 - mask))
        return torch.cat([noisy, F.interpolate(mask, size=noisy.shape[-2:]), seen], dim=1)

    def to_latents(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scaled latents, a posterior sample each, in float32."""
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            return self.vae.to_latents(pixels.to(self.vae.dtype)).float()


def widened(unet: UNet2DConditionModel, channels: int) -> UNet2DConditionModel:
    """A UNet that sees `channels` and computes what `unet` computes from the first of them, whatever the others hold.

    The first convolution's new weights are zero. The UNet itself is returned when it has so many channels already.
    Raises `InputError` when it has more.
    """
    have = unet.config.in_channels
    if have == channels:
        return unet
    if have > channels:
        raise InputError(f"this UNet sees {have} channels, more than {channels}: it is no base for that")
    with SkipInit():
        wide = UNet2DConditionModel.from_config(unet.config, in_channels=channels)
    state = unet.state_dict()
    kernel = state["conv_in.weight"]
    state["conv_in.weight"] = torch.cat([kernel, kernel.new_zeros(len(kernel), channels - have, *kernel.shape[2:])], 1)
    wide.load_state_dict(state)
    return wide.to(kernel.device, kernel.dtype).train(unet.training)
