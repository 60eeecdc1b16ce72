"""ModelMixin: a network that remembers its arguments and lives in a folder.

`save_pretrained(folder)` writes `config.json` and `diffusion_pytorch_model.safetensors`;
`from_pretrained` reads it back from a folder or a Hub id.
"""

import contextlib
import importlib
import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from latentia.core.artifacts import load_state_dict, save_state_dict
from latentia.core.config import ConfigMixin, freeze, to_json
from latentia.core.execution import Execution
from latentia.core.hub import resolve_folder
from latentia.core.model_loading import SkipInit, check_fits, fill
from latentia.core.transaction import current, names
from latentia.core.weight_files import STEM, index_name, locate, single_name, variants
from latentia.errors import ArtifactError, InputError, nearest

_AVERAGE_ENTRIES = frozenset(
    ("decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power")
)
"""What Diffusers' `EMAModel` adds to the config of the averaged model it saves; not arguments of the model."""

_NOT_OURS = {
    "device_map": "pass device= for one device",
    "force_download": "delete the Hub's cache of this repository instead",
    "token": "log in with `hf auth login` or set HF_TOKEN",
    "output_loading_info": "loading raises an error that names every key that does not fit",
}
"""Options of Diffusers' loader that have no meaning here, and what to do instead."""

_HARMLESS = frozenset(("low_cpu_mem_usage", "use_safetensors"))
"""Options of Diffusers' loader that ask for what always happens here."""


class ModelMixin(Execution, ConfigMixin):
    """Base of every codec and denoiser: recorded config, folder of safetensors, dtype and device.

    Class attribute `weights_stem` is the first part of the weight files' names.
    """

    weights_stem: ClassVar[str] = STEM

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the first floating parameter (or buffer, for a model without parameters)."""
        for tensor in chain(self.parameters(), self.buffers()):
            if tensor.is_floating_point():
                return tensor.dtype
        return torch.get_default_dtype()

    @property
    def device(self) -> torch.device:
        """Device of the first parameter (or buffer, for a model without parameters)."""
        for tensor in chain(self.parameters(), self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of scalar parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    @classmethod
    def convert_legacy_keys(cls, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weights as older releases named or shaped them → as this class does; the base class changes nothing."""
        return state_dict

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
        state_dict: Mapping[str, torch.Tensor] | None = None,
    ) -> Path:
        """Write `config.json` and the weights into `folder`, all or nothing, and return the folder.

        Args:
            folder: made if missing. Files of other variants, and files that are not the model's, stay.
            variant: tag in the weight files' names, `fp16` say; it does not change the dtype.
            max_shard_size: more than this goes into several files and an index.
            safe_serialization: False is refused: nothing is pickled.
            state_dict: weights to write instead of the model's own (averaged, or gathered from several processes).

        Raises `ArtifactError` when the disk refuses (the old files then stand as before) or when the new config would
        not fit another variant's weights; `InputError` for weights that are not this model's.
        """
        check_safe(safe_serialization)
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise ArtifactError(f"{folder} is a file: give a folder to save into")
        state = self.state_dict() if state_dict is None else dict(state_dict)
        if state_dict is not None:
            self._check_own(state)
        self.check_other_variants(folder, variant)
        texts = {self.config_name: to_json(self.config_to_save())}
        save_state_dict(
            state, folder, variant=variant, max_shard_size=max_shard_size, stem=self.weights_stem, texts=texts
        )
        return folder

    def _check_own(self, state: Mapping[str, torch.Tensor]) -> None:
        own = self.state_dict()
        bad = sorted(set(own) ^ set(state)) or [k for k, v in state.items() if v.shape != own[k].shape]
        if bad:
            raise InputError(f"state_dict is not one of this {type(self).__name__}: {', '.join(bad)} differ")

    def check_other_variants(self, folder: Path, variant: str | None) -> None:
        """The config is shared by all variants: refuse one that the other weights were not saved with."""
        file = current(folder / self.config_name)
        others = set(variants(names(folder), self.weights_stem)) - {variant} if folder.is_dir() else set()
        if not others or not file.is_file():
            return
        old = self.load_config(folder)
        before = {**self.config_defaults(), **old}
        changed = [k for k in self.config_arguments() if k in before and freeze(before[k], k) != self.config[k]]
        if old.get("_class_name", type(self).__name__) != type(self).__name__ or changed:
            raise ArtifactError(
                f"{folder} holds other variants ({', '.join(sorted(map(str, others)))}) of a different model "
                f"({old.get('_class_name')}; differs in: {', '.join(changed) or 'class'}): save into another folder"
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        variant: str | None = None,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        strict: bool = True,
        **config_overrides: Any,
    ) -> Self:
        """Build the model that a folder or Hub id holds, in evaluation mode.

        Args:
            name_or_path: a folder, used without the network; or a Hub id `owner/name` (cache first).
            subfolder: part of a pipeline folder, `unet` say.
            variant: tag of the weight files; exactly these are read.
            dtype: floats are cast to it, integers stay. None: as the class is built (float32).
            torch_dtype: Diffusers' name of `dtype`.
            device: where the weights go, tensor by tensor.
            strict: with False, tensors that the files lack keep their random start and extra ones are ignored.
            config_overrides: constructor arguments that replace recorded ones.

        Weights of large files that are neither cast nor moved stay in the file until they are used: they are mapped,
        privately, so that training never writes to it; and saving replaces files, so that it never changes them. Do
        not cut such a file short in place while the model lives.

        Called on `ModelMixin` itself it returns the public class that the folder names. No code is read from the
        folder. Raises `ArtifactError` for files that are missing, broken, unsafe, another class's, or do not fit
        (naming every key); `ConfigError` for unknown overrides.
        """
        check_options(config_overrides)
        dtype = one_dtype(dtype, torch_dtype)
        stem = cls.weights_stem
        folder = resolve_folder(
            name_or_path,
            subfolder=subfolder,
            revision=revision,
            local_files_only=local_files_only,
            cache_dir=cache_dir,
            allow_patterns=_patterns(cls.config_name, variant, stem),
            complete=lambda found: _is_complete(found, cls.config_name, variant, stem),
        )
        config = cls.load_config(folder)
        target = cls._class_to_build(config, folder)
        config = {k: v for k, v in config.items() if k in target.config_arguments() or k not in _AVERAGE_ENTRIES}
        locate(folder, variant, stem)  # a missing file is said before the network is built
        with SkipInit() if strict else contextlib.nullcontext():
            model = target.from_config(config, **config_overrides)
        state = target.convert_legacy_keys(
            load_state_dict(folder, variant=variant, stem=stem, mapped=True, dtype=dtype)
        )
        check_fits(model, state, str(folder), strict)
        fill(model, state, dtype, device)
        return model.eval()

    @classmethod
    def _class_to_build(cls, config: Mapping[str, Any], folder: Path) -> type[Self]:
        saved = config.get("_class_name")
        if cls is not ModelMixin:
            if saved is None or saved in {c.__name__ for c in cls.__mro__} or saved in cls.compatible_names:
                return cls
            raise ArtifactError(f"{folder} holds a {saved}, not a {cls.__name__}: load it with {saved}.from_pretrained")
        public = importlib.import_module("latentia")
        found = getattr(public, saved) if isinstance(saved, str) and saved in public.__all__ else None
        if not (isinstance(found, type) and issubclass(found, cls)):
            hint = nearest(saved, public.__all__)
            raise ArtifactError(
                f"{folder} names the class {saved!r}, which is no model of Latentia"
                + (f" (nearest: {hint})" if hint else "")
                + ": call from_pretrained on the class that wrote it"
            )
        return found


