"""ControlNetModel: a trainable copy of a UNet's way down that steers it by an image (Zhang et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import torch
from torch import nn

from latentia.core.arguments import check_counts, check_number
from latentia.core.config import register_to_config
from latentia.core.outputs import Output
from latentia.denoisers.conditional_encoder import ConditionalEncoder, refuse_foreign, refuse_inputs
from latentia.denoisers.unet_2d_condition import FOREIGN, UNet2DConditionModel
from latentia.errors import ConfigError, InputError, check_choice
from latentia.nn.activations import silu_
from latentia.nn.init import zero_

CHANNEL_ORDERS = ("bgr", "rgb")
_FOREIGN_NAMES = (
    "num_attention_heads",
    "encoder_hid_dim",
    "encoder_hid_dim_type",
    "addition_embed_type",
    "addition_time_embed_dim",
    "addition_embed_type_num_heads",
)
_UNET_ONLY = {"center_input_sample": False, "conv_in_kernel": 3}
"""Arguments of a UNet that change its way down and that a ControlNet does not have."""


@dataclass(slots=True)
class ControlNetOutput(Output):
    """What the ControlNet adds to a UNet.

    Attributes:
        down_block_res_samples: one map for each result of the UNet's way down.
        mid_block_res_sample: the map for the result of its middle.
    """

    down_block_res_samples: tuple[torch.Tensor, ...]
    mid_block_res_sample: torch.Tensor


class ControlNetConditioningEmbedding(nn.Module):
    """An image → features at the resolution of the latents: 3×3 convolutions, each width but the first halves.

    The last convolution starts at zero, so that the image has no say before training.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)
        zero_(self.conv_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, C_in, f·H, f·W), f = 2^(widths − 1) → (B, C_out, H, W)."""
        h = silu_(self.conv_in(x))
        for block in self.blocks:
            h = silu_(block(h))
        out: torch.Tensor = self.conv_out(h)
        return out


class ControlNetModel(ConditionalEncoder):
    """(x_t, t, text, image) → what to add to the results of a UNet's way down and middle.

    A copy of the UNet's first half sees x_t + E(image); each of its results leaves through a 1×1 convolution that
    starts at zero, so that training begins with the UNet as it was. Arguments, state-dict keys and outputs are those
    of Diffusers' class of the same name.

    Args:
        in_channels: of the noisy sample.
        conditioning_channels: of the image.
        flip_sin_to_cos, freq_shift, down_block_types, mid_block_type, only_cross_attention, block_out_channels,
            layers_per_block, downsample_padding, mid_block_scale_factor, act_fn, norm_num_groups, norm_eps,
            cross_attention_dim, transformer_layers_per_block, attention_head_dim, use_linear_projection,
            class_embed_type, num_class_embeds, upcast_attention, resnet_time_scale_shift,
            projection_class_embeddings_input_dim: as the UNet has them, see `UNet2DConditionModel`.
        controlnet_conditioning_channel_order: `rgb`, or `bgr` for a network trained on images in that order.
        conditioning_embedding_out_channels: widths of E; each but the first halves the resolution.
        global_pool_conditions: add the means of the maps instead of the maps (the `shuffle` ControlNet).

    Arguments of other families must stay at their defaults: num_attention_heads, encoder_hid_dim,
    encoder_hid_dim_type, addition_embed_type, addition_time_embed_dim, addition_embed_type_num_heads.

    Raises `UnknownChoiceError` for an unknown name, `ConfigError` for lengths and widths that do not fit, `InputError`
    for arguments of other families.
    """

    _repeated_blocks = ("BasicTransformerBlock", "ResnetBlock")

    @register_to_config
    def __init__(
        self,
        in_channels: int = 4,
        conditioning_channels: int = 3,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int = 1280,
        transformer_layers_per_block: int | tuple[int, ...] = 1,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        projection_class_embeddings_input_dim: int | None = None,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        global_pool_conditions: bool = False,
        addition_embed_type_num_heads: int = 64,
    ) -> None:
        super().__init__()
        refuse_foreign(self.config, {name: FOREIGN[name] for name in _FOREIGN_NAMES})
        check_choice("controlnet_conditioning_channel_order", controlnet_conditioning_channel_order, CHANNEL_ORDERS)
        if not conditioning_embedding_out_channels:
            raise ConfigError("conditioning_embedding_out_channels is empty: give at least one width")
        check_counts(self.config, ("conditioning_channels", "conditioning_embedding_out_channels"))
        self._plan()
        self.flips = controlnet_conditioning_channel_order == "bgr"
        self.pools = global_pool_conditions
        self.image_factor: int = 2 ** (len(conditioning_embedding_out_channels) - 1)
        self._build_inputs(3, class_act="silu")
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            conditioning_channels, tuple(conditioning_embedding_out_channels), block_out_channels[0]
        )
        self.down_blocks = nn.ModuleList()
        widths = self._build_down()
        self.controlnet_down_blocks = nn.ModuleList(nn.Conv2d(width, width, 1) for width in widths)
        self.controlnet_mid_block = nn.Conv2d(widths[-1], widths[-1], 1)
        zero_(self.controlnet_down_blocks)
        zero_(self.controlnet_mid_block)
        self.mid_block = self._build_mid()

    @classmethod
    def from_unet(
        cls,
        unet: UNet2DConditionModel,
        controlnet_conditioning_channel_order: str = "rgb",
        conditioning_embedding_out_channels: tuple[int, ...] | None = (16, 32, 96, 256),
        load_weights_from_unet: bool = True,
        conditioning_channels: int = 3,
    ) -> Self:
        """A ControlNet for `unet`, with a copy of its weights on the way down and a say of zero.

        `load_weights_from_unet` False keeps the random start; the other arguments are the constructor's.
        Raises `InputError` for a UNet whose way down no ControlNet has.
        """
        config = unet.config
        bad = [name for name, value in _UNET_ONLY.items() if config[name] != value]
        if config.time_embedding_dim not in (None, 4 * config.block_out_channels[0]):
            bad.append("time_embedding_dim")
        if bad:
            raise InputError(
                f"no ControlNet fits this UNet: {', '.join(f'{name}={config[name]!r}' for name in bad)} has no "
                "counterpart in ControlNetModel"
            )
        shared = {name: config[name] for name in cls.config_arguments() if name in config}
        shared["conditioning_channels"] = conditioning_channels
        shared["controlnet_conditioning_channel_order"] = controlnet_conditioning_channel_order
        shared["conditioning_embedding_out_channels"] = conditioning_embedding_out_channels
        built = cls(**shared)
        if load_weights_from_unet:
            state = built.state_dict()
            state.update((key, value) for key, value in unet.state_dict().items() if key in state)
            built.load_state_dict(state)
        return built

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float = 1.0,
        class_labels: torch.Tensor | None = None,
        timestep_cond: None = None,
        attention_mask: torch.Tensor | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        guess_mode: bool = False,
        return_dict: bool = True,
    ) -> ControlNetOutput | tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """What to add to the UNet's results for this sample.

        Args:
            sample, timestep, encoder_hidden_states, class_labels, attention_mask: as the UNet sees them.
            controlnet_cond: the image (B or 1, conditioning_channels, f·H, f·W), in [0, 1] for published networks;
                f = 2^(len(conditioning_embedding_out_channels) − 1), 8 by default.
            conditioning_scale: factor of all results.
            guess_mode: weigh the results from 0.1 at the highest resolution to 1 in the middle, logarithmically.
            timestep_cond, added_cond_kwargs, cross_attention_kwargs: of other networks; refused unless None or empty.
            return_dict: False returns the tuple `(down_block_res_samples, mid_block_res_sample)`.

        Raises `InputError` for wrong shapes, and for labels that are missing, not wanted or out of range.
        """
        refuse_inputs(
            {
                "timestep_cond": timestep_cond,
                "cross_attention_kwargs": cross_attention_kwargs,
                "added_cond_kwargs": added_cond_kwargs,
            }
        )
        self._check_inputs(sample, encoder_hidden_states)
        self._check_image(controlnet_cond, sample)
        scale = check_number("conditioning_scale", conditioning_scale)
        text = self._text(encoder_hidden_states, attention_mask, None, sample.dtype)
        emb = self._embed(timestep, class_labels, sample)

        image = controlnet_cond.to(sample.dtype)
        features = self.controlnet_cond_embedding(image.flip(1) if self.flips else image)
        results = self._way_down(self.conv_in(sample) + features, emb, text)
        results.append(self.mid_block(results[-1], emb, text))
        leave = [*self.controlnet_down_blocks, self.controlnet_mid_block]
        results = [conv(h) for conv, h in zip(leave, results)]

        if self.pools:
            results = [h.mean(dim=(2, 3), keepdim=True) for h in results]
        elif guess_mode:
            last = len(results) - 1
            results = [h * 10.0 ** (i / last - 1) for i, h in enumerate(results)]
        if scale != 1.0:
            results = [h * scale for h in results]
        *down, mid = results
        return ControlNetOutput(tuple(down), mid) if return_dict else (tuple(down), mid)

    def _check_image(self, image: torch.Tensor, sample: torch.Tensor) -> None:
        batch, _, height, width = sample.shape
        channels, factor = self.controlnet_cond_embedding.conv_in.in_channels, self.image_factor
        expected = (channels, factor * height, factor * width)
        if not isinstance(image, torch.Tensor):
            raise InputError(f"controlnet_cond must be a tensor {(batch, *expected)}, got {type(image).__name__}")
        if image.ndim != 4 or tuple(image.shape[1:]) != expected or image.shape[0] not in (1, batch):
            raise InputError(
                f"controlnet_cond has shape {tuple(image.shape)}: expected {(batch, *expected)}, "
                f"{factor} times the size of the sample"
            )
