"""LoraMixin: low-rank adapters of a pipeline's networks, from and to the files that everyone exchanges."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from latentia.core.artifacts import load_state_dict, write_safetensors
from latentia.core.files import write_atomic
from latentia.core.hub import resolve_folder
from latentia.core.model import check_safe
from latentia.core.weight_files import PICKLES, read_header
from latentia.errors import ArtifactError, InputError, check_choice, unknown_choice
from latentia.formats.lora import Lora, Weights, read_layers, read_lora, write_lora
from latentia.nn import lora
from latentia.nn.adapted import adaptable
from latentia.pipelines.folder import uncompiled

WEIGHT_NAME = "pytorch_lora_weights.safetensors"
"""Name of a LoRA file that needs no `weight_name`."""

Tensors = Mapping[str, torch.Tensor]
Weight = float | Mapping[str, float]


class _OnClassToo:
    """A method that can be called on the class as well (the first argument is then None), as Diffusers' saving is."""

    def __init__(self, function: Callable[..., Path | None]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    def __get__(self, pipe: Any, cls: type) -> Callable[..., Path | None]:
        return partial(self.function, pipe)


class LoraMixin:
    """Loading, weighing, fusing and saving adapters, by Diffusers' methods.

    Class attribute `lora_components`: component of a LoRA file → attribute of the pipeline that holds the network, or
    None. The adapters live in the networks (see `latentia.nn.lora`); the mixin itself keeps nothing.
    """

    lora_components: ClassVar[Mapping[str, str]] = {"unet": "unet", "text_encoder": "text_encoder"}

    def _lora_networks(self, components: Sequence[str] | None = None) -> nn.ModuleDict:
        """The networks that are there, as one, so that what is done to them is done to all or none."""
        for name in components or ():
            check_choice("component with adapters", name, self.lora_components)
        present = {name: getattr(self, attribute) for name, attribute in self.lora_components.items()}
        chosen = present if components is None else {name: present[name] for name in components}
        return nn.ModuleDict({name: uncompiled(network) for name, network in chosen.items() if network is not None})

    # Loading and saving --------------------------------------------------------------------------------------

    def load_lora_weights(
        self,
        source: str | os.PathLike[str] | Tensors,
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

        Raises `ArtifactError` for a file that is missing, broken or of another kind (saying what was found), or that
        does not fit, listing every layer that the networks lack or every shape that differs; `InputError` for a name
        that is taken.
        """
        metadata: dict[str, str] = {}
        if isinstance(source, Mapping):
            state = dict(source)
        else:
            state, metadata = _read(_locate(source, weight_name, subfolder, revision, local_files_only, cache_dir))
        networks = self._lora_networks()
        taken = lora.adapter_names(networks)
        if adapter_name is None:
            adapter_name = next(name for i in range(len(taken) + 1) if (name := f"default_{i}") not in taken)
        layers = {component: adaptable(network) for component, network in networks.items()}
        found = read_lora(state, layers, metadata)
        flat = {f"{component}.{path}": value for component, part in found.items() for path, value in part.items()}
        lora.load_adapter(networks, adapter_name, flat)
        lora.set_adapters(networks, {adapter_name: 1.0})

    @_OnClassToo
    def save_lora_weights(
        self: "LoraMixin | None",
        save_directory: str | os.PathLike[str],
        unet_lora_layers: nn.Module | Tensors | None = None,
        text_encoder_lora_layers: nn.Module | Tensors | None = None,
        *,
        adapter_name: str | None = None,
        weight_name: str = WEIGHT_NAME,
        format: str = "diffusers",
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        is_main_process: bool = True,
        safe_serialization: bool = True,
    ) -> Path | None:
        """Write one adapter into a folder, and return the file.

        On a pipeline, `adapter_name` (None: the only one there is). On the class or a pipeline, layers given as what
        `latentia.nn.lora.add_adapter` returned, or as tensors `PATH.lora_A.weight` with PEFT's settings beside them.

        Args:
            save_directory: made if missing; other files in it stay.
            unet_lora_layers, text_encoder_lora_layers: layers of each.
            adapter_name: which of the pipeline's adapters.
            weight_name: name of the file.
            format: `diffusers` or `kohya`.
            unet_lora_adapter_metadata, text_encoder_lora_adapter_metadata: `{"lora_alpha": …}` of layers that are
                tensors; None: α = r.
            is_main_process: False writes nothing and returns None.
            safe_serialization: False is refused: nothing is pickled.

        Raises `UnknownChoiceError` for an unknown adapter or format, `InputError` when there is nothing to save, or
        more than one adapter to choose from, `ArtifactError` when the disk refuses.
        """
        check_safe(safe_serialization)
        if Path(weight_name).name != weight_name or not weight_name.endswith(".safetensors"):
            raise InputError(f"weight_name must be a file name ending in .safetensors, got {weight_name!r}")
        if Path(save_directory).is_file():
            raise ArtifactError(f"{save_directory} is a file: give a folder to save into")
        given = {
            "unet": (unet_lora_layers, unet_lora_adapter_metadata),
            "text_encoder": (text_encoder_lora_layers, text_encoder_lora_adapter_metadata),
        }
        found = {name: _layers(layers, config or {}) for name, (layers, config) in given.items() if layers is not None}
        if not found and self is None:
            raise InputError("there is nothing to save: give unet_lora_layers or text_encoder_lora_layers")
        tensors, metadata = write_lora(found or self._adapter(adapter_name), format)  # type: ignore[union-attr]
        if not is_main_process:
            return None
        path = Path(save_directory) / weight_name
        _write(path, tensors, metadata)
        return path

    def _adapter(self, name: str | None) -> Lora:
        networks = self._lora_networks()
        names = lora.adapter_names(networks)
        if name is None and len(names) != 1:
            raise InputError(f"say which adapter to save by adapter_name; there are: {', '.join(names) or 'none'}")
        found: Lora = {}
        for path, weights in lora.adapter_state(networks, names[0] if name is None else name).items():
            component, _, rest = path.partition(".")
            found.setdefault(component, {})[rest] = weights
        return found

    # Choosing ------------------------------------------------------------------------------------------------

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        adapter_weights: Weight | Sequence[Weight] | None = None,
    ) -> None:
        """Make exactly these adapters active.

        Args:
            adapter_names: one name or several.
            adapter_weights: one weight for all, or one for each; a weight is a number (1: as trained, 0: without
                effect) or `{"unet": 0.8, "text_encoder": 0.5}`, where a component left out has 1. None: 1.

        Raises `UnknownChoiceError` for an unknown name, `InputError` for weights that do not fit and for an adapter
        that is fused; nothing is changed then.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        if adapter_weights is None or isinstance(adapter_weights, float | int | Mapping):
            weights: list[Weight] = [1.0 if adapter_weights is None else adapter_weights] * len(names)
        elif isinstance(adapter_weights, Sequence) and not isinstance(adapter_weights, str):
            weights = list(adapter_weights)
        else:
            raise InputError(
                f"a weight must be a finite number, and adapter_weights one or a list: got {adapter_weights!r}"
            )
        if len(weights) != len(names):
            raise InputError(f"{len(weights)} weights for {len(names)} adapters: give one weight, or one for each")
        if len(set(names)) != len(names):
            raise InputError(f"adapter_names must name each adapter once, got {', '.join(names)}")
        networks = self._lora_networks()
        _check_known(names, networks)
        plans = {}
        for component, network in networks.items():
            here = lora.adapter_names(network)
            plans[component] = {n: self._weight_in(component, w) for n, w in zip(names, weights) if n in here}
            lora.check_weights(network, plans[component])
        for component, network in networks.items():
            lora.set_adapters(network, plans[component])

    def _weight_in(self, component: str, weight: Weight) -> float:
        if not isinstance(weight, Mapping):
            return weight
        for name in weight:
            check_choice("component of an adapter's weight", name, self.lora_components)
        return weight.get(component, 1.0)

    def get_active_adapters(self) -> list[str]:
        """Names of the active adapters."""
        return list(lora.active_adapters(self._lora_networks()))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Component → names of the adapters in it."""
        names = {component: lora.adapter_names(network) for component, network in self._lora_networks().items()}
        return {component: there for component, there in names.items() if there}

    def enable_lora(self) -> None:
        """Let the active adapters act again."""
        lora.enable_adapters(self._lora_networks())

    def disable_lora(self) -> None:
        """Compute as without the active adapters until `enable_lora`."""
        lora.enable_adapters(self._lora_networks(), False)

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take adapters out. Raises `UnknownChoiceError` for an unknown name, `InputError` for a fused one."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(dict.fromkeys(adapter_names))
        networks = self._lora_networks()
        _check_known(names, networks)
        fused = [name for name in names if name in lora.fused_adapters(networks)]
        if fused:
            raise InputError(f"adapter {', '.join(fused)} is fused into the weights: call unfuse_lora first")
        for name in names:
            lora.remove_adapter(networks, name)

    def unload_lora_weights(self) -> None:
        """Take all adapters out; those that are fused stay in the weights for good."""
        lora.unload(self._lora_networks())

    # Fusing --------------------------------------------------------------------------------------------------

    def fuse_lora(
        self,
        components: Sequence[str] | None = None,
        lora_scale: float = 1.0,
        safe_fusing: bool = True,
        adapter_names: Sequence[str] | None = None,
    ) -> None:
        """Add adapters into the weights: the same pictures, at the speed of the networks alone.

        Args:
            components: `["unet", "text_encoder"]`, or one of them; None: all there are.
            lora_scale: times the weight of every adapter.
            safe_fusing: Diffusers' argument. An overflow is always an error, and then nothing is changed.
            adapter_names: None: the active ones.

        Raises `UnknownChoiceError` for an unknown name, `InputError` when there is nothing to fuse or it is fused
        already, `NonFiniteError` when weights overflow.
        """
        if isinstance(components, str | int | float):
            raise InputError(f"components must be a list of names, got {components!r} (a scale goes to lora_scale=)")
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        lora.fuse(self._lora_networks(components), names, lora_scale)

    def unfuse_lora(self, components: Sequence[str] | None = None) -> None:
        """Take fused adapters out of the weights, which are then bit for bit what they were; they act beside them."""
        lora.unfuse(self._lora_networks(components))


def _check_known(names: Sequence[str], networks: nn.ModuleDict) -> None:
    known = lora.adapter_names(networks)
    for name in names:
        if name not in known:
            raise unknown_choice("adapter", name, known or ["(there is none: load one first)"])


def _layers(layers: nn.Module | Tensors, config: Mapping[str, Any]) -> dict[str, Weights]:
    if isinstance(layers, nn.Module):
        own = lora.tree_state(layers)
        return own or read_layers(layers.state_dict(), config)
    return read_layers(layers, config)


# Files -----------------------------------------------------------------------------------------------------


def _locate(
    source: str | os.PathLike[str],
    weight_name: str | None,
    subfolder: str | None,
    revision: str | None,
    local_files_only: bool,
    cache_dir: str | os.PathLike[str] | None,
) -> Path:
    """The file that is meant; `ArtifactError` when there is none, or more than one."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.suffix in (".safetensors", *PICKLES) and not path.is_dir():
        raise ArtifactError(f"no file {path}")
    if weight_name is not None and (Path(weight_name).is_absolute() or ".." in Path(weight_name).parts):
        raise InputError(f"weight_name must be a file inside the folder, got {weight_name!r}")
    folder = resolve_folder(
        source,
        subfolder=subfolder,
        revision=revision,
        local_files_only=local_files_only,
        cache_dir=cache_dir,
        allow_patterns=["*.safetensors"] if weight_name is None else [weight_name],
        complete=lambda found: (found / weight_name).is_file() if weight_name else bool(_candidates(found)),
    )
    candidates = _candidates(folder)
    name = weight_name or (WEIGHT_NAME if WEIGHT_NAME in candidates else "")
    if not name and len(candidates) == 1:
        name = candidates[0]
    if not name or not (folder / name).is_file():
        what = f"no {weight_name}" if weight_name else f"{len(candidates) or 'no'} LoRA files, and no {WEIGHT_NAME}"
        there = ", ".join(candidates) or "no safetensors files"
        raise ArtifactError(f"{folder} has {what}: name one by weight_name. There are: {there}")
    return folder / name


def _candidates(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors") if path.is_file())


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a file; a pickle is read as tensors only."""
    state = load_state_dict(path)
    return state, {} if path.suffix in PICKLES else read_header(path).metadata


def _write(path: Path, tensors: Tensors, metadata: Mapping[str, str]) -> None:
    write_atomic(path, lambda beside: write_safetensors(beside, tensors, metadata))
