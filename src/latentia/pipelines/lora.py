"""LoraMixin: low-rank adapters of a pipeline's networks, from and to the files that everyone exchanges."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from latentia.core.artifacts import load_state_dict
from latentia.core.files import write_atomic
from latentia.core.hub import SAFE_PATTERNS, resolve_folder
from latentia.core.weight_files import PICKLES, read_header
from latentia.errors import ArtifactError, InputError, check_choice, unknown_choice
from latentia.formats.lora import Lora, read_lora, write_lora
from latentia.nn import lora
from latentia.nn.adapted import adaptable

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
"""Name of a LoRA file that needs no `weight_name`."""

Layers = nn.Module | Mapping[str, torch.Tensor]
Source = str | os.PathLike[str] | Mapping[str, torch.Tensor]


class _OnClassToo:
    """A method that is called on the class, too, as Diffusers' `save_lora_weights` is; the first argument is then None."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, pipe: Any, cls: type) -> Callable[..., Any]:
        return partial(self.function, pipe, cls)


class LoraMixin:
    """Loading, weighing, fusing and saving adapters; Diffusers' methods of the same names.

    Class attribute `lora_components`: component of a LoRA file → attribute of the pipeline that holds the network.
    The adapters live in the networks (see `latentia.nn.lora`); the mixin keeps nothing.
    """

    lora_components: ClassVar[Mapping[str, str]] = {"unet": "unet", "text_encoder": "text_encoder"}

    def _lora_networks(self) -> dict[str, nn.Module]:
        present = {component: getattr(self, name) for component, name in self.lora_components.items()}
        return {component: network for component, network in present.items() if network is not None}

    def _with_adapters(self) -> dict[str, nn.Module]:
        return {c: network for c, network in self._lora_networks().items() if lora.adapter_names(network)}

    # Loading -------------------------------------------------------------------------------------------------

    def load_lora_weights(
        self,
        source: Source,
        weight_name: str | None = None,
        adapter_name: str | None = None,
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        """Load an adapter and make it the only active one, with weight 1.

        Every layout of `latentia.formats.lora` is read. All is checked before anything is changed.

        Args:
            source: a file, a folder or Hub id that holds one, or the tensors themselves.
            weight_name: the file in the folder; None: `pytorch_lora_weights.safetensors`, or else the only one there.
            adapter_name: how to call it; None: `default_0`, `default_1`, …
            subfolder, revision, local_files_only, cache_dir: as of `ModelMixin.from_pretrained`.

        Raises `ArtifactError` for a file that is missing, broken or of another kind (saying what was found), and one
        that lists every layer that the networks do not have and every shape that differs; `InputError` for a name
        that is taken.
        """
        if isinstance(source, Mapping):
            state, metadata = dict(source), {}
        else:
            where = {"subfolder": subfolder, "revision": revision, "cache_dir": cache_dir}
            state, metadata = _read(_locate(source, weight_name, local_files_only=local_files_only, **where))
        networks = self._lora_networks()
        taken = self._adapter_names()
        name = _free_name(taken) if adapter_name is None else adapter_name
        if name in taken:
            raise InputError(f"there is an adapter {name!r} already: delete it first, or choose another name")
        found = read_lora(state, {component: adaptable(network) for component, network in networks.items()}, metadata)
        _check_fits(networks, found)
        for component, weights in found.items():
            lora.load_adapter(networks[component], name, weights)
        self.set_adapters(name)

    def _adapter_names(self) -> list[str]:
        networks = self._lora_networks().values()
        return list(dict.fromkeys(name for network in networks for name in lora.adapter_names(network)))

    # Choosing ------------------------------------------------------------------------------------------------

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: float | Mapping[str, float] | Sequence[float | Mapping[str, float]] | None = None,
    ) -> None:
        """Make exactly these adapters active.

        Args:
            adapter_names: one name or several.
            adapter_weights: one weight for all, or one for each; a weight is a number (1: as trained, 0: without
                effect) or `{"unet": 0.8, "text_encoder": 0.5}`, where a component left out has 1. None: 1.

        Raises `UnknownChoiceError` for an unknown name, `InputError` for weights that do not fit; nothing is changed.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if isinstance(adapter_weights, Sequence):
            weights = list(adapter_weights)
        else:
            weights = [1.0 if adapter_weights is None else adapter_weights] * len(names)
        if len(weights) != len(names):
            raise InputError(f"{len(weights)} weights for {len(names)} adapters: give one weight, or one for each")
        for name in names:
            self._check_known(name)
        networks = self._with_adapters()
        plans = {}
        for component, network in networks.items():
            here = lora.adapter_names(network)
            plans[component] = {n: self._weight(w, component) for n, w in zip(names, weights) if n in here}
            lora.check_weights(network, plans[component])
        for component, network in networks.items():
            lora.set_adapters(network, plans[component])

    def _weight(self, weight: float | Mapping[str, float], component: str) -> float:
        if not isinstance(weight, Mapping):
            return weight
        for name in weight:
            check_choice("component of an adapter's weight", name, self.lora_components)
        return weight.get(component, 1.0)

    def _check_known(self, name: str) -> None:
        names = self._adapter_names()
        if name not in names:
            raise unknown_choice("adapter", name, names or ["(there is none: load one first)"])

    def get_active_adapters(self) -> list[str]:
        """Names of the active adapters."""
        networks = self._lora_networks().values()
        return list(dict.fromkeys(name for network in networks for name in lora.active_adapters(network)))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Component → names of the adapters in it."""
        return {component: lora.adapter_names(network) for component, network in self._with_adapters().items()}

    def enable_lora(self) -> None:
        """Let the active adapters act again."""
        for network in self._lora_networks().values():
            lora.enable_adapters(network)

    def disable_lora(self) -> None:
        """Compute as without adapters until `enable_lora`."""
        for network in self._lora_networks().values():
            lora.enable_adapters(network, False)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take adapters out. Raises `UnknownChoiceError` for an unknown name, `InputError` for a fused one."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(dict.fromkeys(adapter_names))
        networks = self._with_adapters().values()
        for name in names:
            self._check_known(name)
            if any(name in lora.fused_adapters(network) for network in networks):
                raise InputError(f"adapter {name!r} is fused into the weights: call unfuse_lora first")
        for network in networks:
            for name in set(names) & set(lora.adapter_names(network)):
                lora.remove_adapter(network, name)

    def unload_lora_weights(self) -> None:
        """Take all adapters out; those that are fused stay in the weights for good."""
        for network in self._lora_networks().values():
            lora.unload(network)

    # Fusing --------------------------------------------------------------------------------------------------

    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = True,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Add adapters into the weights: the same pictures, at the speed of the network alone.

        Args:
            components: `("unet", "text_encoder")`, or some of them; None: all.
            lora_scale: times the weight of every adapter.
            safe_fusing: an overflow is always an error and changes nothing; the argument is Diffusers'.
            adapter_names: None: the active ones.

        Raises `UnknownChoiceError` for an unknown name, `InputError` when there is nothing to fuse or it is fused
        already, `NonFiniteError` when weights overflow.
        """
        if isinstance(components, str) or isinstance(components, int | float):
            raise InputError(f"components must be a list of names, got {components!r}: pass lora_scale by its name")
        networks = self._chosen(components)
        wanted = self.get_active_adapters() if adapter_names is None else list(adapter_names)
        for name in wanted:
            self._check_known(name)
        plans = {c: [n for n in wanted if n in lora.adapter_names(network)] for c, network in networks.items()}
        if not any(plans.values()):
            raise InputError("there is no adapter to fuse: load one, or name one that is not active")
        done: list[nn.Module] = []
        fused = [name for component, names in plans.items() for name in names if name in lora.fused_adapters(networks[component])]
        if fused:
            raise InputError(f"adapter {', '.join(dict.fromkeys(fused))} is fused already: call unfuse_lora first")
        for component, names in plans.items():
            if names:
                lora.fuse(networks[component], names, lora_scale)

    def unfuse_lora(self, components: Sequence[str] | None = None) -> None:
        """Take fused adapters out of the weights, which are then bit for bit what they were; they act beside them."""
        for network in self._chosen(components).values():
            lora.unfuse(network)
