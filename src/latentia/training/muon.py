"""Muon: momentum whose matrices are made orthogonal, for the weights of linear maps and convolutions."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

SMALLEST_SIDE = 16
"""Weights with a smaller side than this are left to AdamW."""

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
RMS = 0.2
"""Root mean square of an update of a square matrix, of the learning rate: about what AdamW's updates have."""


class Muon(torch.optim.Optimizer):
    """Jordan et al. 2024, with the step lengths of Liu et al. 2025 (arXiv 2502.16982).

        b ← 0.95 b + 0.05 g,   o = orthogonal(0.05 g + 0.95 b),   w ← (1 − lr·λ) w − lr · 0.2 √max(n, m) · o

    for every n × m matrix in `matrices`; a convolution's weight (n, c, h, w) counts as n × chw. All other parameters
    are AdamW's, and as the steps are as long as its own, at one learning rate. `torch.optim.Muon` is the same for
    parameters of two dimensions; here those of one shape go through the iterations together.

    Args:
        parameters: all that are trained.
        matrices: those among them that are updated this way.
        lr, weight_decay: of all of them.
        betas, eps: AdamW's.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        matrices: Iterable[nn.Parameter],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        owned = list(parameters)
        super().__init__(owned, {"lr": lr, "weight_decay": weight_decay})
        chosen = {id(p) for p in matrices}
        self.by_shape: dict[tuple[int, int], list[nn.Parameter]] = {}
        for p in owned:
            if id(p) in chosen:
                self.by_shape.setdefault((len(p), p.numel() // len(p)), []).append(p)
        rest = [p for p in owned if id(p) not in chosen]
        self.adamw = torch.optim.AdamW(rest or [nn.Parameter(torch.zeros(1))], lr, betas, eps, weight_decay, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update by the gradients; parameters without one stay."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        group = self.param_groups[0]
        # One dictionary for both, so that checkpoints hold both; loading puts a new one in place.
        self.adamw.state = self.state
        self.adamw.param_groups[0]["lr"] = group["lr"]
        self.adamw.step()
        for shape, parameters in self.by_shape.items():
            self._update([p for p in parameters if p.grad is not None], shape, group)
        return loss

    def _update(self, parameters: list[torch.Tensor], shape: tuple[int, int], group: dict[str, Any]) -> None:
        if not parameters:
            return
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in parameters]
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch.stack([g.lerp(b, MOMENTUM).reshape(shape) for g, b in zip(gradients, momenta)])
        length = group["lr"] * RMS * max(shape) ** 0.5
        steps = [step.view_as(p).to(p.dtype) for step, p in zip(orthogonal(ahead), parameters)]
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, steps, alpha=-length)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """x (B, n, m) → U Vᵀ of its singular value decomposition, roughly: singular values come to lie in 0.7 to 1.2.

    Five iterations of x ← p(x xᵀ) x, p(s) = a + b s + c s². What multiplies x from the left are polynomials of one
    matrix, s = x xᵀ of the shorter side, so they are gathered there, in float32: q ← p(s) q, s ← p(s) s p(s).
    """
    a, b, c = COEFFICIENTS
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x).float()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    square = x @ x.mT
    q = torch.eye(x.shape[1], device=x.device)
    for k in range(ITERATIONS):
        p = torch.baddbmm(square, square, square, beta=b, alpha=c)
        p.diagonal(dim1=1, dim2=2).add_(a)
        q = p @ q
        if k < ITERATIONS - 1:
            square = p @ square @ p
    x = q @ x
    return x.mT if tall else x


def matrices_of(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Weights of linear maps and convolutions that are not too thin to be made orthogonal."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
                weight: nn.Parameter = layer.weight  # type: ignore[assignment]
                if min(len(weight), weight.numel() // len(weight)) >= SMALLEST_SIDE:
                    yield weight
