"""Low-rank adapters on the linear layers and convolutions of any network (LoRA, Hu et al. 2021).

An adapted layer computes

    y = W·x + b + Σ_a w_a·(α_a / r_a)·B_a·A_a·x,    A_a: in → r_a,    B_a: r_a → out,

for every active adapter a: rank r, strength α, weight w. For a convolution A is one of the layer's own kernel size,
stride and padding, and B is 1×1. B starts at zero, so a new adapter changes nothing.

Adapters do not show in `state_dict()`, `parameters()` and `save_pretrained` of the network, see `latentia.nn.adapted`;
they are reached through the module that `add_adapter` and `load_adapter` return. Running a network changes nothing in
its adapters, so threads may share it; change adapters between calls, not during them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from latentia.core.arguments import check_count
from latentia.errors import ArtifactError, InputError, NonFiniteError, check_choice, unknown_choice
from latentia.nn.adapted import Adaptable, Adapted, LowRank, adaptable, adapted, take_in

Weights = tuple[torch.Tensor, torch.Tensor, float]
"""A, B and α of one layer: A (r, in) and B (out, r), or A (r, in, k, k) and B (out, r, 1, 1)."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of every attention: what is adapted unless something else is asked for."""

Init = Literal["gaussian", "kaiming"]


# What is there ---------------------------------------------------------------------------------------------


def adapter_names(root: nn.Module) -> list[str]:
    """Names of all adapters in `root`, in the order in which they came."""
    return list(dict.fromkeys(name for _, layer in adapted(root) for name in layer.guests.all))


def active_adapters(root: nn.Module) -> dict[str, float]:
    """Name → weight of the chosen adapters (of weight 0 too)."""
    return {name: weight for _, layer in adapted(root) for name, weight in layer.guests.weights.items()}


def fused_adapters(root: nn.Module) -> list[str]:
    """Names of the adapters that are added into the weights at the moment."""
    return list(dict.fromkeys(name for _, layer in adapted(root) for name in layer.guests.fused))


def adapter_state(root: nn.Module, name: str) -> dict[str, Weights]:
    """Path → (A, B, α) of one adapter, detached and not copied; `UnknownChoiceError` for an unknown name."""
    return {path: _weights(layer.guests.all[name]) for path, layer in _with(root, name).items()}


def tree_state(tree: nn.Module) -> dict[str, Weights]:
    """The same of what `add_adapter` returned."""
    return {path: _weights(module) for path, module in tree.named_modules() if isinstance(module, LowRank)}


def _weights(low: LowRank) -> Weights:
    return low.lora_A.weight.detach(), low.lora_B.weight.detach(), low.alpha


def _with(root: nn.Module, name: str) -> dict[str, Adapted]:
    """The layers that have this adapter; `UnknownChoiceError` when none has."""
    found = {path: layer for path, layer in adapted(root) if name in layer.guests.all}
    if not found:
        raise unknown_choice("adapter", name, adapter_names(root) or ["(there is none: add or load one first)"])
    return found


# Coming and going ------------------------------------------------------------------------------------------


