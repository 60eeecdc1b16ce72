"""Where a recipe's images and first stages come from, by name or folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latentia.errors import ArtifactError, InputError, nearest

if TYPE_CHECKING:
    from latentia.core.protocols import Batch, Dataset
    from latentia.data.pictures import Pictures
    from latentia.training.latents import AnyCodec

NAMED = ("digits", "photos")
FOLDER_SPLITS = ("train", "test", "report")
PUBLISHED_SIZES = {
    "digits": 1257,
    "celebahq": 30_000,
    "imagenet": 1_281_167,
    "hf:uoft-cs/cifar10": 50_000,
    "hf:lambdalabs/naruto-blip-captions": 1221,
    "hf:fusing/fill50k": 50_000,
    "hf:diffusers/dog-example": 5,
}
"""Images in each training set, for dry runs, which fetch and decode nothing."""


def open_data(name: str, split: str, size: int, channels: int, *, num_classes: int = 0, flip: bool = False) -> Dataset:
    """A data set of `{"x": (B, channels, size, size) in [-1, 1], "label": (B,)}` by name.

    Args:
        name: `digits`, `photos`, `hf:NAME` (needs the `datasets` package), or a folder of images, of class folders,
            or with a sub-folder for each split.
        split: `train`, `test` or `all`; a folder without split folders is all there is.
        num_classes: how many classes are wanted; 0 for any number.
        flip: the mirror image of every picture too, N … 2N − 1.

    Raises `InputError` for another name, or too few or too many classes; `ArtifactError` for a folder without images.
    """
    found = _open(name, split, size, channels)
    if num_classes and (there := _count_classes(found)) not in (None, num_classes):
        raise InputError(f"data {name!r} has {there} classes and num_classes={num_classes}: set num_classes={there}")
    return MirroredDataset(found) if flip else found


def open_pictures(name: str, size: int) -> Pictures:
    """Pictures to fine-tune on, by name: `hf:NAME`, or a folder with captions in metadata.jsonl or in NAME.txt.

    Raises `InputError` for anything else, `ArtifactError` for a folder without pictures or with broken metadata.
    """
    from latentia.data.pictures import HubPictures, folder_pictures

    if name.startswith("hf:"):
        return HubPictures(name.removeprefix("hf:"))
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise InputError(f"no data called {name!r}: give hf:NAME, or a folder of images with captions")
    return folder_pictures(folder, size)


def _open(name: str, split: str, size: int, channels: int) -> Dataset:
    if name == "digits":
        from latentia.data.digits import digits

        return digits(split, size, channels)
    if name == "photos":
        from latentia.data.photos import photos

        return photos(split, size, channels=channels)
    if name.startswith("hf:"):
        from latentia.data.hub_datasets import hf_dataset

        return hf_dataset(name.removeprefix("hf:"), size, split, channels=channels)
    folder = Path(name).expanduser()
    if any((folder / each).is_dir() for each in FOLDER_SPLITS):
        return _split_folder(folder, split, size, channels)
    if not folder.is_dir():
        match = nearest(name, NAMED)
        hint = f"did you mean {match!r}? " if match else ""
        raise InputError(f"no data called {name!r}: {hint}known: {', '.join(NAMED)}, hf:NAME, or a folder of images")
    from latentia.data.folder import image_folder

    return image_folder(folder, size, channels)


def _split_folder(folder: Path, split: str, size: int, channels: int) -> Dataset:
    """One split of a folder that has a sub-folder for each, or all; a class has the same number in every split."""
    import torch

    from latentia.data.folder import ImageFolder, image_folder

    parts = {n: image_folder(folder / n, size, channels) for n in FOLDER_SPLITS if (folder / n).is_dir()}
    chosen = parts if split == "all" else {n: part for n, part in parts.items() if n == split}
    if not chosen:
        raise InputError(f"{folder} has no folder {split!r}, but {', '.join(parts)}: add it, or give one of these")
    union = {name for part in parts.values() for name in part.classes}
    classes = next((part.classes for part in parts.values() if set(part.classes) == union), tuple(sorted(union)))
    numbers = {n: torch.tensor([classes.index(each) for each in part.classes] or [0]) for n, part in chosen.items()}
    files = [f"{n}/{file}" for n, part in chosen.items() for file in part.files]
    labels = torch.cat([numbers[n][part.labels] for n, part in chosen.items()])
    captions = [caption for part in chosen.values() for caption in part.captions]
    return ImageFolder(folder, files, labels, classes, captions, (channels, size, size))


def _count_classes(dataset: Dataset) -> int | None:
    """Classes of the data set's labels; None for labels of a Hub data set that declares no classes."""
    from latentia.data.dataset import TensorDataset
    from latentia.data.folder import ImageFolder
    from latentia.data.hub_datasets import HubDataset
    from latentia.data.photos import LABELS, PhotoTiles

    if isinstance(dataset, ImageFolder):
        return len(dataset.classes)
    if isinstance(dataset, HubDataset):
        return len(dataset.classes) or (None if dataset.label else 0)
    if isinstance(dataset, PhotoTiles):
        return len(LABELS)
    return int(dataset.tensors["label"].max()) + 1 if isinstance(dataset, TensorDataset) else None


