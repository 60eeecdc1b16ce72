"""What a call is asked for, checked before any work is done."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from latentia.core.arguments import check_count
from latentia.core.rng import Generators, sample_generators
from latentia.errors import InputError, unknown_choice


def check_flag(name: str, value: object) -> bool:
    """`value` as a bool. Raises `InputError`."""
    if not isinstance(value, bool):
        raise InputError(f"{name} must be True or False, got {value!r}")
    return value


def batch_of(batch_size: int | None, given: Mapping[str, int | None]) -> int:
    """How many pictures a call makes: `batch_size`, or else the common length of the lists `given`, or else 1.

    Raises `InputError` naming the argument whose length disagrees.
    """
    lengths = {name: length for name, length in given.items() if length is not None}
    if batch_size is not None:
        lengths = {"batch_size": check_count("batch_size", batch_size), **lengths}
    if not lengths:
        return 1
    first, count = next(iter(lengths.items()))
    for name, length in lengths.items():
        if length != count:
            raise InputError(f"{name} is for {length} pictures but {first} is for {count}: give one entry per picture")
    if count == 0:
        raise InputError(f"{first} is for 0 pictures: give one entry per picture")
    return count


def check_generator(generator: object) -> Generators:
    """None, a generator, or a list of generators. Raises `InputError`."""
    listed = isinstance(generator, list | tuple)
    if (
        generator is None
        or isinstance(generator, torch.Generator)
        or (
            listed and all(isinstance(g, torch.Generator) for g in generator)  # type: ignore[attr-defined]
        )
    ):
        return generator  # type: ignore[return-value]
    raise InputError(
        f"generator must be None, a torch.Generator or a list of them, one per picture; got {generator!r}. "
        "For a number pass seed=..."
    )


def listed_length(name: str, given: object) -> int | None:
    """Entries of a list, tuple, range or tensor; None when nothing is given. Raises `InputError` for anything else."""
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Sequence | torch.Tensor | np.ndarray):
        raise InputError(f"{name} must be a list with one entry per picture, got {given!r}")
    return len(given)


def generators_of(
    generator: Generators, seed: int | None, sample_indices: Sequence[int] | None, batch: int
) -> Generators:
    """The generators of a call: those given, or one per sample derived from (seed, sample index)."""
    if seed is None:
        if sample_indices is not None:
            raise InputError("sample_indices number the pictures of a seed: pass seed=... too")
        return generator
    if generator is not None:
        raise InputError("pass either seed or generator: a seed makes its own generator for each picture")
    seed = check_count("seed", seed, least=0)
    indices = range(batch) if sample_indices is None else sample_indices
    return sample_generators(seed, [check_count("sample index", i, least=0) for i in indices])


def check_latents(latents: object, shape: Sequence[int]) -> torch.Tensor:
    """Starting noise of exactly `shape`, batch first, finite. Raises `InputError`."""
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        what = f"{latents.dtype} tensor" if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise InputError(f"latents must be a floating tensor of shape {tuple(shape)}, got a {what}")
    if tuple(latents.shape) != tuple(shape):
        raise InputError(
            f"latents have shape {tuple(latents.shape)}, expected {tuple(shape)} (batch, channels, height, width)"
        )
    if not bool(torch.isfinite(latents).all()):
        raise InputError("latents hold NaN or infinity: give standard normal noise")
    return latents


def check_step_options(scheduler: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those keywords of `scheduler.step` that are set (not None). Raises when the scheduler does not take one."""
    given = {name: value for name, value in options.items() if value is not None}
    known = frozenset(type(scheduler).step_options)
    for name in given:
        if name not in known:
            raise InputError(
                f"{type(scheduler).__name__} takes no {name!r} "
                + (f"(only {', '.join(sorted(known))})" if known else "(it has no step options)")
                + f": leave {name} at its default, or set pipe.scheduler to one that has it"
            )
    return given


def class_indices(labels: object, num_classes: int, null_class: int | None, names: Mapping[str, int]) -> list[int]:
    """Class labels (one, or one per picture; ints or names) as indices. Raises `InputError` / `UnknownChoiceError`.

    Allowed are 0 … num_classes − 1 and, where the network has one, the null class.
    """
    if isinstance(labels, torch.Tensor | np.ndarray):
        labels = labels.tolist()
    single = isinstance(labels, str) or not isinstance(labels, Sequence)
    listed = [labels] if single else list(labels)  # type: ignore[call-overload]
    if not listed:
        raise InputError("class_labels is empty: give one label, or one per picture")
    return [_class_index(label, num_classes, null_class, names) for label in listed]


def _class_index(label: object, num_classes: int, null_class: int | None, names: Mapping[str, int]) -> int:
    if isinstance(label, str):
        if label not in names:
            if not names:
                raise InputError(f"class {label!r} is a name, but this pipeline has no id2label: give a number")
            raise unknown_choice("class", label, names)
        return names[label]
    number = check_count("a class label", label, least=0)
    if number >= num_classes and number != null_class:
        null = f" ({null_class} is the null class)" if null_class is not None else ""
        raise InputError(f"class {number} is out of range: known are 0 to {num_classes - 1}{null}")
    return number


def eta_option(eta: object) -> float | None:
    """η as a step option; None for 0, the default, which every scheduler can honour. Raises `InputError`."""
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 0 <= eta <= 1:
        raise InputError(f"eta must be between 0 (deterministic) and 1 (as noisy as DDPM), got {eta!r}")
    return float(eta) or None