def add_adapter(
    root: nn.Module,
    name: str,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] | str = ATTENTION,
    dropout: float = 0.0,
    init: Init = "gaussian",
    dtype: torch.dtype | None = torch.float32,
    generator: torch.Generator | None = None,
) -> nn.ModuleDict:
    """Put a new, trainable adapter on every target, freeze `root` itself, and return the adapter.

    Args:
        root: any network.
        name: a name that `root` has no adapter of yet; it becomes active with weight 1, others stay as they are.
        rank: r ≥ 1 of every layer.
        alpha: α; None: α = r, a scale of 1.
        targets: ends of paths (`("to_q", "ff.net.2")`), or one regular expression that whole paths match.
        dropout: on what A reads, in [0, 1), while the returned module is in training mode.
        init: A ~ N(0, 1/r²) (`gaussian`), or as torch starts a linear layer (`kaiming`). B is zero.
        dtype: of A and B; None: each layer's own. Weights in half precision train badly, so float32.
        generator: draws A, on the CPU.

    Returns nested `nn.ModuleDict`s in the shape of `root`: its `state_dict()` has the keys `PATH.lora_A.weight` and
    `PATH.lora_B.weight`, its `parameters()` are what an optimizer should own.
    Raises `InputError` for a name that is taken, and for targets that are not there (saying which are).
    """
    check_count("rank", rank)
    check_choice("init", init, ("gaussian", "kaiming"))
    if not 0 <= dropout < 1:
        raise InputError(f"dropout must be in [0, 1), got {dropout!r}")
    _check_new(root, name)
    layers = _select(root, targets)
    _check_hosts(layers)
    root.requires_grad_(False)
    made: dict[str, LowRank] = {}
    for path, layer in layers.items():
        own = layer.weight
        kept = dtype or own.dtype
        down = _start(torch.empty(rank, *own.shape[1:]), init, generator).to(own.device, kept)
        up = torch.zeros(own.shape[0], rank, *(1,) * (own.ndim - 2), device=own.device, dtype=kept)
        made[path] = LowRank(down, up, rank if alpha is None else alpha, dropout).requires_grad_(True)
        take_in(layer, name, made[path], 1.0)
    return _tree(made)


def _start(down: torch.Tensor, init: Init, generator: torch.Generator | None) -> torch.Tensor:
    if init == "gaussian":
        return down.normal_(0, 1 / down.shape[0], generator=generator)
    bound = 1 / math.sqrt(down[0].numel())
    return down.uniform_(-bound, bound, generator=generator)


def load_adapter(
    root: nn.Module, name: str, state: Mapping[str, Weights], dtype: torch.dtype | None = None, weight: float = 1.0
) -> nn.ModuleDict:
    """Put a trained adapter on the layers that `state` names; active with `weight`, in evaluation mode, frozen.

    `state` maps paths to (A, B, α); ranks and α may differ from layer to layer. Matrices for a 1×1 convolution, and
    1×1 kernels for a linear layer, are reshaped. `dtype` None: each layer's own. The tensors are copied.
    Returns the adapter as `add_adapter` does. Raises `InputError` for a name that is taken, and one `ArtifactError`
    for everything in `state` that does not fit; `root` is then unchanged.
    """
    _check_new(root, name)
    fitted = fit(root, state)
    layers = adaptable(root)
    _check_hosts({path: layers[path] for path in fitted})
    made = {}
    for path, (down, up, alpha) in fitted.items():
        own = layers[path].weight
        a, b = (t.detach().to(own.device, dtype or own.dtype, copy=True).contiguous() for t in (down, up))
        made[path] = LowRank(a, b, alpha).eval()
        take_in(layers[path], name, made[path], weight)
    return _tree(made)


def fit(root: nn.Module, state: Mapping[str, Weights]) -> dict[str, Weights]:
    """`state` in the shapes of `root`'s layers; one `ArtifactError` lists what does not fit. Changes nothing."""
    layers = adaptable(root)
    if not state:
        raise ArtifactError("the adapter is empty: it names no layer")
    fitted, lost, wrong, bad = {}, [], [], []
    for path, (down, up, alpha) in state.items():
        if path not in layers:
            lost.append(path)
            continue
        own = layers[path].weight
        if not (math.isfinite(alpha) and down.is_floating_point() and up.is_floating_point()):
            bad.append(f"{path} (A {down.dtype}, B {up.dtype}, alpha {alpha})")
        a, b = _shaped(down, own.ndim), _shaped(up, own.ndim)
        ones = (1,) * (own.ndim - 2)
        if a.shape[1:] == own.shape[1:] and b.shape == (own.shape[0], a.shape[0], *ones) and len(a):
            fitted[path] = (a, b, alpha)
        else:
            wrong.append(f"{path} (A {tuple(down.shape)}, B {tuple(up.shape)}, layer {tuple(own.shape)})")
    groups = (
        ("not a linear layer or convolution there", lost),
        ("of the wrong shape", wrong),
        ("not made of floating numbers and a finite alpha", bad),
    )
    problems = [f"{len(paths)} {what}: {', '.join(paths)}" for what, paths in groups if paths]
    if problems:
        raise ArtifactError(f"the adapter does not fit the network. {'; '.join(problems)}")
    return fitted


