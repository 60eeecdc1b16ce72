"""Condition: what the numbers mean that a conditional p-diff pipeline is told, and how they are typed."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from latentia.core.arguments import check_count, check_number
from latentia.errors import ConfigError, InputError, unknown_choice

Given = str | Sequence[float] | Sequence[Sequence[float]] | torch.Tensor
"""One condition for all networks, (width,) numbers or text for `Condition.parse`; or one each, (N, width)."""


@dataclass(frozen=True)
class Condition:
    """A vector of `width` numbers that says which networks are wanted, such as the code of a task.

    The null condition, for classifier-free guidance, is all zeros.

    Args:
        width: how many numbers.
        names: what each of them is about, or none.
        on, off: what a number is where its name is typed, and where it is not.
        guided: whether the network has learnt the null condition too (condition dropout), so that it can be guided.

    Raises `ConfigError` for names that do not fit the width, occur twice or cannot be typed, and for numbers that are
    none.
    """

    width: int
    names: tuple[str, ...] = ()
    on: float = 1.0
    off: float = 0.0
    guided: bool = False

    def __post_init__(self) -> None:
        try:
            check_count("width of the condition", self.width)
            for end in ("on", "off"):
                check_number(end, getattr(self, end))
        except InputError as error:
            raise ConfigError(str(error)) from None
        if self.names and (len(self.names) != self.width or len(set(self.names)) != self.width):
            raise ConfigError(f"a condition of width {self.width} needs as many names, each once, got {self.names}")
        for name in self.names:
            if not name or name != name.strip() or set(name) & set(",=[]"):
                raise ConfigError(f"{name!r} is no name for a number of a condition: leave out blanks and , = [ ]")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Condition":
        """Read `to_config`'s mapping back; raises `ConfigError` for any other."""
        try:
            return cls(**{**config, "names": tuple(config.get("names", ()))})
        except TypeError as error:
            raise ConfigError(f"this is no condition: {error}") from None

    def to_config(self) -> dict[str, Any]:
        """What a config file records."""
        return {**asdict(self), "names": list(self.names)}

    def parse(self, text: str) -> torch.Tensor:
        """What was typed → (width,) float32.

        Either names, `3,7`: those numbers are `on`, all others `off`; `3=-1,7` gives one a number of its own. Or a JSON
        list of all numbers, `[0, 1, 0.5]`. Raises `InputError`, for a name that is none with the nearest.
        """
        if text.strip().startswith("["):
            try:
                numbers = json.loads(text)
            except ValueError:
                raise InputError(f"condition {text!r} is not a JSON list of numbers, such as [0, 1, 0.5]") from None
            rows = self.check(numbers)
            if len(rows) != 1:
                raise InputError(f"condition {text!r} holds {len(rows)} rows: type one list of {self.width} numbers")
            return rows[0]
        if not self.names:
            raise InputError(
                f"the numbers of this condition have no names, got {text!r}: give all {self.width} as a JSON list"
            )
        values = dict.fromkeys(self.names, self.off)
        for word in text.split(","):
            name, given, number = (part.strip() for part in word.partition("="))
            if name not in values:
                raise unknown_choice("name in the condition", name, self.names)
            values[name] = _number(word, number) if given else self.on
        return torch.tensor(list(values.values()), dtype=torch.float32)

    def check(self, given: Given) -> torch.Tensor:
        """Any form of condition → (1 or N, width) float32; raises `InputError` for another shape, NaN or infinity."""
        if isinstance(given, str):
            return self.parse(given)[None]
        try:
            rows = torch.as_tensor(given, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"condition must be numbers, {self.described()}, got {given!r}") from None
        rows = rows.unsqueeze(0) if rows.ndim == 1 else rows
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != self.width:
            raise InputError(
                f"condition has shape {tuple(torch.as_tensor(given).shape)}: expected ({self.width},) for all networks "
                f"or (N, {self.width}), one each: {self.described()}"
            )
        if not bool(torch.isfinite(rows).all()):
            raise InputError("condition holds NaN or infinity")
        return rows

    def described(self) -> str:
        """In words."""
        named = f", named {', '.join(self.names)}: {self.on:g} where named, else {self.off:g}" if self.names else ""
        return f"{self.width} number{'s' if self.width > 1 else ''}{named}"


def condition_of(unet_config: Mapping[str, Any], stored: Condition | None) -> Condition | None:
    """The condition of a denoiser: what the pipeline has stored, else a nameless one of the denoiser's width.

    None for a denoiser that takes no vectors.
    """
    kind = unet_config.get("class_embed_type")
    width = unet_config.get("projection_class_embeddings_input_dim")
    if stored is not None or kind not in ("projection", "simple_projection") or width is None:
        return stored
    return Condition(width)


def check_condition_fits(unet_config: Mapping[str, Any], stored: Condition | None) -> None:
    """Raise `InputError` for a denoiser that cannot be told the stored condition."""
    if stored is None:
        return
    found = condition_of(unet_config, None)
    if found is None or found.width != stored.width:
        takes = "takes no vectors" if found is None else f"is told {found.width} numbers"
        raise InputError(
            f"template holds a condition of width {stored.width} but unet {takes}: they were not made for each other"
        )


def conditions_of_call(
    unet_config: Mapping[str, Any],
    stored: Condition | None,
    class_labels: int | Sequence[int] | torch.Tensor | None,
    condition: Given | None,
) -> torch.Tensor | None:
    """What a call tells the network, with a batch axis in front: (1 or N,) classes or (1 or N, width) float32.

    Raises `InputError` when it is missing, not wanted, given twice or of another shape.
    """
    if unet_config.get("num_class_embeds") is None and unet_config.get("class_embed_type") is None:
        for name, given in (("class_labels", class_labels), ("condition", condition)):
            if given is not None:
                raise InputError(f"{name} given, but this network is unconditional: leave {_it(name)} out")
        return None
    meaning = condition_of(unet_config, stored)
    if condition is not None:
        if class_labels is not None:
            raise InputError("condition and class_labels say the same: give one of them")
        if meaning is None:
            raise InputError("this network is told classes, not numbers: pass class_labels instead of condition")
        return meaning.check(condition)
    if class_labels is None:
        if stored is not None:
            raise InputError(f"this pipeline is conditional: pass condition, {stored.described()}")
        raise InputError("this network is conditional: pass class_labels, one for all networks or one each")
    if stored is not None:
        return stored.check(torch.as_tensor(class_labels))
    labels = torch.as_tensor(class_labels)
    axes = 1 if unet_config.get("class_embed_type") in (None, "timestep") else 2
    labels = labels.unsqueeze(0) if labels.ndim == axes - 1 else labels
    if labels.ndim != axes or not len(labels):
        raise InputError(
            f"class_labels have shape {tuple(labels.shape)}: expected "
            + ("(N,) classes" if axes == 1 else "(N, width) numbers, or (width,) for all networks")
        )
    return labels


def _it(name: str) -> str:
    return "them" if name.endswith("s") else "it"


def _number(word: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{word.strip()!r} in the condition: after = stands a number, got {text!r}")
    return number
