"""Weights of published perceptual networks, from files or the Hub, under the names that our networks have.

Read are torchvision's files (`vgg16-397923af.pth`, `alexnet-owt-7be5be79.pth`, `resnet50-0676ba61.pth`), the linear
heads of the `lpips` package (`vgg.pth`, `alex.pth`), a whole `LPIPS` state dict of that package or of taming's
checkpoints, and any of these as safetensors. Pickles are read with `weights_only=True`: nothing in them can run.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from latentia.core.artifacts import load_state_dict
from latentia.core.hub import resolve_folder
from latentia.errors import ArtifactError, InputError

Weights = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A file, a folder, or a Hub id `owner/name` (or one file of it, `owner/name/file.pth`); or several, merged."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
PATTERNS = tuple(f"*{suffix}" for suffix in SUFFIXES)

_PREFIX = re.compile(r"^(?:first_stage_model\.)?(?:loss\.)?(?:perceptual_loss\.|perceptual\.)?(?:module\.)?")
_SLICE = re.compile(r"^net\.slice\d+\.(\d+)\.(weight|bias)$")
_HEAD = re.compile(r"^(?:lins\.|lin)(\d)\.(?:model\.)?(?:\d\.)?weight$")
_FEATURE = re.compile(r"^features\.\d+\.(weight|bias)$")


def read_weights(weights: Weights) -> dict[str, torch.Tensor]:
    """All tensors of the given sources, merged in order.

    Raises `ArtifactError` for sources that are missing, hold several files to choose from, or hold no tensors.
    """
    sources = [weights] if isinstance(weights, str | os.PathLike) else list(weights)
    if not sources:
        raise InputError("no weights given: name a file, a folder, or a Hub id 'owner/name'")
    state: dict[str, torch.Tensor] = {}
    for source in sources:
        state |= load_state_dict(_file(source))
    return state


def lpips_tensors(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The trunk (`features.N.*`) and heads (`heads.i`, (C,)) in a state dict of any of the known layouts.

    `net.sliceK.N` is the `lpips` package's name of `features.N`; `linI.model.1`, and `lins.I.model.1`, of head I.
    Everything else (a classifier, constants, the rest of a checkpoint) is left out.
    """
    found: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        name = _PREFIX.sub("", key)
        if match := _SLICE.match(name):
            found[f"features.{match[1]}.{match[2]}"] = value
        elif match := _HEAD.match(name):
            found[f"heads.{match[1]}"] = value.flatten()
        elif _FEATURE.match(name):
            found[name] = value
    return found


def check_same(wanted: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], what: str, advice: str) -> None:
    """Raise `ArtifactError` that lists what is missing or of another shape, and says what to do."""
    missing = [name for name in wanted if name not in given]
    shapes = [name for name in wanted if name in given and given[name].shape != wanted[name].shape]
    if shapes:
        first = shapes[0]
        raise ArtifactError(
            f"these are not the weights of {what}: {first} is {tuple(given[first].shape)}, expected "
            f"{tuple(wanted[first].shape)} ({len(shapes)} tensors differ). {advice}"
        )
    if missing:
        raise ArtifactError(f"the weights of {what} are incomplete: no {', '.join(missing[:4])} … . {advice}")


def _file(source: str | os.PathLike[str]) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    name = os.fspath(source)
    inside = name.split("/")
    if not path.exists() and len(inside) > 2 and name.endswith(SUFFIXES):
        folder = resolve_folder("/".join(inside[:2]), allow_patterns=["/".join(inside[2:])])
        return folder / "/".join(inside[2:])
    if name.endswith(SUFFIXES):
        raise ArtifactError(f"no file {name}: give the weights as a file, a folder, or a Hub id 'owner/name'")
    folder = resolve_folder(source, allow_patterns=PATTERNS)
    for suffix in SUFFIXES:
        files = sorted(folder.glob(f"*{suffix}"))
        if len(files) == 1:
            return files[0]
        if files:
            listed = ", ".join(file.name for file in files[:6])
            raise ArtifactError(f"{name} holds several weight files ({listed}): name one of them")
    raise ArtifactError(f"{name} holds no weight file ({', '.join(SUFFIXES)})")
