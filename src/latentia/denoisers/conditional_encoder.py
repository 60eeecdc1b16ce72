"""The half that a text-conditional UNet and its ControlNet share: time, classes, the way down and the middle."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from latentia.core.arguments import check_counts, check_number
from latentia.core.model import ModelMixin
from latentia.denoisers.time_and_class import ActivatedTimestepEmbedding, ClassConditioning, as_times
from latentia.denoisers.unet_2d_condition_blocks import (
    DOWN_BLOCKS,
    MID_BLOCKS,
    Stage,
    Text,
    TextDownBlock,
    TextMidBlock,
    has_transformers,
)
from latentia.errors import ConfigError, InputError
from latentia.nn.activations import get_activation
from latentia.nn.checkpointing import GradientCheckpointing
from latentia.nn.cross_attention import mask_to_bias
from latentia.nn.embeddings import Timesteps
from latentia.nn.resnet import ResnetStyle
from latentia.nn.transformer import TransformerStyle


class ConditionalEncoder(GradientCheckpointing, ModelMixin):
    """Base of `UNet2DConditionModel` and `ControlNetModel`; a subclass builds the parts in its order of keys."""

    down_blocks: nn.ModuleList

    def _plan(self) -> None:
        """Check the config and lay out the stages, before anything is built."""
        c = self.config
        count = len(c.block_out_channels)
        if not count or count != len(c.down_block_types):
            raise ConfigError(
                f"block_out_channels and down_block_types must be equally long, got {count} and "
                f"{len(c.down_block_types)} entries"
            )
        sizes = ("block_out_channels", "layers_per_block", "norm_num_groups", "attention_head_dim")
        check_counts(c, ("in_channels", "cross_attention_dim", *sizes), ("num_class_embeds",))
        check_number("norm_eps", c.norm_eps, 0)
        check_number("dropout", c.get("dropout", 0.0), 0, 1)
        check_number("mid_block_scale_factor", c.mid_block_scale_factor, 0, open_low=True)
        if c.downsample_padding not in (0, 1):
            raise ConfigError(f"downsample_padding must be 0 (right and below) or 1, got {c.downsample_padding!r}")
        heads = per_stage("attention_head_dim", c.attention_head_dim, count)
        contexts = per_stage("cross_attention_dim", c.cross_attention_dim, count)
        only_cross = per_stage("only_cross_attention", c.only_cross_attention, count)
        layers = per_stage("layers_per_block", c.layers_per_block, count)
        depths = per_stage("transformer_layers_per_block", c.transformer_layers_per_block, count)
        if len(set(contexts)) > 1:
            raise ConfigError(f"cross_attention_dim {contexts}: all stages read the same text, give one width")
        self.stages = [
            Stage(
                channels,
                layers[i],
                depths[i],
                TransformerStyle(
                    heads[i],
                    contexts[i],
                    c.norm_num_groups,
                    c.use_linear_projection,
                    only_cross[i],
                    c.upcast_attention,
                ),
            )
            for i, channels in enumerate(c.block_out_channels)
        ]
        self.context_channels: int = contexts[0]
        self.emb_channels: int = c.get("time_embedding_dim") or 4 * c.block_out_channels[0]
        self.style = ResnetStyle(
            self.emb_channels, c.norm_num_groups, c.norm_eps, c.act_fn, c.get("dropout", 0.0), c.resnet_time_scale_shift
        )
        self.classes = ClassConditioning(
            c.class_embed_type, c.num_class_embeds, c.projection_class_embeddings_input_dim
        )

    def _build_inputs(self, kernel: int, class_act: str) -> None:
        c = self.config
        width, emb_channels = c.block_out_channels[0], self.emb_channels
        self.conv_in = nn.Conv2d(c.in_channels, width, kernel, padding=(kernel - 1) // 2)
        self.time_proj = Timesteps(width, c.flip_sin_to_cos, c.freq_shift)
        self.time_embedding = ActivatedTimestepEmbedding(width, emb_channels, c.act_fn)
        self.emb_act = get_activation(c.act_fn)
        self.class_embedding = self.classes.layer(width, emb_channels, class_act)

    def _build_down(self) -> list[int]:
        """Append the stages to `self.down_blocks`; returns the widths of what they remember, the input's first."""
        c = self.config
        width = c.block_out_channels[0]
        skips = [width]
        for name, stage in zip(c.down_block_types, self.stages):
            halves = stage is not self.stages[-1]
            transformers = has_transformers(name, DOWN_BLOCKS)
            self.down_blocks.append(TextDownBlock(width, stage, self.style, transformers, halves, c.downsample_padding))
            skips += [stage.channels] * (stage.num_layers + halves)
            width = stage.channels
        return skips

    def _build_mid(self) -> TextMidBlock:
        c = self.config
        # The middle always reads the image too, whatever only_cross_attention says of the stages.
        stage = replace(self.stages[-1], transformer=replace(self.stages[-1].transformer, only_cross_attention=False))
        style = replace(self.style, output_scale=c.mid_block_scale_factor)
        return TextMidBlock(stage, style, has_transformers(c.mid_block_type, MID_BLOCKS))

    def _check_inputs(self, sample: torch.Tensor, text: torch.Tensor) -> None:
        shape, channels = sample.shape, self.conv_in.in_channels
        if len(shape) != 4 or shape[1] != channels:
            raise InputError(f"sample has shape {tuple(shape)}: expected (batch, {channels}, height, width)")
        if not isinstance(text, torch.Tensor):
            raise InputError(
                f"encoder_hidden_states is {type(text).__name__}: expected the encoded text, a tensor "
                f"({shape[0]}, length, {self.context_channels})"
            )
        if text.ndim != 3 or text.shape[0] != shape[0] or text.shape[2] != self.context_channels:
            raise InputError(
                f"encoder_hidden_states has shape {tuple(text.shape)}: expected ({shape[0]}, length, "
                f"{self.context_channels}), the output of the text encoder that this network was trained with"
            )

    def _text(
        self,
        states: torch.Tensor,
        self_mask: torch.Tensor | None,
        text_mask: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> Text:
        if text_mask is not None and text_mask.shape != states.shape[:2]:
            raise InputError(
                f"encoder_attention_mask has shape {tuple(text_mask.shape)}: expected {tuple(states.shape[:2])}"
            )
        if self_mask is not None and (self_mask.ndim != 2 or self_mask.shape[0] != states.shape[0]):
            raise InputError(f"attention_mask has shape {tuple(self_mask.shape)}: expected ({states.shape[0]}, keys)")
        return Text(states.to(dtype), mask_to_bias(self_mask, dtype), mask_to_bias(text_mask, dtype))

    def _embed(
        self, timestep: torch.Tensor | float | int, labels: torch.Tensor | None, sample: torch.Tensor
    ) -> torch.Tensor:
        """The activated embedding of time and class, (B, E) or (1, E)."""
        dtype = sample.dtype
        emb: torch.Tensor = self.time_embedding(self.time_proj(as_times(timestep, sample)).to(dtype))
        if self.class_embedding is not None:
            added = self.classes.embed(self.class_embedding, labels, self.time_proj, sample.shape[0], dtype)
            emb = emb + added.to(dtype)
        elif labels is not None:
            raise InputError("class_labels given to a model without classes: leave them out, or set num_class_embeds")
        return self.emb_act(emb)

    def _way_down(self, h: torch.Tensor, emb: torch.Tensor, text: Text) -> list[torch.Tensor]:
        """h (B, C₀, H, W) → what every layer leaves for the way up; the last one goes into the middle."""
        results = [h]
        for down in self.down_blocks:
            h, more = down(h, emb, text)
            results += more
        return results


def per_stage(name: str, value: Any, count: int) -> tuple[Any, ...]:
    """One value for all stages, or one each; raises `ConfigError` when there are more or fewer."""
    if not isinstance(value, tuple):
        return (value,) * count
    if len(value) != count:
        raise ConfigError(f"{name} has {len(value)} entries for {count} stages: give one number, or one a stage")
    return value


def refuse_foreign(config: Mapping[str, Any], foreign: Mapping[str, tuple[Any, str]]) -> None:
    """Raise `InputError` for arguments of other families of UNets that are not at their default (value, family)."""
    for name, (default, family) in foreign.items():
        if config[name] != default:
            raise InputError(
                f"{name}={config[name]!r} belongs to {family}: this class builds Stable Diffusion 1 and 2, "
                f"leave it at {default!r}"
            )


def refuse_inputs(given: Mapping[str, Any]) -> None:
    """Raise `InputError` for conditions of other families of UNets; None and empty ones are nothing."""
    for name, value in given.items():
        if value is not None and not (isinstance(value, Mapping) and not value):
            raise InputError(f"{name} is not supported by this network, which would have to ignore it: leave it out")
