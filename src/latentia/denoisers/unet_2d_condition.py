"""UNet2DConditionModel: the text-conditional UNet of latent diffusion and Stable Diffusion 1 and 2."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from latentia.core.arguments import check_counts
from latentia.core.config import register_to_config
from latentia.core.outputs import Output
from latentia.denoisers.conditional_encoder import ConditionalEncoder, per_stage, refuse_foreign, refuse_inputs
from latentia.denoisers.unet_2d_condition_blocks import UP_BLOCKS, TextUpBlock, has_transformers
from latentia.errors import ConfigError, InputError
from latentia.nn.activations import get_activation

FOREIGN: dict[str, tuple[Any, str]] = {
    "num_attention_heads": (None, "no published UNet (attention_head_dim is the number of heads)"),
    "encoder_hid_dim": (None, "DeepFloyd IF and Kandinsky"),
    "encoder_hid_dim_type": (None, "DeepFloyd IF and Kandinsky"),
    "addition_embed_type": (None, "Stable Diffusion XL"),
    "addition_time_embed_dim": (None, "Stable Diffusion XL"),
    "addition_embed_type_num_heads": (64, "DeepFloyd IF"),
    "dual_cross_attention": (False, "Versatile Diffusion"),
    "resnet_skip_time_act": (False, "DeepFloyd IF"),
    "resnet_out_scale_factor": (1.0, "DeepFloyd IF"),
    "time_embedding_type": ("positional", "the latent upscaler"),
    "time_embedding_act_fn": (None, "DeepFloyd IF"),
    "timestep_post_act": (None, "the latent upscaler"),
    "time_cond_proj_dim": (None, "latent consistency models"),
    "attention_type": ("default", "GLIGEN"),
    "class_embeddings_concat": (False, "AudioLDM"),
    "mid_block_only_cross_attention": (None, "DeepFloyd IF"),
    "cross_attention_norm": (None, "DeepFloyd IF"),
}
"""Arguments of Diffusers' class for other networks: default, and whose they are."""


@dataclass(slots=True)
class UNet2DConditionOutput(Output):
    """`sample` (B, out_channels, H, W): the prediction."""

    sample: torch.Tensor


