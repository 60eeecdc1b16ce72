"""Functions of the user's own, named on the command line as `package.module:name`.

Only a name that the user typed ever gets here: a saved recipe's names are dropped when it is resumed
(`Recipe.code`), and no model folder names any.
"""

from __future__ import annotations

import importlib
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentia.errors import InputError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

    Images = tuple[Tensor, Tensor]

EXAMPLE = "mynets:build for the function build in mynets.py of this folder"


def load_named(text: str, key: str) -> Callable[..., Any]:
    """The function or class that `key=text` names, `package.module:name`, found from the working directory first.

    Raises `InputError` for another form, a module that is missing (with the nearest) or fails while it is imported, and
    a name that is missing or cannot be called.
    """
    home, colon, path = text.partition(":")
    if (
        not colon
        or home.endswith(".py")
        or not all(part.isidentifier() for part in (*home.split("."), *path.split(".")))
    ):
        raise InputError(f"{key}={text!r}: expected package.module:name, {_form(text)}")
    found: Any = _import(home, key)
    for at, part in enumerate(path.split(".")):
        try:
            found = getattr(found, part)
        except AttributeError:
            match = nearest(part, (name for name in dir(found) if not name.startswith("_")))
            hint = f": did you mean {match!r}?" if match else ""
            raise InputError(f"{key}: {':'.join((home, *path.split('.')[:at]))} has no {part!r}{hint}") from None
    if not callable(found) or _is_network(found):
        what = "a network" if _is_network(found) else a(found)
        raise InputError(f"{key}: {text} is {what}, not a function: name a function (or a class) that is called for it")
    return found


def called(text: str, key: str, *arguments: Any) -> Any:
    """What the named function returns. Raises `InputError` with its own error, whose place it names."""
    function = load_named(text, key)
    try:
        return function(*arguments)
    except Exception as error:
        words = "no arguments" if not arguments else ", ".join(_shown(argument) for argument in arguments)
        raise InputError(f"{key}: {text} failed when called with {words}: {reason(error)}") from error


def network_of(text: str) -> nn.Module:
    """The network that `module=text` builds. Raises `InputError` when it returns anything else."""
    from torch import nn

    made = called(text, "module")
    if not isinstance(made, nn.Module):
        raise InputError(f"module: {text} returned {a(made)}: it must return a torch.nn.Module")
    if not made.state_dict():
        raise InputError(f"module: the network of {text} has no parameters")
    return made


def images_of(text: str) -> Images:
    """What `data=text` returns: x (N, …) and y (N, …). Raises `InputError` for anything else."""
    import torch

    made = called(text, "data")
    pair = made if isinstance(made, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(part, torch.Tensor) for part in pair):
        shown = ", ".join(type(part).__name__ for part in pair) or type(made).__name__
        raise InputError(f"data: {text} returned {shown}: it must return two tensors, x (N, ...) and y (N, ...)")
    x, y = pair
    if not x.ndim or not y.ndim or len(x) != len(y) or len(x) < 2:
        raise InputError(f"data: {text} returned x {tuple(x.shape)} and y {tuple(y.shape)}: as many of each, 2 or more")
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise InputError(f"data: x of {text} holds a NaN or infinity")
    classes = y.ndim == 1 and y.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32)
    return x, y.long() if classes else y


def score_of(text: str, network: nn.Module) -> float:
    """What `score=text` says of a network, NaN and infinity included. Raises `InputError` for what is no number."""
    import torch

    network.eval()
    with torch.no_grad():
        found = called(text, "score", network)
    if isinstance(found, torch.Tensor) and found.numel() == 1:
        found = found.item()
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InputError(f"score: {text} returned {a(found)}: it must return one number, higher is better")
    return float(found) if math.isfinite(found) else math.nan


def _import(home: str, key: str) -> Any:
    folder = str(Path.cwd())
    if not {"", folder}.intersection(sys.path):  # as `python -m` has it; a console script does not
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
    try:
        return importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name and (home == error.name or home.startswith(f"{error.name}.")):
            raise InputError(_not_found(home, key)) from None
        raise InputError(f"{key}: importing {home} failed: {reason(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{key}: importing {home} failed: {reason(error)}") from error


def _not_found(home: str, key: str) -> str:
    here = Path.cwd()
    known = [path.stem for path in here.glob("*.py")] + [path.parent.name for path in here.glob("*/__init__.py")]
    match = nearest(home.partition(".")[0], known)
    hint = f": did you mean {match!r}?" if match else f"; modules here: {', '.join(sorted(known)) or 'none'}"
    return f"{key}: no module {home!r} in {here}, and none is installed{hint}"


def _form(text: str) -> str:
    """What was probably meant by a name of another form."""
    home, _, path = text.partition(":")
    if ".py" in home or "/" in home or "\\" in home:
        module = home.removesuffix(".py").replace("\\", "/").strip("./").replace("/", ".")
        return f"without .py and with dots for folders: {module}:{path or 'build'}"
    if ":" not in text and "." in text:
        return f"with a colon before the name: {text.rpartition('.')[0]}:{text.rpartition('.')[2]}"
    return f"such as {EXAMPLE}"


def reason(error: BaseException) -> str:
    """An error and the line of the user's code in which it came up."""
    frames = traceback.extract_tb(error.__traceback__)
    here = str(Path.cwd())
    own = [each for each in frames if each.filename.startswith(here)] or [
        each for each in frames if each.filename.rpartition("site-packages")[1] and "importlib" not in each.filename
    ]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"


def a(thing: object) -> str:
    """The type of a thing with its article: `an int`."""
    name = type(thing).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _is_network(found: object) -> bool:
    """Whether this is a network itself: only where torch was imported can it be one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(found, torch.nn.Module)


def _shown(argument: object) -> str:
    return "the network" if _is_network(argument) else repr(argument)