def check_safe(safe_serialization: bool) -> None:
    """Raise `InputError` for a caller who asks for a pickle."""
    if not safe_serialization:
        raise InputError("nothing is pickled: leave safe_serialization at True; safetensors files are read everywhere")


def check_options(given: dict[str, Any]) -> None:
    """Drop from `given` Diffusers' loading options that ask for nothing; `InputError` for those that cannot be had."""
    for name in sorted(given):
        if name in _NOT_OURS:
            raise InputError(f"from_pretrained has no option {name!r}: {_NOT_OURS[name]}")
        if name in _HARMLESS and given.pop(name) is False and name == "use_safetensors":
            raise InputError("use_safetensors=False is refused: pickles are not read; convert them to safetensors once")


def one_dtype(dtype: Any, torch_dtype: Any) -> torch.dtype | None:
    """The floating dtype asked for under either name; `InputError` for two different ones, or another kind."""
    if dtype is not None and torch_dtype is not None and dtype != torch_dtype:
        raise InputError(f"dtype={dtype} and torch_dtype={torch_dtype} are two names of one option: pass one")
    chosen = dtype if dtype is not None else torch_dtype
    if chosen is not None and not (isinstance(chosen, torch.dtype) and chosen.is_floating_point):
        raise InputError(f"dtype must be a floating torch.dtype such as torch.float16, got {chosen!r}")
    return chosen


def _patterns(config_name: str, variant: str | None, stem: str) -> list[str]:
    single = single_name(variant, stem)
    return [
        config_name,
        single,
        single.replace(".safetensors", "-?????-of-?????.safetensors"),
        index_name(variant, stem),
    ]


def _is_complete(folder: Path, config_name: str, variant: str | None, stem: str) -> bool:
    try:
        locate(folder, variant, stem)
    except ArtifactError:
        return False
    return current(folder / config_name).is_file()
