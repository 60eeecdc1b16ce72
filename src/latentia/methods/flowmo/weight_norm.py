"""Forced weight normalisation: after every update the matrices of the blocks get their first norms back."""

import torch
from torch import nn

from latentia.errors import check_choice
from latentia.nn.mmdit_block import MMDiTBlock
from latentia.training.parallel import PLAIN, like, whole

NORM_MODES = ("channel", "l2")


class ForcedWeightNorm:
    """W ← W · ‖W₀‖/‖W‖ for every linear layer inside the blocks (after EDM2, Karras et al. 2024; FlowMo's code).

    Growing weights make relative updates, and so the effective learning rate, shrink; fixed norms keep it what it is.
    Biases, gains, and the layers outside the blocks stay free. Norms are those of `model` now: build it from the same
    start when a run is resumed.

    Args:
        model: holds `MMDiTBlock`s.
        mode: `l2`, the norm of the whole matrix, or `channel`, that of every row.
    """

    def __init__(self, model: nn.Module, mode: str = "l2") -> None:
        check_choice("weight_norm", mode, NORM_MODES)
        self.mode = mode
        self.targets = [norm.clone() for norm in self._norms(block_matrices(model))]

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Rescale in place; frozen matrices, which nothing has changed, are left alone. Every process must call."""
        matrices = block_matrices(model)
        if self.targets and self.targets[0].device != matrices[0].device:
            self.targets = [target.to(matrices[0].device) for target in self.targets]
        pairs = [(w, target) for w, target in zip(matrices, self.targets, strict=True) if w.requires_grad]
        if not pairs:
            return
        weights, targets = [weight for weight, _ in pairs], [target for _, target in pairs]
        scales = list(torch._foreach_div(targets, self._norms(weights)))
        if type(weights[0]) in PLAIN:
            torch._foreach_mul_(weights, scales)
            return
        for weight, scale in zip(weights, scales, strict=True):
            weight.mul_(like(scale.expand_as(weight), weight))

    @torch.no_grad()
    def _norms(self, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """Of every matrix, a number or one for each row (rows, 1); never 0."""
        if self.mode == "l2":
            norms = list(torch._foreach_norm(weights))
        else:
            norms = [torch.linalg.vector_norm(weight, dim=1, keepdim=True) for weight in weights]
        return [whole(norm).clamp(min=1e-12) for norm in norms]


def block_matrices(model: nn.Module) -> list[torch.Tensor]:
    """The weight of every `nn.Linear` in every block, in order."""
    blocks = (module for module in model.modules() if isinstance(module, MMDiTBlock))
    return [layer.weight for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)]
