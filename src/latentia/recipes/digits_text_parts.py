"""The networks of `digits-text`: a small text encoder, and a UNet that learns to read what it says in minutes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from latentia.recipes.parts import Fraction, UNet
from latentia.recipes.recipe import Value

if TYPE_CHECKING:
    from latentia.conditioners.ldm_bert import LDMBertModel
    from latentia.denoisers.unet_2d_condition import UNet2DConditionModel


class TextEncoder(Value):
    """A tokenizer learnt from the captions and an `LDMBertModel` trained with the UNet."""

    vocab_size: Annotated[int, Field(ge=400)] = Field(default=560, description="most tokens of the vocabulary")
    length: Annotated[int, Field(ge=3)] = Field(default=18, description="tokens of a caption, both ends included")
    width: PositiveInt = Field(default=64, description="width of a token's vector")
    layers: PositiveInt = Field(default=2, description="transformer layers")
    heads: PositiveInt = Field(default=4, description="attention heads; they share the width")
    dropout: Fraction = Field(default=0.0, description="of embeddings and branches, while training")

    def build(self) -> LDMBertModel:
        """The text encoder for (B, `length`) tokens."""
        from torch import nn

        from latentia.conditioners.ldm_bert import LDMBertModel

        encoder = LDMBertModel(
            vocab_size=self.vocab_size,
            max_position_embeddings=self.length,
            encoder_layers=self.layers,
            encoder_ffn_dim=4 * self.width,
            encoder_attention_heads=self.heads,
            head_dim=self.width // self.heads,
            d_model=self.width,
            dropout=self.dropout,
            pad_token_id=None,
        )
        # At LDM's deviation of 0.02 the first steps at a learning rate as high as ours would drown the words' identity.
        for table in (encoder.model.embed_tokens, encoder.model.embed_positions):
            nn.init.normal_(table.weight)
        return encoder


class TextUNet(UNet):
    """The widths of a `UNet2DConditionModel`; levels in `attention` look at the text."""

    def build_for_text(self, size: int, channels: int, text: TextEncoder) -> UNet2DConditionModel:
        """The network for (B, `channels`, `size`, 2·`size`) and what `text` makes of captions."""
        from latentia.denoisers.unet_2d_condition import UNet2DConditionModel
        from latentia.nn.init import zero_, zero_residual_branches_

        reads = [i in self.attention for i in range(len(self.channels))]
        head_dim = self.head_dim or self.channels[-1]
        unet = UNet2DConditionModel(
            sample_size=(size, 2 * size),
            in_channels=channels,
            out_channels=channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            down_block_types=tuple("CrossAttnDownBlock2D" if r else "DownBlock2D" for r in reads),
            up_block_types=tuple("CrossAttnUpBlock2D" if r else "UpBlock2D" for r in reversed(reads)),
            attention_head_dim=tuple(max(1, width // head_dim) for width in self.channels),
            norm_num_groups=self.groups,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            flip_sin_to_cos=self.flip_sin_to_cos,
            freq_shift=self.freq_shift,
            downsample_padding=self.downsample_padding,
            cross_attention_dim=text.width,
        )
        if self.zero_init:
            zero_residual_branches_(unet)
            zero_(unet.conv_out)
        attend_sharply_(unet, text.length)
        return unet


def attend_sharply_(unet: UNet2DConditionModel, text_length: int) -> None:
    """Start the attention to the text so that every head sees some tokens, and not the mean of all.

    With PyTorch's own start the scores QKᵀ/√d of unit-variance tokens have a deviation of 1/3, so a head sees a mean
    of L tokens in which one word counts 1/L, and it takes a thousand steps to find the word that matters. Here scores
    start with a deviation of 3, and V √L times as large as unit variance needs, since means shrink it so.
    """
    from torch import nn

    from latentia.nn.transformer import BasicTransformerBlock

    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock):
            for layer, variance in (
                (module.attn2.to_q, 3.0),
                (module.attn2.to_k, 3.0),
                (module.attn2.to_v, float(text_length)),
            ):
                nn.init.normal_(layer.weight, std=(variance / layer.in_features) ** 0.5)