def class_names(dataset: Dataset) -> dict[int, str] | None:
    """Class index → name, for a folder or Hub data set that names its classes; else None."""
    from latentia.data.folder import ImageFolder
    from latentia.data.hub_datasets import HubDataset

    images = dataset.images if isinstance(dataset, MirroredDataset) else dataset
    names = images.classes if isinstance(images, ImageFolder | HubDataset) else ()
    return dict(enumerate(names)) or None


class MirroredDataset:
    """Every picture and, behind all of them, every picture mirrored: random flips, spread evenly over an epoch."""

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __len__(self) -> int:
        return 2 * len(self.images)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The pictures at `indices`; N and above are mirror images."""
        import torch

        rows, half = torch.as_tensor(indices), len(self.images)
        batch = dict(self.images.batch((rows % half).tolist()))
        mirrored = (rows >= half).view(-1, 1, 1, 1).to(batch["x"].device)
        batch["x"] = torch.where(mirrored, batch["x"].flip(-1), batch["x"])
        return batch


def load_codec(folder: str | os.PathLike[str]) -> AnyCodec:
    """The codec saved in `folder` (a model, or a pipeline or run that has one), with its weights."""
    path, kind = _codec_class(folder)
    return kind.from_pretrained(path)


def codec_like(folder: str | os.PathLike[str]) -> AnyCodec:
    """The same codec from its config alone; no weights are read."""
    path, kind = _codec_class(folder)
    codec: AnyCodec = kind.from_config(kind.load_config(path))
    return codec


CODECS = ("Autoencoder", "AutoencoderKL", "ContinuousFlowMo", "FlowMo", "VQModel")
"""Public classes that a codec's folder may name."""


def _codec_class(folder: str | os.PathLike[str]) -> tuple[Path, type[AnyCodec]]:
    import latentia
    from latentia.core.files import read_json

    path = Path(folder).expanduser()
    inside = [path / inner for inner in ("vae", "vqvae", "pipeline/vae", "pipeline/vqvae", "pipeline")]
    path = next((inner for inner in inside if (inner / "config.json").is_file()), path)
    name = read_json(path / "config.json").get("_class_name")
    if name not in CODECS:
        raise ArtifactError(f"{path} holds a {name}, which is no codec: give the folder of a {' or '.join(CODECS)}")
    return path, getattr(latentia, name)


def resolve_device(name: str) -> str:
    """`auto` as this process's GPU if there is one, else the CPU; other names as they are.

    Raises `InputError` for a GPU that is not there.
    """
    import torch

    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    kind = name.partition(":")[0]
    if name == "auto":
        found = next((kind for kind, there in present.items() if there), "cpu")
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if found == "cuda" else found
    if kind not in ("cpu", *present) or not present.get(kind, True):
        raise InputError(f"device {name!r} is not available here: use 'cpu' or 'auto'")
    return name


def resolve_precision(name: str, device: str) -> str:
    """`auto` as bf16 where the device (a resolved one) has instructions for it, else no; other names as they are.

    Without them bfloat16 is slower than float32: CPUs emulate it.
    """
    import torch

    if name != "auto":
        return name
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported") if device == "cpu" else ()
    return "bf16" if any(getattr(torch.cpu, each, bool)() for each in asked) else "no"
