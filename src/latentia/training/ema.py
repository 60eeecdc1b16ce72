"""EMAModel: a running average of weights, with Diffusers' contract."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from latentia.core.config import to_json
from latentia.core.files import read_json, write_text_atomic
from latentia.core.model import ModelMixin
from latentia.errors import InputError

SCALARS: dict[str, type | tuple[type, ...]] = {
    "decay": (float, int),
    "min_decay": (float, int),
    "optimization_step": int,
    "update_after_step": int,
    "use_ema_warmup": bool,
    "inv_gamma": (float, int),
    "power": (float, int),
}
"""What a saved average records beside its tensors, and of which type; merged into the folder's `config.json`."""


class EMAModel:
    """Exponential moving average of weights: shadow ← decay·shadow + (1 − decay)·weight after every step.

    With n = max(0, step − update_after_step − 1) the decay of a step is 0 for n = 0 (a plain copy), else

        (1 + n)/(10 + n),  or with `use_ema_warmup`  1 − (1 + n/inv_gamma)^(−power),

    clamped to [`min_decay`, `decay`]. Tensors that do not require a gradient are copied, not averaged; so pass
    `[*model.parameters(), *model.buffers()]` to carry a model's buffers along (batch norm's, say). Unlike
    Diffusers' class it refuses another list of tensors than the one it was built from.

    Args:
        parameters: tensors to follow; order matters.
        decay, min_decay: bounds of the decay, in [0, 1].
        update_after_step: steps during which the average is only a copy.
        use_ema_warmup, inv_gamma, power: γ = 1 and power 2/3 reach 0.999 after 31.6k steps, 0.9999 after a
            million; power 3/4 after 10k and 215k.
        foreach: update all tensors in a few fused calls rather than one by one; the same numbers.
        model_cls, model_config: what `save_pretrained` builds.

    Attributes: `shadow_params`; `optimization_step`; `cur_decay_value`, the decay last used (None before any).
    """

    def __init__(
        self,
        parameters: Iterable[torch.Tensor],
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_ema_warmup: bool = False,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        foreach: bool = True,
        model_cls: type[ModelMixin] | None = None,
        model_config: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(parameters, torch.nn.Module):
            raise InputError("EMAModel follows a list of tensors, got a module: pass module.parameters()")
        self.shadow_params = [p.detach().clone() for p in parameters]
        self.decay, self.min_decay = decay, min_decay
        self.update_after_step = update_after_step
        self.use_ema_warmup, self.inv_gamma, self.power = use_ema_warmup, inv_gamma, power
        self.foreach = foreach
        self.model_cls, self.model_config = model_cls, model_config
        self.optimization_step = 0
        self.cur_decay_value: float | None = None
        self.temp_stored_params: list[torch.Tensor] | None = None
        check_scalars(self.state_dict())

    def get_decay(self, optimization_step: int) -> float:
        """The decay used at optimisation step `optimization_step` (from 1)."""
        n = optimization_step - self.update_after_step - 1
        if n <= 0:
            return 0.0
        rising = 1 - (1 + n / self.inv_gamma) ** -self.power if self.use_ema_warmup else (1 + n) / (10 + n)
        return max(self.min_decay, min(self.decay, rising))

    @torch.no_grad()
    def step(self, parameters: Iterable[torch.Tensor]) -> None:
        """Take the weights after an optimizer step into the average.

        Raises `InputError`, before anything changes, when `parameters` differ from the first ones in number or shape.
        """
        given = self._same_list(parameters)
        decay = self.get_decay(self.optimization_step + 1)
        averaged: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        copied: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for shadow, parameter in zip(self.shadow_params, given, strict=True):
            if shadow.dtype != parameter.dtype or shadow.device != parameter.device:
                source = parameter.to(shadow.device, shadow.dtype)
            else:
                source = parameter
            shadows, sources = averaged if parameter.requires_grad else copied
            shadows.append(shadow)
            sources.append(source)
        if self.foreach:
            if averaged[0]:
                torch._foreach_lerp_(*averaged, 1 - decay)
            if copied[0]:
                torch._foreach_copy_(*copied)
        else:
            for shadow, source in zip(*averaged, strict=True):
                shadow.lerp_(source, 1 - decay)
            for shadow, source in zip(*copied, strict=True):
                shadow.copy_(source)
        self.optimization_step += 1
        self.cur_decay_value = decay

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[torch.Tensor]) -> None:
        """Overwrite `parameters` with the averages."""
        for shadow, parameter in zip(self.shadow_params, self._same_list(parameters), strict=True):
            parameter.copy_(shadow)

    def store(self, parameters: Iterable[torch.Tensor]) -> None:
        """Keep a copy of `parameters` in CPU memory, for `restore`."""
        self.temp_stored_params = [p.detach().to("cpu", copy=True) for p in self._same_list(parameters)]

    @torch.no_grad()
    def restore(self, parameters: Iterable[torch.Tensor]) -> None:
        """Put back what `store` kept, and forget it. Raises `InputError` when nothing was stored."""
        if self.temp_stored_params is None:
            raise InputError("there are no stored weights to restore: call store(parameters) first")
        for kept, parameter in zip(self.temp_stored_params, self._same_list(parameters), strict=True):
            parameter.copy_(kept)
        self.temp_stored_params = None

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> None:
        """Move the averages; integer tensors keep their type."""
        self.shadow_params = [
            p.to(device=device, dtype=dtype if p.is_floating_point() else None, non_blocking=non_blocking)
            for p in self.shadow_params
        ]

    def pin_memory(self) -> None:
        """Move the averages to page-locked memory, for faster transfers to a GPU."""
        self.shadow_params = [p.pin_memory() for p in self.shadow_params]

    def state_dict(self) -> dict[str, Any]:
        """The scalars and `shadow_params` (references, not copies)."""
        return {**self.scalars(), "shadow_params": self.shadow_params}

    def scalars(self) -> dict[str, Any]:
        """The JSON-able part of `state_dict`."""
        return {name: vars(self)[name] for name in SCALARS}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; missing entries keep their value.

        Raises `InputError`, before anything changes, for an entry of the wrong type or other tensors.
        """
        check_scalars(state_dict)
        if "shadow_params" in state_dict:
            shadows = state_dict["shadow_params"]
            if not isinstance(shadows, list) or not all(isinstance(p, torch.Tensor) for p in shadows):
                raise InputError("shadow_params must be a list of tensors")
            self._same_list(shadows)
            self.shadow_params = [p.detach().clone() for p in shadows]
        for name in SCALARS:
            setattr(self, name, state_dict.get(name, vars(self)[name]))

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Write an ordinary model folder that holds the averages, with the scalars merged into its `config.json`."""
        if self.model_cls is None or self.model_config is None:
            raise InputError("save_pretrained needs model_cls and model_config: give both to EMAModel(...)")
        model = self.model_cls.from_config(self.model_config)
        self.copy_to(model.parameters())
        model.save_pretrained(path)
        file = Path(path) / self.model_cls.config_name
        write_text_atomic(file, to_json({**read_json(file), **self.scalars()}))

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike[str], model_cls: type[ModelMixin], foreach: bool = True
    ) -> "EMAModel":
        """Read a folder that `save_pretrained` (ours or Diffusers') wrote."""
        model = model_cls.from_pretrained(path)
        ema = cls(model.parameters(), foreach=foreach, model_cls=model_cls, model_config=model.config)
        config = model_cls.load_config(path)
        ema.load_state_dict({name: config[name] for name in SCALARS if name in config})
        return ema

    def _same_list(self, parameters: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        given = list(parameters)
        if len(given) != len(self.shadow_params):
            raise InputError(f"this average follows {len(self.shadow_params)} tensors, got {len(given)}")
        for i, (shadow, parameter) in enumerate(zip(self.shadow_params, given)):
            if shadow.shape != parameter.shape:
                raise InputError(
                    f"tensor {i} has shape {tuple(parameter.shape)}, the average's has {tuple(shadow.shape)}: "
                    "pass the same parameters in the same order"
                )
        return given


def check_scalars(state: Mapping[str, Any]) -> None:
    """Raise `InputError` for a scalar of the wrong type or outside its range."""
    for name, kind in SCALARS.items():
        value = state.get(name)
        wrong_bool = isinstance(value, bool) and kind is not bool
        if name in state and (wrong_bool or not isinstance(value, kind)):
            raise InputError(f"{name} of an average must be of type {'/'.join(names(kind))}, got {value!r}")
    for name in ("decay", "min_decay"):
        if name in state and not 0 <= state[name] <= 1:
            raise InputError(f"{name} must lie in [0, 1], got {state[name]}")


def names(kind: type | tuple[type, ...]) -> list[str]:
    """Type names for a message."""
    return [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
