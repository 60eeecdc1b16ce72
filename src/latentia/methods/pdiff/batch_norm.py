"""Statistics measured anew for many networks at once: BatchNorm's running ones, and REPAIR where there is none.

Weights that were averaged or generated never saw data, so the mean and variance in front of each normalisation are
not what was recorded with other weights. Averages of networks also shrink what their units say; in networks without
BatchNorm `repair` gives each unit the mean and deviation that it has in the originals (Jordan et al., "REPAIR:
REnormalizing Permuted Activations for Interpolation Repair", ICLR 2023). Both look at unlabelled images only.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from latentia.core.arguments import check_count
from latentia.errors import InputError
from latentia.methods.pdiff.layout import ParameterLayout, StateDict

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Layer name → mean and standard deviation of each of its units: each (K, C) for K networks, or (C,) for a target."""

STEADY = 1e-5
"""Least standard deviation that a unit is divided by: a dead unit stays dead."""


def reestimate(
    network: nn.Module,
    layout: ParameterLayout,
    base: StateDict,
    vectors: Tensor,
    x: Tensor,
    *,
    batch_size: int | None = None,
    chunk: int = 32,
) -> StateDict:
    """Running means and variances of the BatchNorm layers of networks (K, D) on images x: name → (K, C).

    Each layer normalises by the batch, as in training, and its mean and unbiased variance are recorded (PyTorch's
    `momentum=None`: the average over batches). The network in its other modes is as in evaluation.

    Args:
        network: the architecture; neither its values nor its mode change.
        layout, base: the vectors' layout and the state dict that holds everything else.
        x: images (N, C, H, W), at least 2; their order only matters with a batch size.
        batch_size: None: all images are one batch.
        chunk: networks at a time, which bounds memory.

    Empty for a network without running statistics. Raises `InputError` for fewer than two images in a batch.
    """
    worker = _worker(network)
    norms = {name: norm for name, norm in worker.named_modules() if _is_norm(norm)}
    if not norms:
        return {}
    batches = list(x.split(batch_size or len(x)))
    if len(batches) > 1 and len(batches[-1]) < len(batches[0]):
        batches.pop()  # a short batch would count as much as a whole one
    if len(batches[0]) < 2:
        raise InputError(f"a variance needs two images, got {len(batches[0])} in a batch")
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, norm in norms.items():
        norm.register_forward_hook(_normalise_by_batch(name, seen))
    totals: StateDict = {}
    for batch in batches:
        measured = _run(worker, layout, base, vectors, batch, chunk, lambda: dict(seen))
        for name, pair in measured.items():
            for part, value in zip(("running_mean", "running_var"), pair):
                key = f"{name}.{part}" if name else part
                totals[key] = totals[key] + value if key in totals else value
    return {key: value / len(batches) for key, value in totals.items()}


def activation_statistics(
    network: nn.Module, layout: ParameterLayout, base: StateDict, vectors: Tensor, x: Tensor, *, chunk: int = 32
) -> Statistics:
    """Mean and deviation of what each linear layer and convolution with a bias says about x: layer → two (K, C)."""
    worker = _worker(network)
    seen: Statistics = {}
    for name, layer in _repairable(worker, layout).items():
        layer.register_forward_hook(_measure(name, seen))
    return _run(worker, layout, base, vectors, x, chunk, lambda: dict(seen))


def mean_statistics(statistics: Statistics) -> Statistics:
    """The mean over networks: layer → two (C,), the target of `repair`."""
    return {name: (mean.mean(0), std.mean(0)) for name, (mean, std) in statistics.items()}