def _shaped(tensor: torch.Tensor, ndim: int) -> torch.Tensor:
    if tensor.ndim == 2 and ndim == 4:
        return tensor[:, :, None, None]
    return tensor.flatten(1) if tensor.ndim == 4 and ndim == 2 and tensor.shape[2:] == (1, 1) else tensor


def remove_adapter(root: nn.Module, name: str) -> None:
    """Take one adapter out. Raises `UnknownChoiceError` for an unknown name, `InputError` for one that is fused."""
    layers = _with(root, name)
    if name in fused_adapters(root):
        raise InputError(f"adapter {name!r} is fused into the weights: unfuse first, or unload all and keep it there")
    for layer in layers.values():
        del layer.guests.all[name]
        layer.guests.weights.pop(name, None)
        layer.choose()
        if not layer.guests.all:
            layer.leave()


def unload(root: nn.Module) -> None:
    """Take all adapters out; those that are fused stay in the weights for good."""
    for _, layer in adapted(root):
        layer.leave()


def _select(root: nn.Module, targets: Sequence[str] | str) -> dict[str, Adaptable]:
    layers = adaptable(root)
    if isinstance(targets, str):
        matches = {targets: [path for path in layers if re.fullmatch(targets, path)]}
    else:
        matches = {t: [path for path in layers if path == t or path.endswith(f".{t}")] for t in targets}
    lost = [target for target, paths in matches.items() if not paths]
    if lost or not matches:
        there = sorted({_tail(path) for path in layers})
        raise InputError(
            f"no layer of {type(root).__name__} matches {', '.join(map(repr, lost)) or 'an empty list'}: give ends of "
            "paths, or one regular expression for whole paths. Its linear layers and convolutions end in: "
            f"{', '.join(there) or 'none'}"
        )
    wanted = {path for paths in matches.values() for path in paths}
    return {path: layer for path, layer in layers.items() if path in wanted}


def _tail(path: str) -> str:
    """The last name of a path and the numbers behind it: `to_out.0` of `attn1.to_out.0`."""
    parts = path.split(".")
    start = next((i for i in range(len(parts) - 1, -1, -1) if not parts[i].isdigit()), 0)
    return ".".join(parts[start:])


def _check_new(root: nn.Module, name: str) -> None:
    if not isinstance(name, str) or not name or "." in name:
        raise InputError(f"an adapter's name must be a text without '.', got {name!r}")
    if name in adapter_names(root):
        raise InputError(f"there is an adapter {name!r} already: remove it first, or choose another name")


def _check_hosts(layers: Mapping[str, nn.Module]) -> None:
    replaced = [path for path, layer in layers.items() if "forward" in vars(layer)]
    if replaced:
        raise InputError(
            f"something replaced the forward pass of {', '.join(replaced[:5])} (offloading layer by layer does), so an "
            "adapter would have no effect: add adapters first, offload then"
        )


def _tree(made: Mapping[str, LowRank]) -> nn.ModuleDict:
    """Modules by path as a tree, since a key of `nn.ModuleDict` may not contain a dot."""
    tree = nn.ModuleDict()
    for path, low in made.items():
        *parents, last = path.split(".")
        node = tree
        for part in parents:
            # Into `_modules` itself: a layer may be called `keys` or `values`, which ModuleDict's own check refuses.
            if part not in node._modules:
                node._modules[part] = nn.ModuleDict()
            node = node._modules[part]  # type: ignore[assignment]
        node._modules[last] = low
    return tree


# Choosing, fusing ------------------------------------------------------------------------------------------


