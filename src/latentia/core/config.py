"""Recorded constructor arguments: an object remembers how it was built, and can be built again.

`@register_to_config` on `__init__` stores every argument in a frozen `obj.config`;
`save_config` writes it as JSON (sorted keys, `_class_name`), `from_config` builds the object again,
also as another class of the same family. The file format is that of Diffusers.
"""

import enum
import functools
import importlib
import inspect
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from latentia.core.files import read_json, write_text_atomic
from latentia.core.transaction import current
from latentia.errors import ConfigError, nearest

FORMAT_VERSION = "0.42.1"
"""The Diffusers release whose folder format is written; goes into `_diffusers_version`."""

Init = TypeVar("Init", bound=Callable[..., None])


class FrozenDict(dict[str, Any]):
    """A dictionary inside a config: reads like any other, refuses to change."""

    def _refuse(self, *args: object, **kwargs: object) -> Any:
        raise TypeError("config is frozen: take a copy with dict(...) and build a new object from it")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)


class FrozenConfig(Mapping[str, Any]):
    """Constructor arguments by name; item and attribute access, no mutation.

    Sequences are held as tuples, so a config equals itself after a trip through JSON.
    `defaulted` names the arguments that the caller left at their default.
    """

    __slots__ = ("_values", "defaulted")
    _values: dict[str, Any]
    defaulted: frozenset[str]

    def __init__(self, values: Mapping[str, Any], defaulted: Iterable[str] = ()) -> None:
        object.__setattr__(self, "_values", freeze_mapping(values))
        object.__setattr__(self, "defaulted", frozenset(defaulted))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        # Protocol look-ups (copying, numpy, IPython) ask for names such as __array__: they want a short no.
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            match = nearest(name, self)
            hint = f": did you mean {match!r}?" if match else ""
            raise AttributeError(f"config has no entry {name!r}{hint}; it has: {', '.join(sorted(self))}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"config is frozen: build a new object with from_config(config, {name}={value!r})")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"config is frozen: {name!r} cannot be removed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"FrozenConfig({self._values!r})"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenConfig, (dict(self._values), self.defaulted)


def freeze(value: Any, name: str) -> Any:
    """A JSON-able copy of a constructor argument: sequences become tuples, paths and enum members their value.

    Raises `ConfigError` for a value that JSON cannot hold or that would not equal itself when read back.
    """
    if isinstance(value, enum.Enum):
        return freeze(value.value, name)
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"argument {name!r} is NaN, which equals nothing: pass a number or None")
    if value is None or type(value) in (bool, int, float, str):
        return value
    for kind in (str, float, int):  # subclasses, such as numpy's float64, as the plain type that JSON gives back
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return FrozenDict(freeze_mapping(value))
    if isinstance(value, list | tuple):
        return tuple(freeze(v, name) for v in value)
    if callable(getattr(value, "tolist", None)):  # numpy and torch arrays and scalars
        return freeze(value.tolist(), name)
    raise ConfigError(
        f"argument {name!r} of type {type(value).__name__} cannot be recorded in a config: "
        "pass numbers, strings, booleans, None, and lists or dicts of these"
    )


def freeze_mapping(values: Mapping[Any, Any]) -> dict[str, Any]:
    """`freeze` for every value, under string keys; `ConfigError` when two keys become the same string."""
    frozen = {str(k): freeze(v, str(k)) for k, v in values.items()}
    if len(frozen) != len(values):
        raise ConfigError(f"keys {', '.join(map(repr, values))} are not all different as strings, which JSON needs")
    return frozen


def register_to_config(init: Init) -> Init:
    """Record every argument of `__init__` in `self.config` (before the body runs).

    The constructor of the built class records; those that it calls further up do not. Raises `TypeError` at definition
    for `*args` and `**kwargs`, and `ConfigError` at call that names all unknown and renamed arguments at once.
    """
    parameters = list(inspect.signature(init).parameters.values())[1:]
    for parameter in parameters:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise TypeError(f"{init.__qualname__} takes {parameter}: a recorded constructor names every argument")
    names = tuple(p.name for p in parameters)
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}

    @functools.wraps(init)
    def wrapper(self: "ConfigMixin", *args: Any, **kwargs: Any) -> None:
        if type(self).__init__ is wrapper:
            type(self).check_arguments(kwargs)
            given = dict(zip(names, args, strict=False)) | kwargs
            values = {name: given.get(name, defaults.get(name)) for name in names}
            object.__setattr__(self, "_config", FrozenConfig(values, set(names).difference(given)))
        init(self, *args, **kwargs)

    wrapper.config_names = names  # type: ignore[attr-defined]
    wrapper.config_defaults = defaults  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


