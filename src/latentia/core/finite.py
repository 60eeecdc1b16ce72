"""Who made the first NaN or infinity: run something again and watch every module's inputs and outputs."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

_NONE: Mapping[str, Any] = MappingProxyType({})
_eager = threading.Lock()
"""Compiled code is switched off for the whole process at once: one search at a time does so."""


def first_nonfinite(modules: Mapping[str, nn.Module], run: Callable[[], object]) -> str | None:
    """Name of the innermost module that turned finite inputs into a NaN or infinity first, while `run()` runs.

    Args:
        modules: the networks that `run` calls, by the name that begins theirs: `{"unet": unet}` gives
            `unet.mid_block.resnets.0.conv1`.
        run: called once, with compiled blocks running eagerly.

    None when no module did: all stayed finite, or the first bad number came from outside of them. A tensor of zeros
    and −∞ alone is an attention mask, and counts as finite. Calls from other threads pass through undisturbed and
    unseen; nothing is left behind. What `run` raises is raised on.
    """
    watch = _Watch()
    with watch.over(modules), _compiled_code_off():
        run()
    return watch.found


def is_finite(value: object) -> bool:
    """Whether every tensor in `value` (tensors, and containers and dataclasses of them) is finite, or a mask of −∞."""
    return all(_tensor_is_finite(tensor) for tensor in _tensors(value))


class _Watch:
    """Hooks of one search. `found`: the culprit's name. Only the thread that made it is watched."""

    def __init__(self) -> None:
        self.found: str | None = None
        self.thread = threading.get_ident()
        self.open: list[tuple[nn.Module, bool]] = []

    @contextmanager
    def over(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        names: dict[nn.Module, str] = {}
        for root, network in modules.items():
            for name, module in network.named_modules():
                names.setdefault(module, f"{root}.{name}".replace("._orig_mod", "").rstrip("."))
        with ExitStack() as hooks:
            for module, name in names.items():
                hooks.callback(module.register_forward_pre_hook(self._before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(self._after(name)).remove)
            yield

    # Another thread may call a hook that is being removed, without the keywords that it was registered for: hence the
    # default.
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] = _NONE) -> None:
        if threading.get_ident() == self.thread and self.found is None:
            self.open.append((module, is_finite(args) and is_finite(kwargs)))

    def _after(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], object], None]:
        def after(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            if threading.get_ident() != self.thread or self.found is not None:
                return
            while self.open:  # what a caught exception left open lies above
                opened, was_finite = self.open.pop()
                if opened is module:
                    if was_finite and not is_finite(output):
                        self.found = name
                    return

        return after


@contextmanager
def _compiled_code_off() -> Iterator[None]:
    """Compiled modules run as written inside the block, so that hooks see their parts; nothing if none can exist."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _eager, torch.compiler.set_stance("force_eager"):
        yield


def _tensors(value: object) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def _tensor_is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() and not tensor.is_complex():
        return True
    if bool(torch.isfinite(tensor).all()):
        return True
    return tensor.is_floating_point() and bool(((tensor == 0) | tensor.isneginf()).all())
