"""A module built without starting weights, then filled from a state dict: one copy of the weights in memory."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from latentia.errors import ArtifactError

_RANDOM = frozenset(
    ("uniform_", "normal_", "erfinv_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_", "xavier_normal_")
)
"""In-place functions that start parameters; what `torch.nn.init` offers is made of these, save `orthogonal_`."""


class SkipInit(TorchFunctionMode):
    """Within this context the current thread leaves parameters undrawn: no time, memory or random numbers go there.

    Buffers and constants are computed as always (so that those outside the state dict are right), which building on
    the meta device could not do. The mode belongs to one thread: others build their models meanwhile undisturbed.
    """

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, unless it draws the values of a parameter."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _RANDOM:
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, nn.Parameter):
                return target
        return func(*args, **kwargs)


def check_fits(model: nn.Module, state: Mapping[str, torch.Tensor], source: str, strict: bool) -> None:
    """Raise one `ArtifactError` that names every missing, unexpected and mis-shaped tensor.

    Without `strict` only the mis-shaped ones are an error.
    """
    slots = model.state_dict(keep_vars=True)
    wrong = [
        f"{name} (file {_describe(state[name])}, model {_describe(slot)})"
        for name, slot in slots.items()
        if name in state and not _fits(slot, state[name])
    ]
    filled = {id(slots[name]) for name in state if name in slots}  # one name of a tied tensor fills all of them
    missing = [name for name, slot in slots.items() if id(slot) not in filled] if strict else []
    unexpected = [name for name in state if name not in slots] if strict else []
    groups = (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", wrong))
    problems = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in groups if names]
    if problems:
        raise ArtifactError(
            f"the weights in {source} do not fit {type(model).__name__}. {'; '.join(problems)}. "
            "Check that config.json and weights come from the same save"
        )


def _fits(slot: torch.Tensor, value: torch.Tensor) -> bool:
    return slot.shape == value.shape and _kind(slot) == _kind(value)


def _kind(tensor: torch.Tensor) -> str:
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"


def _describe(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {_kind(tensor)}"


def fill(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> None:
    """Put the tensors of `state` under the model's parameters and buffers, then move the rest along.

    Each tensor is cast and placed in one step; one that needs neither is taken as it is. Parameters keep their
    identity, so ties stay ties. Floats are cast to `dtype` (None: the dtype the class was built with), integers keep
    the model's.
    """
    slots = model.state_dict(keep_vars=True)
    done: set[int] = set()
    for name, value in state.items():
        slot = slots.get(name)
        if slot is None or id(slot) in done:
            continue
        done.add(id(slot))
        cast = dtype if dtype is not None and slot.is_floating_point() else slot.dtype
        slot.data = value.to(device=device or slot.device, dtype=cast)
    if device is not None or dtype is not None:
        model.to(device=device, dtype=dtype)