class UNet2DConditionModel(ConditionalEncoder):
    """(x_t, t, text) → prediction: ε, x₀, v or a flow, as the scheduler is told.

    Rombach et al. 2022. Every residual block is followed by a transformer in which the positions of the map look at
    each other and at the encoded text. Arguments, state-dict keys and outputs are those of Diffusers' class of the
    same name; the defaults are Stable Diffusion 1's but for `cross_attention_dim` (768 there, 1024 in 2.x).
    Inpainting checkpoints have `in_channels` 9 (latents, mask, masked latents), InstructPix2Pix 8.

    Args:
        sample_size: H = W, or (H, W), of the latents; recorded for pipelines, not enforced.
        in_channels, out_channels: of the sample and of the prediction.
        center_input_sample: map an input in [0, 1] to [-1, 1] first.
        flip_sin_to_cos, freq_shift: convention of the time's sinusoids, see `latentia.nn.embeddings`.
        down_block_types: `CrossAttnDownBlock2D` (with transformers) or `DownBlock2D`, one a stage.
        mid_block_type: `UNetMidBlock2DCrossAttn`, `UNetMidBlock2D` (one residual block) or None.
        up_block_types: `CrossAttnUpBlock2D` or `UpBlock2D`, one a stage, lowest resolution first.
        only_cross_attention: the first attention of each transformer looks at the text, too; one bool, or one a stage.
        block_out_channels: width of each stage; every stage but the last halves the resolution.
        layers_per_block: residual blocks a stage (one more on the way up); one number, or one a stage.
        downsample_padding: 1 symmetric, 0 right and below only.
        mid_block_scale_factor: the middle's residual sums are divided by this.
        dropout: inside residual blocks.
        act_fn: activation of the residual blocks and of the time embedding.
        norm_num_groups, norm_eps: of the group normalisations (those of the transformers have 1e-6).
        cross_attention_dim: width D of the encoded text.
        transformer_layers_per_block: transformer blocks behind each residual block; one number, one a stage, or one
            a layer of each stage.
        reverse_transformer_layers_per_block: the same for the way up, lowest resolution first; None: mirrored.
        attention_head_dim: **the number of heads** (a misnomer that all published configs share), one number, or one
            a stage; heads are `channels // attention_head_dim` wide.
        use_linear_projection: matrices around the transformers (2.x) instead of 1×1 convolutions (1.x).
        class_embed_type: None (a table of `num_class_embeds` rows), `timestep` (labels are numbers, embedded like
            time), `identity` (labels are embeddings), `projection` or `simple_projection` (labels are vectors, sent
            through an MLP or a matrix).
        num_class_embeds: number of classes, the null class included.
        projection_class_embeddings_input_dim: width of the labels that are projected.
        upcast_attention: attention scores in float32, as 2.1 needs in half precision; free on CPU and CUDA, whose
            kernels always do so.
        resnet_time_scale_shift: `default` or `scale_shift`.
        time_embedding_dim: width of the time embedding; None: 4·block_out_channels[0].
        conv_in_kernel, conv_out_kernel: kernel sizes of the first and last convolution.

    Arguments of other families must stay at their defaults: num_attention_heads, encoder_hid_dim,
    encoder_hid_dim_type, dual_cross_attention, addition_embed_type, addition_time_embed_dim,
    addition_embed_type_num_heads, resnet_skip_time_act, resnet_out_scale_factor, time_embedding_type,
    time_embedding_act_fn, timestep_post_act, time_cond_proj_dim, attention_type, class_embeddings_concat,
    mid_block_only_cross_attention, cross_attention_norm.

    Raises `UnknownChoiceError` for an unknown name, `ConfigError` for lengths and widths that do not fit, `InputError`
    for arguments of other families.
    """

    _repeated_blocks = ("BasicTransformerBlock", "ResnetBlock")

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        center_input_sample: bool = False,
        flip_sin_to_cos: bool = True,
        freq_shift: int = 0,
        down_block_types: tuple[str, ...] = (
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "CrossAttnDownBlock2D",
            "DownBlock2D",
        ),
        mid_block_type: str | None = "UNetMidBlock2DCrossAttn",
        up_block_types: tuple[str, ...] = (
            "UpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
            "CrossAttnUpBlock2D",
        ),
        only_cross_attention: bool | tuple[bool, ...] = False,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int | tuple[int, ...] = 2,
        downsample_padding: int = 1,
        mid_block_scale_factor: float = 1,
        dropout: float = 0.0,
        act_fn: str = "silu",
        norm_num_groups: int | None = 32,
        norm_eps: float = 1e-5,
        cross_attention_dim: int | tuple[int, ...] = 1280,
        transformer_layers_per_block: int | tuple[int | tuple[int, ...], ...] = 1,
        reverse_transformer_layers_per_block: tuple[int | tuple[int, ...], ...] | None = None,
        encoder_hid_dim: int | None = None,
        encoder_hid_dim_type: str | None = None,
        attention_head_dim: int | tuple[int, ...] = 8,
        num_attention_heads: int | tuple[int, ...] | None = None,
        dual_cross_attention: bool = False,
        use_linear_projection: bool = False,
        class_embed_type: str | None = None,
        addition_embed_type: str | None = None,
        addition_time_embed_dim: int | None = None,
        num_class_embeds: int | None = None,
        upcast_attention: bool = False,
        resnet_time_scale_shift: str = "default",
        resnet_skip_time_act: bool = False,
        resnet_out_scale_factor: float = 1.0,
        time_embedding_type: str = "positional",
        time_embedding_dim: int | None = None,
        time_embedding_act_fn: str | None = None,
        timestep_post_act: str | None = None,
        time_cond_proj_dim: int | None = None,
        conv_in_kernel: int = 3,
        conv_out_kernel: int = 3,
        projection_class_embeddings_input_dim: int | None = None,
        attention_type: str = "default",
        class_embeddings_concat: bool = False,
        mid_block_only_cross_attention: bool | None = None,
        cross_attention_norm: str | None = None,
        addition_embed_type_num_heads: int = 64,
    ) -> None:
        super().__init__()
        refuse_foreign(self.config, FOREIGN)
        self._plan()
        check_counts(
            self.config, ("out_channels", "conv_in_kernel", "conv_out_kernel"), ("sample_size", "time_embedding_dim")
        )
        if len(up_block_types) != len(block_out_channels):
            raise ConfigError(
                f"block_out_channels and up_block_types must be equally long, got {len(block_out_channels)} and "
                f"{len(up_block_types)} entries"
            )
        self.factor: int = 2 ** (len(block_out_channels) - 1)
        self.centers = center_input_sample
        self._build_inputs(conv_in_kernel, act_fn)
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        self._build_up(self._build_down())
        self.layers_up = [stage.num_layers + 1 for stage in reversed(self.stages)]
        self.mid_block = self._build_mid() if mid_block_type is not None else None
        self.conv_norm_out = self.style.group_norm(block_out_channels[0])
        self.out_act = get_activation(act_fn, owned=True)
        self.conv_out = nn.Conv2d(
            block_out_channels[0], out_channels, conv_out_kernel, padding=(conv_out_kernel - 1) // 2
        )

    def _build_up(self, skips: list[int]) -> None:
        c = self.config
        stages = self.stages[::-1]
        if c.reverse_transformer_layers_per_block is not None:
            name = "reverse_transformer_layers_per_block"
            depths = per_stage(name, c.reverse_transformer_layers_per_block, len(stages))
            stages = [replace(stage, depth=depth) for stage, depth in zip(stages, depths)]
        width = stages[0].channels
        for name, stage in zip(c.up_block_types, stages):
            read = [skips.pop() for _ in range(stage.num_layers + 1)]
            transformers = has_transformers(name, UP_BLOCKS)
            self.up_blocks.append(
                TextUpBlock(width, stage, read, self.style, transformers, upsample=stage is not stages[-1])
            )
            width = stage.channels

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        timestep_cond: None = None,
        attention_mask: torch.Tensor | None = None,
        cross_attention_kwargs: Mapping[str, Any] | None = None,
        added_cond_kwargs: Mapping[str, Any] | None = None,
        down_block_additional_residuals: Sequence[torch.Tensor] | None = None,
        mid_block_additional_residual: torch.Tensor | None = None,
        down_intrablock_additional_residuals: None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DConditionOutput | tuple[torch.Tensor]:
        """Predict from a noisy sample and a text.

        Args:
            sample: x_t (B, in_channels, H, W), of any size.
            timestep: t, one number or a tensor of one or B numbers; fractions are kept.
            encoder_hidden_states: the encoded text (B, L, cross_attention_dim), cast to the sample's dtype.
            class_labels: (B,) int64 in [0, num_class_embeds); numbers (B,) with `class_embed_type="timestep"`,
                vectors (B, width) with the others.
            attention_mask: (B, keys) of the first attention of each transformer, 1 keep, 0 leave out.
            encoder_attention_mask: (B, L), 1 keep, 0 leave out.
            down_block_additional_residuals, mid_block_additional_residual: what a ControlNet adds to the results of
                the way down, one each, and of the middle; both or neither.
            timestep_cond, cross_attention_kwargs, added_cond_kwargs, down_intrablock_additional_residuals: of other
                networks; refused unless None or empty.
            return_dict: False returns the tuple `(sample,)`.

        Raises `InputError` for wrong shapes, and for labels that are missing, not wanted or out of range.
        """
        refuse_inputs(
            {
                "timestep_cond": timestep_cond,
                "cross_attention_kwargs": cross_attention_kwargs,
                "added_cond_kwargs": added_cond_kwargs,
                "down_intrablock_additional_residuals": down_intrablock_additional_residuals,
            }
        )
        self._check_inputs(sample, encoder_hidden_states)
        text = self._text(encoder_hidden_states, attention_mask, encoder_attention_mask, sample.dtype)
        emb = self._embed(timestep, class_labels, sample)

        skips = self._way_down(self.conv_in(2 * sample - 1 if self.centers else sample), emb, text)
        h = skips[-1]
        if self.mid_block is not None:
            h = self.mid_block(h, emb, text)
        if down_block_additional_residuals is not None or mid_block_additional_residual is not None:
            skips, h = _controlled(skips, h, down_block_additional_residuals, mid_block_additional_residual)
        odd = sample.shape[2] % self.factor or sample.shape[3] % self.factor
        for up, layers in zip(self.up_blocks, self.layers_up):
            first = len(skips) - layers
            h = up(h, skips[first:], emb, text, skips[first - 1].shape[2:] if odd and first else None)
            del skips[first:]
        out = self.conv_out(self.out_act(self.conv_norm_out(h)))
        return UNet2DConditionOutput(out) if return_dict else (out,)


def _controlled(
    skips: list[torch.Tensor],
    middle: torch.Tensor,
    down: Sequence[torch.Tensor] | None,
    mid: torch.Tensor | None,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The results of the way down and of the middle plus what a ControlNet says of each; `InputError` for misfits."""
    if down is None or mid is None:
        raise InputError("give down_block_additional_residuals and mid_block_additional_residual, or neither")
    if len(down) != len(skips):
        raise InputError(
            f"down_block_additional_residuals has {len(down)} tensors: expected {len(skips)}, from a ControlNet with "
            "the blocks of this UNet"
        )
    for i, (skip, more) in enumerate(zip(skips, down)):
        _check_addend(f"down_block_additional_residuals[{i}]", more, skip)
    _check_addend("mid_block_additional_residual", mid, middle)
    return [skip + more for skip, more in zip(skips, down)], middle + mid


def _check_addend(name: str, more: torch.Tensor, to: torch.Tensor) -> None:
    if more.ndim != to.ndim or any(a not in (1, b) for a, b in zip(more.shape, to.shape)):
        raise InputError(f"{name} has shape {tuple(more.shape)}: expected {tuple(to.shape)}")
