"""Model CPU offload: the networks of a pipeline wait in host memory and take turns on the accelerator."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from latentia.errors import InputError, check_choice
from latentia.pipelines.precision import forget_float32


class Offload:
    """Brings parts onto a device when they are used, and sends home those that are not.

        offload = Offload({"text_encoder": text_encoder, "unet": unet, "vae": vae}, "cuda")
        with offload.using("unet"):
            ...

    A part stays where it was used until another is wanted, so a loop moves nothing. Moves are Accelerate's
    (`CpuOffload`), but begin at `using` instead of at `forward`: codecs are called by other methods. One thread at a
    time is inside a `using` block; the others wait.

    Args:
        parts: networks by name. All are moved to the CPU.
        device: where they compute; None: the accelerator at hand.

    Attributes:
        device: that device.

    Raises `InputError` when there is no accelerator and none is named.
    """

    def __init__(self, parts: Mapping[str, nn.Module], device: torch.device | str | None = None) -> None:
        self.device = _execution_device(device)
        self._hooks = {name: _hook(part, self.device) for name, part in parts.items()}
        self._turn = threading.RLock()
        self._present: list[str] = []
        self._wanted: list[str] = []
        self._removed = False
        with self._turn:
            for name in self._hooks:
                self._send_home(name)

    @property
    def present(self) -> tuple[str, ...]:
        """Names of the parts that are on the device now."""
        return tuple(self._present)

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """Within the block the parts called `names` are on the device, and those of blocks around it.

        All others are sent home first. Raises `UnknownChoiceError` for a name that is none, `InputError` after
        `remove`.
        """
        with self._turn:
            self._check(names)
            before = self._wanted
            self._wanted = [*before, *names]
            try:
                self.release()
                for name in names:
                    self._bring(name)
                yield
            finally:
                self._wanted = before

    def release(self) -> None:
        """Send home all parts but those of blocks around this call; waits for running blocks of other threads."""
        with self._turn:
            for name in [name for name in self._present if name not in self._wanted]:
                self._send_home(name)

    def remove(self) -> None:
        """Send every part home and let go of all of them. Raises `InputError` inside a `using` block."""
        with self._turn:
            if self._wanted:
                raise InputError(f"{', '.join(self._wanted)} cannot be let go while in use: leave the block first")
            self.release()
            self._hooks = {}
            self._removed = True

    def _check(self, names: tuple[str, ...]) -> None:
        if self._removed:
            raise InputError("offloading was switched off: its parts are moved by their owner now")
        for name in names:
            check_choice("part", name, self._hooks)

    def _bring(self, name: str) -> None:
        if name in self._present:
            return
        user = self._hooks[name]
        self._present.append(name)
        try:
            if any(True for _ in user.model.parameters()):  # Accelerate asks the first one where the part is
                user.hook.pre_forward(user.model)
            else:
                user.model.to(self.device)
        except BaseException:  # out of memory half-way, say: nothing stays in two places
            self._send_home(name)
            raise

    def _send_home(self, name: str) -> None:
        user = self._hooks[name]
        user.offload()
        forget_float32(user.model)
        if name in self._present:
            self._present.remove(name)
            _clear_cache()


def _hook(part: nn.Module, device: torch.device) -> Any:
    from accelerate.hooks import CpuOffload, UserCpuOffloadHook

    return UserCpuOffloadHook(part, CpuOffload(execution_device=device))


def _clear_cache() -> None:
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache()


def _execution_device(device: torch.device | str | None) -> torch.device:
    """The device asked for, or the accelerator at hand, with its index."""
    if device is None:
        found = torch.accelerator.current_accelerator()
        if found is None or not torch.accelerator.is_available():
            raise InputError("this machine has no accelerator to offload from: leave the pipeline on the CPU")
        device = found
    device = torch.device(device)
    if device.index is None and device.type not in ("cpu", "meta", "mps"):
        device = torch.device(device.type, torch.accelerator.current_device_index())
    return device
