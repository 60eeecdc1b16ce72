"""DiffusionPipeline: named components, a folder, and a call.

A pipeline holds its components and its plain values, and nothing about any call: see `call.PipelineCall`.
"""

import logging
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import nn

from latentia.core.arguments import check_count
from latentia.core.config import FrozenConfig
from latentia.core.model import ModelMixin, check_options, check_safe, one_dtype
from latentia.core.protocols import Codec, Scheduler, TokenCodec
from latentia.core.rng import Generators
from latentia.errors import ArtifactError, InputError, unknown_choice
from latentia.pipelines import folder as layout
from latentia.pipelines.call import ALIASES, PER_CALL

logger = logging.getLogger(__name__)


@runtime_checkable
class TextEncoder(Protocol):
    """Token ids (B, L) → an output with `.last_hidden_state` (B, L, D); ours, or any of transformers."""

    config: Any

    def __call__(self, input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Encode."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Text → token ids; any tokenizer of transformers."""

    model_max_length: int

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        """Tokenise."""
        ...


@runtime_checkable
class Network(Protocol):
    """A denoiser: an `nn.Module` with a config."""

    config: Any

    def parameters(self) -> Any:
        """The weights."""
        ...


ROLES: Mapping[str, tuple[type, str]] = {
    "codec": (Codec, "a codec (to_latents, from_latents, latent_shape, bits_per_element), such as AutoencoderKL"),
    "token_codec": (TokenCodec, "a codec with tokens (to_tokens, from_tokens, num_codes), such as VQModel"),
    "denoiser": (Network, "a network with a config, such as UNet2DModel"),
    "scheduler": (Scheduler, "a scheduler (set_timesteps, scale_model_input, step, add_noise), such as DDIMScheduler"),
    "text_encoder": (TextEncoder, "a text encoder, such as CLIPTextModel"),
    "tokenizer": (Tokenizer, "a tokenizer of transformers, such as CLIPTokenizer"),
    "unused": (type(None), "None: Latentia does not run it"),
}
"""Role → what a component must be, and how to say so. `unused` components exist in Diffusers' folders only."""


class DiffusionPipeline(ABC):
    """Base of every pipeline: components by name, loading, saving, moving.

    Class attributes:
        roles: component name → role, a key of `ROLES`, in constructor order.
        optional_components: those that may be None.
        value_names: plain constructor values, stored in the index when given.
    """

    roles: ClassVar[Mapping[str, str]] = {}
    optional_components: ClassVar[frozenset[str]] = frozenset()
    value_names: ClassVar[tuple[str, ...]] = ()
    _callback_tensor_inputs: ClassVar[tuple[str, ...]] = ("latents",)
    __call__: Callable[..., Any]

    def __init__(self, components: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> None:
        """Hold `components` (checked against `roles`) and plain constructor `values` (None: not given)."""
        object.__setattr__(self, "_values", {k: v for k, v in (values or {}).items() if v is not None})
        object.__setattr__(self, "_progress", {})
        object.__setattr__(self, "_offload", None)
        for name in self.roles:
            setattr(self, name, components[name])

    _values: dict[str, Any]
    _progress: dict[str, Any]
    _offload: Any

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.roles:
            self._check_component(name, value)
            if self._offload is not None and isinstance(value, nn.Module):
                raise InputError(f"{name} cannot be replaced while offloading: call disable_model_cpu_offload() first")
        elif ALIASES.get(name, name) in PER_CALL:
            raise InputError(
                f"{name} belongs to one call, not to the pipeline: pass it to the call, or set it on the `pipe` that "
                "callback_on_step_end receives (to stop a call from outside pass cancel=CancelToken())"
            )
        super().__setattr__(name, value)

    def _check_component(self, name: str, value: Any) -> None:
        kind, wanted = ROLES[self.roles[name]]
        if value is None and name in self.optional():
            return
        if isinstance(value, type) or not isinstance(value, kind):
            given = "None" if value is None else f"class {value.__name__}" if isinstance(value, type) else ""
            library = type(value).__module__.partition(".")[0]
            foreign = "" if library in ("builtins", "latentia") else f" of {library}"
            given = given or type(value).__name__ + foreign
            raise InputError(f"{type(self).__name__}: component {name!r} must be {wanted}; got {given}")

    @property
    def components(self) -> dict[str, Any]:
        """Components by name, as the constructor takes them."""
        return {name: getattr(self, name) for name in self.roles}

    @property
    def plain_values(self) -> dict[str, Any]:
        """Constructor values that are no components."""
        return dict(self._values)

    @property
    def config(self) -> FrozenConfig:
        """What `model_index.json` holds: `[library, class]` of every component, and the plain values."""
        return FrozenConfig({**self._values, **{k: layout.entry_of(v) for k, v in self.components.items()}})

    @property
    def networks(self) -> list[nn.Module]:
        """The components that hold weights."""
        return [part for part in self.components.values() if isinstance(part, nn.Module)]

    @property
    def device(self) -> torch.device:
        """Device of the first network."""
        return next((p.device for part in self.networks for p in part.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the first network."""
        found = (p.dtype for part in self.networks for p in part.parameters() if p.is_floating_point())
        return next(found, torch.float32)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move every network: `to("cuda")`, `to(torch.float16)`, `to("cuda", torch.float16)`. Returns the pipeline."""
        if self._offload is not None:
            raise InputError("this pipeline moves its parts by itself: call disable_model_cpu_offload() before to(...)")
        for part in self.networks:
            part.to(*args, **kwargs)
        return self

    @property
    def execution_device(self) -> torch.device:
        """Where the networks compute: the device they are on, or the one they are brought to when offloading."""
        return self.device if self._offload is None else self._offload.device

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep the networks in host memory and bring one at a time onto an accelerator.

        That is number `gpu_id` of its kind, or `device`, or the accelerator at hand. The largest network alone must
        fit there. Calls from several threads take turns. Raises `InputError` when there is no accelerator and none is
        named.
        """
        from latentia.pipelines.offload import Offload

        if gpu_id is not None:
            if device is not None and torch.device(device).index is not None:
                raise InputError(f"gpu_id={gpu_id} and device={device} name an accelerator twice: give one of them")
            kind = torch.accelerator.current_accelerator() if device is None else torch.device(device)
            device = torch.device(kind.type if kind is not None else "cuda", check_count("gpu_id", gpu_id, least=0))
        self.disable_model_cpu_offload()
        parts = {name: part for name, part in self.components.items() if isinstance(part, nn.Module)}
        object.__setattr__(self, "_offload", Offload(parts, device))

    def disable_model_cpu_offload(self) -> None:
        """Bring everything back to host memory and move nothing any more."""
        if self._offload is not None:
            self._offload.remove()
        object.__setattr__(self, "_offload", None)

    def _using(self, *names: str) -> AbstractContextManager[Any]:
        """Within this the components `names` are on the execution device; without names, the block owns the device."""
        return nullcontext() if self._offload is None else self._offload.using(*names)

    def enable_attention_slicing(self, slice_size: str | int | None = "auto") -> None:
        """Attend by groups of heads: less memory, the same pictures. See `ModelMixin.enable_attention_slicing`."""
        for part in map(layout.uncompiled, self.networks):
            if isinstance(part, ModelMixin):
                part.enable_attention_slicing(slice_size)

    def disable_attention_slicing(self) -> None:
        """Attend with all heads at once."""
        for part in map(layout.uncompiled, self.networks):
            if isinstance(part, ModelMixin):
                part.disable_attention_slicing()

    def set_progress_bar_config(self, **options: Any) -> None:
        """Options of the tqdm bar, e.g. `disable=True` or `desc="sampling"`."""
        super().__setattr__("_progress", options)

    def progress_bar(self, total: int) -> Any:
        """A tqdm bar of `total` turns."""
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        return tqdm(total=total, **self._progress)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={type(part).__name__}" for name, part in self.components.items())
        return f"{type(self).__name__}({parts})"

    @abstractmethod
    def decode(self, z: torch.Tensor, generator: Generators = None) -> torch.Tensor:
        """What is sampled → data in about [-1, 1]."""

    # Folder ----------------------------------------------------------------------------------------------

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        safe_serialization: bool = True,
    ) -> Path:
        """Write Diffusers' pipeline folder and return it.

        An old index is removed first and the new one written last: a folder that has one is whole, never a mixture.
        Arguments as of `ModelMixin.save_pretrained`. Raises `ArtifactError` when the disk refuses.
        """
        check_safe(safe_serialization)
        path = Path(folder)
        layout.check_target(path, self.components, variant, max_shard_size)
        layout.remove_index(path)
        for name, component in self.components.items():
            layout.save_component(component, path / name, variant, max_shard_size)
        layout.write_index(path, type(self).__name__, self.components, self._values)
        return path

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> Any:
        """Load a pipeline from a folder or a Hub id.

        On `DiffusionPipeline` the class is the one that the folder names; on a subclass it is that subclass.
        `dtype` (Diffusers: `torch_dtype`), `variant`, `revision`, `local_files_only` and `cache_dir` are those of
        `ModelMixin.from_pretrained`. `overrides` are components and constructor values by name, used in place of the
        folder's.
        Raises `ArtifactError` for a missing, broken or hostile folder; no code from it is ever run.
        """
        check_options(overrides)
        dtype = one_dtype(dtype, torch_dtype)
        index = layout.fetch_index(name_or_path, variant, revision, local_files_only, cache_dir)
        built = cls
        if cls is DiffusionPipeline:
            where = index.folder / layout.INDEX
            built = layout.public_class(index.class_name, DiffusionPipeline, "pipeline class", where)  # type: ignore[type-abstract]
        return built._build(index, dtype, variant, overrides)

    @classmethod
    def from_single_file(cls, path: str | os.PathLike[str], **options: Any) -> Any:
        """Build a pipeline from one checkpoint file of another project (CompVis, Stability, LDM, taming).

        On `DiffusionPipeline` the class is the one that the weights call for. Options, and what is raised:
        `latentia.pipelines.single_file.load_single_file`.
        """
        from latentia.pipelines.single_file import load_single_file

        return load_single_file(path, pipeline_class=None if cls is DiffusionPipeline else cls, **options)

    @classmethod
    def _build(
        cls,
        index: layout.PipelineIndex,
        dtype: torch.dtype | None,
        variant: str | None,
        overrides: Mapping[str, Any],
    ) -> Self:
        for name in overrides:
            if name not in (*cls.roles, *cls.value_names):
                raise unknown_choice(f"argument of {cls.__name__}", name, (*cls.roles, *cls.value_names))
        where = index.folder / layout.INDEX
        foreign = [name for name, entry in index.components.items() if name not in cls.roles and entry is not None]
        missing = [name for name in cls.roles if name not in index.components and name not in overrides]
        if foreign or [name for name in missing if name not in cls.optional()]:
            raise ArtifactError(
                f"{where} ({index.class_name}) does not fit {cls.__name__}: it has {', '.join(index.components)}, "
                f"wanted are {', '.join(cls.roles)}. Load it with DiffusionPipeline, or pass what is missing by name"
            )
        ignored = [name for name in index.values if name not in cls.value_names]
        if ignored:
            warnings.warn(f"{cls.__name__} ignores {', '.join(ignored)} of {where}", stacklevel=3)
        arguments = {name: value for name, value in index.values.items() if name in cls.value_names}
        wanted = [name for name, role in cls.roles.items() if role != "unused" and name not in (*overrides, *missing)]
        unused = [name for name, role in cls.roles.items() if role == "unused" and index.components.get(name)]
        if unused:
            logger.warning("%s of %s is not run by Latentia", " and ".join(unused), where.parent)
        parts = layout.load_components(index, wanted, dtype, variant)
        arguments |= dict.fromkeys(name for name in cls.roles if name not in wanted)
        return cls(**{**arguments, **parts, **overrides})

    @classmethod
    def optional(cls) -> frozenset[str]:
        """Components that may be missing or None."""
        return cls.optional_components | {name for name, role in cls.roles.items() if role == "unused"}