def set_adapters(root: nn.Module, weights: Mapping[str, float]) -> None:
    """Make exactly these adapters active, each with its weight (any number; 0: as if it were not there).

    Raises `UnknownChoiceError` for an unknown name, `InputError` for a fused one; nothing is changed then.
    """
    check_weights(root, weights)
    for _, layer in adapted(root):
        guests = layer.guests
        kept = {name: weight for name, weight in guests.weights.items() if name in guests.fused}
        guests.weights = kept | {name: float(weight) for name, weight in weights.items() if name in guests.all}
        layer.choose()


def check_weights(root: nn.Module, weights: Mapping[str, float]) -> None:
    """Raise what `set_adapters` would raise."""
    fused = fused_adapters(root)
    for name, weight in weights.items():
        _with(root, name)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise InputError(f"the weight of adapter {name!r} must be a finite number, got {weight!r}")
        if name in fused:
            raise InputError(f"adapter {name!r} is fused into the weights: unfuse before changing its weight")


def enable_adapters(root: nn.Module, enabled: bool = True) -> None:
    """Let the active adapters act, or with False compute what the network alone computes (fused ones stay)."""
    for _, layer in adapted(root):
        layer.guests.enabled = enabled
        layer.choose()


@torch.no_grad()
def fuse(root: nn.Module, names: Sequence[str] | None = None, scale: float = 1.0) -> None:
    """Add adapters into the weights, W ← W + scale·w·(α/r)·B·A, so that a forward pass costs what it cost without.

    Computed in float32 and rounded once. W as it was is kept on the CPU until `unfuse`, which brings it back bit for
    bit (subtracting would not). While fused, `state_dict` and `save_pretrained` give the fused weights.

    Args:
        root: a network with adapters.
        names: adapters, each with the weight it is active with (1 if it is not); None: all active ones.
        scale: times every weight.

    Raises `UnknownChoiceError` for an unknown name, `InputError` when there is none to fuse or one is fused already,
    `NonFiniteError` when a sum overflows the layer's dtype (nothing is changed then).
    """
    names = list(active_adapters(root)) if names is None else list(dict.fromkeys(names))
    if not names:
        raise InputError("no adapter to fuse: load one, or name one that is not active")
    for name in names:
        _with(root, name)
        if name in fused_adapters(root):
            raise InputError(f"adapter {name!r} is fused already: unfuse first")
    changed: list[tuple[Adapted, torch.Tensor, tuple[str, ...]]] = []
    for path, layer in adapted(root):
        here = tuple(name for name in names if name in layer.guests.all)
        if not here:
            continue
        changed.append((layer, layer.weight.detach().to("cpu", copy=True), here))
        layer.weight.copy_(_sum(layer, here, scale))
        if not layer.weight.isfinite().all():
            for done, before, _ in changed:
                done.weight.copy_(before)
            raise NonFiniteError(f"fusing {', '.join(here)} overflows {layer.weight.dtype} in {path}.weight")
    for layer, before, here in changed:
        guests = layer.guests
        guests.original = before if guests.original is None else guests.original
        guests.fused += here
        layer.choose()


def _sum(layer: Adapted, names: Sequence[str], scale: float) -> torch.Tensor:
    """W + Σ scale·w·(α/r)·B·A, at least in float32."""
    total = layer.weight.to(torch.promote_types(layer.weight.dtype, torch.float32), copy=True)
    for name in names:
        delta = layer.guests.all[name].delta().view(total.shape)
        total.add_(delta.to(total.dtype), alpha=scale * layer.guests.weights.get(name, 1.0))
    return total


@torch.no_grad()
def unfuse(root: nn.Module) -> None:
    """Take all fused adapters out of the weights, which are then bit for bit what they were; they act beside them."""
    for _, layer in adapted(root):
        guests = layer.guests
        if guests.original is not None:
            layer.weight.copy_(guests.original)
            guests.original, guests.fused = None, ()
            layer.choose()
