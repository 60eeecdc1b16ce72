"""How a model runs without changing what it computes: attention by slices, blocks compiled one by one."""

import inspect
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from latentia.core.arguments import check_count
from latentia.errors import InputError, check_choice

_ROOM: dict[str, Any] = (
    {"recompile_limit": 256} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
)
"""Torch compiles 8 variants of a class of blocks, of all networks together, and runs the others eagerly, unless told.
One UNet of Stable Diffusion has 16 different residual blocks. Older releases of torch cannot be told."""


class SliceableAttention(nn.Module):
    """Base of attention layers that can attend by groups of heads.

    Attributes:
        heads: number of heads.
        slice_size: heads of one sample that attend at once; None: all heads of all samples.
    """

    heads: int
    slice_size: int | None = None


class Execution(nn.Module):
    """Mixin of models: switches of memory and speed.

    Class attribute `_repeated_blocks` names the classes of the blocks that a network is built of many times.
    """

    _repeated_blocks: ClassVar[tuple[str, ...]] = ()

    def enable_attention_slicing(self, slice_size: int | str | None = "auto") -> None:
        """Attend by groups of heads, one sample at a time: less memory, the same numbers to rounding.

        Helps where the scores QKᵀ are held in memory; the fused kernels of CUDA never hold them.

        Args:
            slice_size: heads at once: `auto` half of each layer's, `max` one (saves most), or a number (layers with
                fewer heads take all of a sample's). None: as `disable_attention_slicing`.

        Raises `InputError` for anything else.
        """
        if isinstance(slice_size, str):
            check_choice("slice_size", slice_size, ("auto", "max"))
        elif slice_size is not None:
            check_count("slice_size", slice_size)
        for layer in self._attention_layers():
            named = {"auto": max(1, layer.heads // 2), "max": 1}
            layer.slice_size = named[slice_size] if isinstance(slice_size, str) else slice_size

    def disable_attention_slicing(self) -> None:
        """Attend with all heads at once."""
        for layer in self._attention_layers():
            layer.slice_size = None

    def _attention_layers(self) -> Iterator[SliceableAttention]:
        return (module for module in self.modules() if isinstance(module, SliceableAttention))

    def compile_repeated_blocks(self, **options: Any) -> None:
        """`torch.compile` each repeated block by itself, in place.

        Equal blocks share one compiled function, so the first call takes a fraction of the time that compiling the
        whole network takes. Keys of the state dict, saving and loading stay as they are; copies (`copy.deepcopy`) run
        uncompiled.

        Args:
            options: of `torch.compile`: `mode`, `fullgraph`, `dynamic`, `backend`, …

        Raises `InputError` for a model that has no repeated blocks.
        """
        blocks = [module for module in self.modules() if type(module).__name__ in self._repeated_blocks]
        if not blocks:
            raise InputError(f"{type(self).__name__} has no repeated blocks: compile it whole, model.compile(...)")
        for block in blocks:
            block.compile(**{**_ROOM, **options})
