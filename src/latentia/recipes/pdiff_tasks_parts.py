"""The groups of fields of `pdiff-tasks`: the tasks and their networks, and a denoiser of weights that is told the task.

Nothing here imports torch until something is built.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from latentia.recipes.parts import Fraction, Widths
from latentia.recipes.pdiff_parts import Fitting
from latentia.recipes.recipe import Value

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from latentia.denoisers.unet_1d import UNet1D
    from latentia.methods.pdiff.condition import Condition

DIGITS = 10


class DigitTasks(Value):
    """Tasks on the same images, a network or several for each, and the tasks that no network is trained on."""

    kind: Literal["pair", "subset"] = Field(default="subset", description="in the subset or not; or one digit of two")
    least: Annotated[int, Field(ge=1, le=5)] = Field(default=2, description="digits in a subset and outside of it")
    held_out: Annotated[int, Field(ge=2, multiple_of=2)] = Field(
        default=40, description="tasks, with their opposites, that nothing is trained on"
    )
    per_task: PositiveInt = Field(default=2, description="networks for each task, by the order of their images")
    hidden: PositiveInt = Field(default=4, description="hidden units of each network")
    fit: Fitting = Field(default=Fitting(), description="training of each network, from one initialisation")

    def codes(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Training codes and held-out codes, ±1 and 0, (N, 10) and (H, 10)."""
        import torch

        from latentia.methods.pdiff.digit_tasks import all_codes, split_codes

        with torch.device("cpu"):  # a plan builds everything else without memory
            return split_codes(all_codes(self.kind, self.least), self.held_out, seed)

    def build(self) -> Callable[[], nn.Module]:
        """What makes the network."""
        from latentia.methods.pdiff.digit_tasks import TaskMLP

        return partial(TaskMLP, self.hidden)

    def condition(self, guided: bool) -> Condition:
        """What the pipeline is told: a number for each digit, by its name."""
        from latentia.methods.pdiff.condition import Condition

        off = -1.0 if self.kind == "subset" else 0.0
        return Condition(DIGITS, tuple(map(str, range(DIGITS))), on=1.0, off=off, guided=guided)


class ToldUNet(Value):
    """The widths of a `UNet1D` that is told the task. The latents have length 1: it is a residual MLP over channels."""

    channels: Widths = Field(default=(96,), description="width of each stage")
    layers: PositiveInt = Field(default=2, description="residual blocks a stage, on either way")
    dropout: Fraction = Field(default=0.0, description="in the residual blocks")
    condition_dropout: Fraction = Field(default=0.1, description="share of tasks that are withheld, for guidance")

    def build(self, latents: tuple[int, int]) -> UNet1D:
        """The denoiser of latents (c, L)."""
        from latentia.denoisers.unet_1d import UNet1D

        channels, length = latents
        return UNet1D(
            sample_size=length,
            in_channels=channels,
            out_channels=channels,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            kernel_size=1 if length == 1 else 3,
            downsample=length > 1,
            learned_positions=length > 1,
            norm_num_groups=1 if length == 1 else 8,
            dropout=self.dropout,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=DIGITS,
        )


class Guided(Value):
    """How networks are drawn for the held-out tasks."""

    samples: PositiveInt = Field(default=5, description="networks for each held-out task")
    steps: PositiveInt = Field(default=25, description="steps of the sampler")
    guidance_scale: NonNegativeFloat = Field(default=1.0, description="of classifier-free guidance; 1 is none")