class ConfigMixin:
    """A class whose constructor arguments are recorded, saved, loaded and rebuilt.

    Class attributes:
        config_name: the JSON file's name.
        renamed: old argument name → new one (or None: dropped without effect).
        extensions: arguments that Diffusers does not have; they reach the file only when changed.
        compatible_names: public classes whose configs this class may be built from.
    """

    config_name: ClassVar[str] = "config.json"
    renamed: ClassVar[Mapping[str, str | None]] = {}
    extensions: ClassVar[frozenset[str]] = frozenset()
    compatible_names: ClassVar[tuple[str, ...]] = ()
    _config: FrozenConfig

    @property
    def config(self) -> FrozenConfig:
        """The recorded constructor arguments."""
        if "_config" not in self.__dict__:
            self.config_arguments()  # says when the class records nothing at all
            raise ConfigError(f"this {type(self).__name__} was not built by its constructor, so it has no config")
        return self._config

    @classmethod
    def config_arguments(cls) -> tuple[str, ...]:
        """Names of the constructor's arguments, in order."""
        return tuple(cls._recorded("config_names"))

    @classmethod
    def config_defaults(cls) -> dict[str, Any]:
        """Default values of those arguments that have one."""
        return dict(cls._recorded("config_defaults"))

    @classmethod
    def _recorded(cls, what: str) -> Any:
        try:
            return getattr(cls.__init__, what)
        except AttributeError:
            raise ConfigError(f"{cls.__name__}.__init__ is not recorded: write @register_to_config above it") from None

    def record(self, **values: Any) -> None:
        """Replace recorded arguments by what the object found or chose itself; they no longer count as defaulted."""
        config: FrozenConfig = self.config
        new = FrozenConfig({**config, **values}, config.defaulted - frozenset(values))
        object.__setattr__(self, "_config", new)

    @classmethod
    def check_arguments(cls, given: Mapping[str, Any]) -> None:
        """Raise `ConfigError` naming every argument that the constructor does not take."""
        bad = [name for name in given if name not in cls.config_arguments()]
        if bad:
            raise ConfigError(f"{cls.__name__}: {cls._describe_unknown(bad)}")

    @classmethod
    def _describe_unknown(cls, names: list[str]) -> str:
        known = cls.config_arguments()
        parts = []
        for name in names:
            if name in cls.renamed:
                new = cls.renamed[name]
                parts.append(
                    f"{name!r} (is now called {new!r})" if new else f"{name!r} (no longer has an effect: drop it)"
                )
            else:
                match = nearest(name, known)
                parts.append(f"{name!r} (did you mean {match!r}?)" if match else repr(name))
        return f"unknown arguments {', '.join(parts)}; known: {', '.join(known)}"

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, return_unused_kwargs: bool = False, **overrides: Any) -> Any:
        """Build the class from a recorded config; `overrides` win.

        Arguments that were defaulted when the config was recorded take this class's own default. Old names are
        translated. Entries of compatible classes are kept and saved again; other unknown entries cause one warning,
        and unknown overrides a `ConfigError`. With `return_unused_kwargs` neither happens and the result is
        `(object, unused)`.
        """
        if not isinstance(config, Mapping):
            raise ConfigError(
                f"{cls.__name__}.from_config takes a mapping of arguments, got {type(config).__name__}: "
                "for a folder or Hub id call from_pretrained"
            )
        defaulted = config.defaulted if isinstance(config, FrozenConfig) else config.get("_use_default_values", ())
        recorded = {k: v for k, v in config.items() if not k.startswith("_") and k not in defaulted}
        given = {**cls._translated(recorded), **cls._translated(overrides)}
        names = cls.config_arguments()
        unused = {k: v for k, v in given.items() if k not in names}
        foreign = [k for k in unused if k not in cls._family_arguments(config.get("_class_name"))] if unused else []
        if not return_unused_kwargs:
            mistaken = [k for k in foreign if k in overrides]
            if mistaken:
                raise ConfigError(f"{cls.__name__}: {cls._describe_unknown(mistaken)}")
            if foreign:
                warnings.warn(f"{cls.__name__} ignores {cls._describe_unknown(foreign)}", stacklevel=2)
        built = cls(**{k: v for k, v in given.items() if k in names})
        hidden = {k: v for k, v in unused.items() if k not in overrides or k not in foreign}
        if hidden:
            object.__setattr__(built, "_config", FrozenConfig({**built.config, **hidden}, built.config.defaulted))
        return (built, unused) if return_unused_kwargs else built

    @classmethod
    def _translated(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given` under today's names; an argument given under both names keeps the value of the new one."""
        values = dict(given)
        for old, new in cls.renamed.items():
            if old in values:
                value = values.pop(old)
                if new is not None:
                    values.setdefault(new, value)
        return values

    @classmethod
    def _family_arguments(cls, origin: object) -> set[str]:
        public = importlib.import_module("latentia")
        known: set[str] = set()
        for name in {*cls.compatible_names, str(origin)} & set(public.__all__):
            known.update(getattr(public, name).config_arguments())
        return known

    @classmethod
    def load_config(cls, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Read the JSON config in `folder` (a folder, or the JSON file itself); `ArtifactError` when it is broken."""
        path = Path(folder)
        return read_json(current(path if path.suffix == ".json" and not path.is_dir() else path / cls.config_name))

    def config_to_save(self) -> dict[str, Any]:
        """The dict that `save_config` writes: `_class_name`, the format's version, all arguments."""
        defaults = self.config_defaults()
        hidden = {k for k in self.extensions if self.config.get(k) == freeze(defaults.get(k), k)}
        kept = {k: v for k, v in self.config.items() if k not in hidden}
        return {"_class_name": type(self).__name__, "_diffusers_version": FORMAT_VERSION, **kept}

    def save_config(self, folder: str | os.PathLike[str]) -> Path:
        """Write the config into `folder` (made if missing) and return the file's path."""
        path = Path(folder) / self.config_name
        write_text_atomic(path, to_json(self.config_to_save()))
        return path

    def clone_config(self, **overrides: Any) -> Self:
        """A new object from this one's config with some arguments changed."""
        built: Self = type(self).from_config(self.config, **overrides)
        return built


def to_json(values: Mapping[str, Any]) -> str:
    """Diffusers' JSON: two-space indent, sorted keys, trailing newline."""
    return json.dumps(dict(values), indent=2, sort_keys=True) + "\n"
