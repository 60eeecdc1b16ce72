"""The embedded feature networks: trained on demand on the training pictures, kept in the run's folder.

Two of them, and never the same for both uses: the *ruler*, which measures (`frechet_photo_features`), learns to tell
tiles apart; the network of the *loss* learns to name damages. Different task, different seed, so that a codec which
pleases its loss has not thereby pleased the ruler.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from latentia.core.protocols import Dataset
from latentia.core.rng import derive_seed
from latentia.errors import check_choice
from latentia.metrics.photo_features import PhotoFeatures
from latentia.training.loop import train
from latentia.training.parallel import alone
from latentia.training.phase import Optim, Phase
from latentia.training.pretext import DamageObjective, InstanceObjective
from latentia.training.settings import Settings

if TYPE_CHECKING:
    from latentia.training.objective import Objective

PRETEXTS = ("damage", "instances")
ROLES = {"loss": "damage", "ruler": "instances"}
"""Use of a network → the pretext task that it learns."""

STEPS, BATCH = 400, 128
FOLDER = "features"


def ruler(
    folder: str | os.PathLike[str] | None = None, data: Dataset | None = None, progress: bool = False
) -> PhotoFeatures:
    """The ruler of photo codecs, `frechet_photo_features`: always the same network for the same pictures.

    Taken from `folder`/ruler if it was kept there, else trained (about a minute on one CPU core) and kept; None keeps
    nothing. `data`: the pictures to learn from, {"x": (B, C, H, W)}; None: `training_tiles()`.
    """
    return _made("ruler", folder, data, progress)


def loss_network(
    folder: str | os.PathLike[str] | None = None, data: Dataset | None = None, progress: bool = False
) -> PhotoFeatures:
    """The network of the default perceptual loss; as `ruler`, under `folder`/loss."""
    return _made("loss", folder, data, progress)


def training_tiles(size: int = 32) -> Dataset:
    """Overlapping tiles of the training photographs, in full and in half size."""
    from latentia.data.photos import photos

    return photos("train", size, stride=size // 2, scales=(1.0, 0.5))


def pretext_phase(
    network: PhotoFeatures,
    data: Dataset,
    pretext: str,
    steps: int | None = None,
    batch_size: int | None = None,
    name: str = "features",
) -> Phase:
    """The phase that trains `network` on `data` by a pretext task, `damage` or `instances`.

    Raises `UnknownChoiceError` for another task.
    """
    check_choice("pretext task", pretext, PRETEXTS)
    steps = steps or STEPS
    objective: Objective = InstanceObjective(network) if pretext == "instances" else _damage(network, data)
    optim = Optim(lr=2e-3, weight_decay=0.05, schedule="cosine", warmup=min(20, steps))
    return Phase(name, objective, data, steps, min(batch_size or BATCH, len(data)), optim)


def train_features(
    data: Dataset,
    pretext: str,
    seed: int = 0,
    name: str = "photo_features",
    steps: int | None = None,
    progress: bool = False,
) -> PhotoFeatures:
    """A feature network trained on `data`, in evaluation mode and frozen; a function of data, task, seed and steps."""
    channels = data.batch([0])["x"].shape[1]
    with torch.random.fork_rng([]):
        torch.manual_seed(derive_seed("features", seed))
        network = PhotoFeatures(name=name, in_channels=channels)
        phase = pretext_phase(network, data, pretext, steps)
    settings = Settings(seed=seed, device="cpu", progress=progress, tensorboard=False)
    with tempfile.TemporaryDirectory() as folder, alone():
        train([("features", lambda: phase)], Path(folder) / "run", settings)
    return network.eval().requires_grad_(False)


def _made(role: str, folder: str | os.PathLike[str] | None, data: Dataset | None, progress: bool) -> PhotoFeatures:
    kept = None if folder is None else Path(folder) / role
    if kept is not None and (kept / "config.json").is_file():
        return PhotoFeatures.from_pretrained(kept).requires_grad_(False)
    seed = {"loss": 1, "ruler": 2}[role]
    network = train_features(training_tiles() if data is None else data, ROLES[role], seed, progress=progress)
    if kept is not None:
        network.save_pretrained(kept)
    return network


def _damage(network: PhotoFeatures, data: Dataset) -> DamageObjective:
    return DamageObjective(network, num_labels(data))


def num_labels(data: Dataset) -> int:
    """Classes of `label`, 0 when there are none; no picture is read, a million tiles would not fit into memory."""
    from latentia.data.dataset import TensorDataset
    from latentia.data.photos import PhotoTiles
    from latentia.recipes.codec_training import TurnedDataset
    from latentia.recipes.sources import MirroredDataset, class_names

    images = data.images if isinstance(data, MirroredDataset | TurnedDataset) else data
    if isinstance(images, PhotoTiles):
        return int(images.positions[:, 3].max()) + 1
    if isinstance(images, TensorDataset):
        return int(images.tensors["label"].max()) + 1 if "label" in images.tensors else 0
    return len(class_names(images) or {})
