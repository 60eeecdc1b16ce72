"""Published networks from a folder or a Hub id, through transformers: weights checked, pictures prepared."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from latentia.core.files import read_json
from latentia.core.hub import SAFE_PATTERNS, resolve_folder
from latentia.errors import ArtifactError

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
"""Weight files that are read: the second with `weights_only`, so that nothing in it is run."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a picture becomes what a network sees: values in [0, 1], resized, cropped, shifted and scaled.

    Attributes:
        resize: the shorter side after the bicubic, antialiased resizing.
        crop: side of the centre that is kept.
        mean, std: of each channel, for values in [0, 1].
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pictures: Sequence[np.ndarray]) -> torch.Tensor:
        """Pictures uint8 (H, W, 3), each of its own size → (B, 3, crop, crop) float32.

        Lengths round as torchvision's `Resize` and `CenterCrop` do, which the published evaluators use.
        """
        squares = np.stack([self._square(picture) for picture in pictures])
        x = torch.from_numpy(squares).movedim(-1, 1).float() / 255
        mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (self.mean, self.std))
        return (x - mean) / std

    def _square(self, picture: np.ndarray) -> np.ndarray:
        image = Image.fromarray(picture)
        width, height = image.size
        short, long = sorted((width, height))
        other = int(self.resize * long / short)
        target = (self.resize, other) if width <= height else (other, self.resize)
        if target != image.size:
            image = image.resize(target, Image.Resampling.BICUBIC)
        left, top = (round((side - self.crop) / 2) for side in target)
        return np.array(image.crop((left, top, left + self.crop, top + self.crop)))


def model_folder(name_or_path: str | os.PathLike[str]) -> Path:
    """The local folder of a published model, with weights in it; raises `ArtifactError` when there is none."""

    def whole(folder: Path) -> bool:
        return (folder / SAFE).is_file() and (folder / "config.json").is_file()

    folder = resolve_folder(name_or_path, allow_patterns=SAFE_PATTERNS, complete=whole)
    if not (folder / SAFE).is_file() and not (folder / PICKLED).is_file() and not Path(name_or_path).is_dir():
        folder = resolve_folder(
            name_or_path,
            allow_patterns=(*SAFE_PATTERNS, PICKLED),
            complete=lambda found: (found / PICKLED).is_file(),
        )
    for needed in ("config.json", weights_file(folder).name):
        if not (folder / needed).is_file():
            raise ArtifactError(f"{folder} has no {needed}: give the folder of a model as transformers saves it")
    return folder


def weights_file(folder: Path) -> Path:
    """The safetensors file if it is there, else the name of the older one."""
    return folder / (SAFE if (folder / SAFE).is_file() else PICKLED)


def weights_digest(folder: Path) -> str:
    """First 8 hexadecimal digits of the SHA-256 of the weight file."""
    with weights_file(folder).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def load(model_class: Any, folder: Path, ignore: tuple[str, ...] = (), **options: Any) -> Any:
    """The model of a local folder, in float32, evaluation mode and frozen.

    Raises `ArtifactError` when it cannot be read or lacks weights (other than those whose names begin with one of
    `ignore`): an extractor with random weights would measure nothing.
    """
    with _quiet():
        try:
            model, info = model_class.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=weights_file(folder).name == SAFE,
                dtype=torch.float32,
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # transformers raises anything
            raise ArtifactError(f"{folder} holds no readable {model_class.__name__}: {error}") from error
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(ignore or ("\0",)))
    if missing:
        raise ArtifactError(
            f"{folder} is no whole {model_class.__name__}: {len(missing)} weights missing, {missing[0]}"
        )
    return model.eval().requires_grad_(False)


def processor_of(folder: Path) -> Mapping[str, Any]:
    """What `preprocessor_config.json` says, empty without one."""
    file = folder / "preprocessor_config.json"
    return read_json(file) if file.is_file() else {}


def side_of(entry: Any) -> int | None:
    """`224`, `{"shortest_edge": 224}` or `{"height": 224, "width": 224}` → 224; None for nothing."""
    if isinstance(entry, Mapping):
        entry = entry.get("shortest_edge", entry.get("height"))
    return None if entry is None else int(entry)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
