"""Gradient checkpointing: forget activations in the forward pass, compute them again in the backward pass.

Memory for activations falls from O(layers) to O(block inputs) at the cost of one more forward pass.
"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class CheckpointedBlock(nn.Module):
    """Base of blocks that call their layers through `run`."""

    checkpointing: bool = False

    def run(self, layer: nn.Module, *args: torch.Tensor | None) -> torch.Tensor:
        """`layer(*args)`, checkpointed when that is enabled and a gradient is recorded."""
        if self.checkpointing and torch.is_grad_enabled():
            recomputed: torch.Tensor = checkpoint(layer, *args, use_reentrant=False)
            return recomputed
        result: torch.Tensor = layer(*args)
        return result


class GradientCheckpointing(nn.Module):
    """Mixin of models built from `CheckpointedBlock`s: switches all of them."""

    def enable_gradient_checkpointing(self) -> None:
        """Trade a second forward pass for memory; gradients stay the same."""
        for block in self._checkpointed_blocks():
            block.checkpointing = True

    def disable_gradient_checkpointing(self) -> None:
        """Keep activations again."""
        for block in self._checkpointed_blocks():
            block.checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any block recomputes its activations."""
        return any(block.checkpointing for block in self._checkpointed_blocks())

    def _checkpointed_blocks(self) -> Iterator[CheckpointedBlock]:
        return (module for module in self.modules() if isinstance(module, CheckpointedBlock))
