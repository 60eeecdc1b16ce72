"""The groups of fields of `edit-scenes`: which rows, the networks, and what is minimised.

Nothing here imports torch until something is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from latentia.recipes.digits_text_parts import TextEncoder, attend_sharply_
from latentia.recipes.parts import Fraction, Optim, Widths
from latentia.recipes.recipe import Value

if TYPE_CHECKING:
    from torch import nn

    from latentia.methods.emu_edit.model import EmuEditModel

HARDER = {"local": 2.0, "texture": 1.5, "add": 2.0, "remove": 1.5, "background": 1.0, "detect": 1.5, "segment": 2.0}
"""How often these tasks are drawn where the others are drawn 0.35 times: they must find one thing among several."""

EASIER = 0.35


class Instructions(TextEncoder):
    """The tokenizer and the text encoder; before the editor it learns from instructions alone what they ask for."""

    vocab_size: Annotated[int, Field(ge=400)] = Field(default=1024, description="most tokens of the vocabulary")
    length: Annotated[int, Field(ge=8)] = Field(default=36, description="tokens of an instruction, both ends included")
    width: PositiveInt = Field(default=96, description="width of a token's vector")
    examples: PositiveInt = Field(default=8000, description="instructions that the byte pairs are learnt from")
    further: bool = Field(
        default=False, description="train the text encoder on with the editor, at whose learning rate it forgets"
    )
    steps: PositiveInt = Field(default=2500, description="optimizer steps of the phase `words`")
    batch_size: PositiveInt = Field(default=32, description="instructions in one of its steps")
    optim: Optim = Field(
        default=Optim(lr=1.5e-3, schedule="linear", warmup=50, betas=(0.9, 0.99), weight_decay=0.01),
        description="its optimizer",
    )


class Editor(Value):
    """The widths of an `EmuEditModel` over pixels, trained from scratch."""

    patch_size: PositiveInt = Field(default=2, description="pixels a side of a position of the largest map")
    channels: Widths = Field(default=(32, 48, 96), description="width of each resolution")
    layers: PositiveInt = Field(default=1, description="residual blocks in each resolution")
    attention: tuple[NonNegativeInt, ...] = Field(default=(2,), description="levels that look at the text")
    head_dim: PositiveInt = Field(default=32, description="channels of a head")
    groups: PositiveInt = Field(default=8, description="groups of GroupNorm")
    time_scale_shift: Literal["default", "scale_shift"] = Field(
        default="scale_shift", description="how time, task and sentence reach the residual blocks"
    )
    position_channels: NonNegativeInt = Field(default=8, description="channels of a learned map of places")
    task_dim: PositiveInt = Field(default=64, description="width of a task's vector")
    task_tokens: NonNegativeInt = Field(default=4, description="tokens that a task adds to the text")
    pooled_text: bool = Field(default=True, description="the sentence as a vector goes to every residual block")
    facts: bool = Field(default=False, description="so do the facts that phase `words` tells, each by itself")
    noise_gain: bool = Field(default=True, description="x_t is weighed by a learned number that starts at zero")
    copy_gate: bool = Field(default=True, description="say where to edit, and leave the rest as it is")
    affine: bool = Field(default=False, description="say edits as a change of what is there and a shift")
    paints: NonNegativeInt = Field(default=0, description="colours that the words mix, and edits are painted with")

    def build(self, size: int, num_tasks: int, text: Instructions, facts: nn.Linear | None = None) -> EmuEditModel:
        """The network for pictures of (3, size, size), which takes over and keeps what tells the `facts`."""
        from latentia.methods.emu_edit.model import EmuEditModel

        reads = [level in self.attention for level in range(len(self.channels))]
        depths = [int(read) for read in reads]
        model = EmuEditModel(
            unet={
                "block_out_channels": self.channels,
                "layers_per_block": self.layers,
                "down_block_types": tuple("CrossAttnDownBlock2D" if read else "DownBlock2D" for read in reads),
                "up_block_types": tuple("CrossAttnUpBlock2D" if read else "UpBlock2D" for read in reversed(reads)),
                # One transformer a level on the way up, behind its first block: two would cost more than they give.
                "reverse_transformer_layers_per_block": tuple(
                    (depth, *(0,) * self.layers) for depth in reversed(depths)
                ),
                "attention_head_dim": tuple(max(1, width // self.head_dim) for width in self.channels),
                "norm_num_groups": self.groups,
                "cross_attention_dim": text.width,
                "use_linear_projection": True,
                "resnet_time_scale_shift": self.time_scale_shift,
            },
            sample_size=size,
            in_channels=3,
            patch_size=self.patch_size,
            num_tasks=num_tasks,
            task_dim=self.task_dim,
            task_tokens=self.task_tokens,
            task_std=1.0,
            position_channels=self.position_channels,
            pooled_text=self.pooled_text,
            facts=facts.out_features if self.facts and facts is not None else 0,
            noise_gain=self.noise_gain,
            copy_gate=self.copy_gate,
            affine=self.affine,
            paints=self.paints,
        )
        if model.facts is not None and facts is not None:
            model.facts.load_state_dict(facts.state_dict())
            model.facts.requires_grad_(False)
        attend_sharply_(model.unet, text.length)
        return model


class EditTarget(Value):
    """What the editor's training minimises, in the vocabulary of `EmuEditObjective`."""

    loss: Literal["mse", "l1", "huber"] = Field(default="mse", description="error of the prediction")
    min_snr_gamma: PositiveFloat | None = Field(default=None, description="γ of min-SNR weighting; none for no weights")
    times: Literal["uniform", "antithetic", "logit_normal"] = Field(default="uniform", description="draw of t")
    dropout: Annotated[float, Field(ge=0, le=1 / 3)] = Field(
        default=0.02, description="share of rows without text, without picture, and without both"
    )
    change_weight: Fraction = Field(default=0.5, description="share of the loss that is about edited pixels")
    gate_weight: NonNegativeFloat = Field(default=1.0, description="weight of the copy gate's cross entropy")
    parse_weight: NonNegativeFloat = Field(default=0.0, description="weight of telling what stands where")
    terminal_share: Fraction = Field(default=0.9, description="share of samples that are pure noise")


class Predictor(Value):
    """The task predictor's phase."""

    examples: PositiveInt = Field(default=8000, description="instructions that it learns from")
    steps: PositiveInt = Field(default=600, description="optimizer steps of the phase `predictor`")
    batch_size: PositiveInt = Field(default=128, description="instructions in one of its steps")
    optim: Optim = Field(default=Optim(lr=5e-3, schedule="cosine"), description="its optimizer")
