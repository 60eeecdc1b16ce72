"""The exception tree: what went wrong, grouped by what the caller can do about it.

    LatentiaError
    ├── InputError             an argument is wrong: change the call            (also a ValueError)
    │   └── UnknownChoiceError a name is not among the known ones
    ├── ConfigError            recorded arguments do not fit the class          (also a ValueError)
    ├── ArtifactError          a file is missing, truncated, foreign or unsafe  (also an OSError)
    ├── NonFiniteError         a NaN or infinity appeared                       (also an ArithmeticError)
    ├── TrainingError          a run cannot start, go on or resume              (also a RuntimeError)
    ├── Cancelled              the caller asked to stop
    └── MissingDependency      an optional package is needed                    (also an ImportError)

Every message says what was given, what is allowed and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class LatentiaError(Exception):
    """Root of every error that Latentia raises on purpose."""


class InputError(LatentiaError, ValueError):
    """An argument has the wrong value, shape or type; the call must change."""


class UnknownChoiceError(InputError):
    """A name is not among the known ones; the message lists them and the nearest match."""


class ConfigError(LatentiaError, ValueError):
    """Recorded constructor arguments do not fit the class that is built from them."""


class ArtifactError(LatentiaError, OSError):
    """A model file or folder is missing, truncated, foreign or unsafe."""


class NonFiniteError(LatentiaError, ArithmeticError):
    """A NaN or infinity appeared; the message names where and at which step."""


class TrainingError(LatentiaError, RuntimeError):
    """A training run cannot start, continue or resume as asked."""


class Cancelled(LatentiaError):
    """The caller cancelled a running call; nothing was decoded or written."""


class MissingDependency(LatentiaError, ImportError):
    """An optional package is not installed; the message gives the install command."""


def nearest(given: object, known: Iterable[str]) -> str | None:
    """The known name closest to `given`, or None when none is close."""
    matches = get_close_matches(str(given), [str(k) for k in known], n=1, cutoff=0.5)
    return matches[0] if matches else None


def unknown_choice(kind: str, given: object, known: Iterable[str]) -> UnknownChoiceError:
    """The error for an unknown name: `unknown quantizer 'lqf': did you mean 'lfq'? known: fsq, lfq, vq`."""
    names = sorted(str(k) for k in known)
    match = nearest(given, names)
    hint = f"did you mean {match!r}? " if match else ""
    return UnknownChoiceError(f"unknown {kind} {given!r}: {hint}known: {', '.join(names)}")


def check_choice(kind: str, given: object, known: Iterable[str]) -> None:
    """Raise `UnknownChoiceError` unless `given` is one of `known`."""
    names = tuple(known)
    if given not in names:
        raise unknown_choice(kind, given, names)