def repair(
    network: nn.Module,
    layout: ParameterLayout,
    base: StateDict,
    vectors: Tensor,
    x: Tensor,
    target: Statistics,
    *,
    chunk: int = 32,
) -> Tensor:
    """Networks (K, D) whose units have the mean and deviation of `target` on x: (K, D).

    Layer by layer, W ← (σ*/σ)·W and b ← (σ*/σ)(b − μ) + μ*, where μ, σ are measured behind repaired layers. The
    originals must have been matched, or a unit's target means nothing. Layers without bias, or not in the layout, stay.
    Raises `InputError` for a target of other layers.
    """
    worker = _worker(network)
    layers = _repairable(worker, layout)
    if set(target) != set(layers):
        raise InputError(f"the target has layers {', '.join(target)}; this network's are {', '.join(layers)}")
    seen: Statistics = {}
    for name, layer in layers.items():
        layer.register_forward_hook(_measure(name, seen, target[name]))
    measured = _run(worker, layout, base, vectors, x, chunk, lambda: dict(seen))
    repaired = vectors.clone()
    tensors = layout.unflatten(repaired)  # views
    for name, (mean, std) in measured.items():
        wanted_mean, wanted_std = target[name]
        factor = torch.where(std > STEADY, wanted_std / std.clamp(min=STEADY), 1.0)
        weight, bias = (tensors[f"{name}.{part}" if name else part] for part in ("weight", "bias"))
        weight.mul_(factor.view(*factor.shape, *[1] * (weight.ndim - 2)))
        bias.sub_(mean).mul_(factor).add_(torch.where(std > STEADY, wanted_mean, mean))
    return repaired


def batch_normalised(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose BatchNorm layers normalise by the batch and keep no statistics."""
    copied = _worker(network)
    for norm in copied.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
            norm.track_running_stats = False
    return copied


# -- machinery -----------------------------------------------------------------------------------------------------


def _worker(network: nn.Module) -> nn.Module:
    """A copy that hooks may be put on."""
    return copy.deepcopy(network).eval()


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _repairable(network: nn.Module, layout: ParameterLayout) -> dict[str, nn.Module]:
    names = set(layout.names)
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and {f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")} <= names
    }


def _run(
    worker: nn.Module,
    layout: ParameterLayout,
    base: Mapping[str, Tensor],
    vectors: Tensor,
    x: Tensor,
    chunk: int,
    read: Callable[[], Any],
) -> Any:
    """What the hooks have noted after `worker` saw x with the weights of each network, stacked over networks."""
    check_count("chunk", chunk)
    layout.check(base, "the base network")
    rest = {name: tensor for name, tensor in base.items() if name not in layout.names and name not in layout.ties}

    def one(tensors: StateDict) -> Any:
        functional_call(worker, {**rest, **tensors}, (x,))
        return read()

    with torch.no_grad():
        return vmap(one, chunk_size=min(chunk, len(vectors)))(layout.unflatten(vectors))


def _moments(value: Tensor, axis: int, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of each unit on `axis`, over everything else."""
    rest = [i for i in range(value.ndim) if i != axis]
    return value.mean(rest), value.var(rest, unbiased=unbiased)


def _along(units: Tensor, value: Tensor, axis: int) -> Tensor:
    shape = [1] * value.ndim
    shape[axis] = -1
    return units.view(shape)


def _normalise_by_batch(name: str, seen: Statistics) -> Callable[..., Tensor]:
    def hook(module: Any, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        (h,) = inputs
        mean, var = _moments(h, 1, unbiased=False)
        count = h.numel() // h.shape[1]
        seen[name] = mean, var * (count / (count - 1))
        h = (h - _along(mean, h, 1)) * _along((var + module.eps).rsqrt(), h, 1)
        return h if module.weight is None else h * _along(module.weight, h, 1) + _along(module.bias, h, 1)

    return hook


def _measure(name: str, seen: Statistics, target: tuple[Tensor, Tensor] | None = None) -> Callable[..., Tensor]:
    def hook(module: nn.Module, _: tuple[Tensor, ...], h: Tensor) -> Tensor:
        axis = h.ndim - 1 if isinstance(module, nn.Linear) else 1
        mean, var = _moments(h, axis, unbiased=False)
        std = var.sqrt()
        seen[name] = mean, std
        if target is None:
            return h
        factor = torch.where(std > STEADY, target[1] / std.clamp(min=STEADY), 1.0)
        shift = torch.where(std > STEADY, target[0], mean)
        return (h - _along(mean, h, axis)) * _along(factor, h, axis) + _along(shift, h, axis)

    return hook
