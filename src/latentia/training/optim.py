"""The optimizer of one turn: built from its values, its learning rate at a step, its state by parameter name."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from latentia.errors import TrainingError
from latentia.training.muon import Muon, matrices_of
from latentia.training.parallel import like, whole
from latentia.training.phase import Optim


def learning_rate(optim: Optim, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`.

    Warm-up is linear and never zero; the decay runs from the end of warm-up to the end of training, where it
    would reach `final_lr`·lr (the last step is one step short of that, so it is not wasted on a rate of 0).
    """
    warm = min(1.0, (step + 1) / optim.warmup) if optim.warmup else 1.0
    if optim.schedule == "constant" or step < optim.warmup:
        return optim.lr * warm
    progress = min(1.0, (step - optim.warmup) / max(1, steps - optim.warmup))
    falling = 1 - progress if optim.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return optim.lr * (optim.final_lr + (1 - optim.final_lr) * falling)


def build_optimizer(
    optim: Optim, parameters: Iterable[nn.Parameter], modules: Iterable[nn.Module] = ()
) -> torch.optim.Optimizer:
    """PyTorch's fused Adam or AdamW over `parameters`, or Muon, for which `modules` tell which of them are matrices."""
    if optim.optimizer == "muon":
        return Muon(
            parameters, matrices_of(modules), optim.lr, optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[optim.optimizer]
    return kind(
        list(parameters), lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=True
    )


def gradient_norm(parameters: list[nn.Parameter]) -> torch.Tensor:
    """The global 2-norm of the gradients, a scalar; parameters without a gradient count nothing."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return whole(nn.utils.get_total_norm(gradients, foreach=True))


def clip_gradients(parameters: list[nn.Parameter], clip: float | None, norm: float) -> None:
    """Scale the gradients by clip/norm when their norm is above `clip`."""
    if clip is not None and clip < norm < math.inf:
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, clip / norm)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[int, str]) -> dict[str, torch.Tensor]:
    """The optimizer's state as `{parameter name + "." + entry: whole tensor}`; `names` is by `id(parameter)`."""
    state = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            for entry, value in optimizer.state.get(p, {}).items():
                state[f"{names[id(p)]}.{entry}"] = whole(value)
    return state


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_tensors` returned. Raises `TrainingError` when parameters are missing there."""
    by_parameter: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        name, entry = key.rsplit(".", 1)
        by_parameter.setdefault(name, {})[entry] = value
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    unknown = set(by_parameter) - {names[id(p)] for p in parameters}
    if unknown:
        raise TrainingError(f"the checkpoint's optimizer knows other parameters: {', '.join(sorted(unknown)[:5])}")
    state: dict[int, dict[str, Any]] = {}
    for i, p in enumerate(parameters):
        entries = by_parameter.get(names[id(p)])
        if entries is not None:
            state[i] = {k: like(v, p) if v.shape == p.shape else v for k, v in entries.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
