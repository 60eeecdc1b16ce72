"""Tiles of the real colour photographs that ship with scikit-image, scikit-learn and matplotlib."""

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import torch
from PIL import Image

from latentia.data.dataset import TensorDataset, check_channels, check_indices, check_size
from latentia.data.decode import to_unit
from latentia.errors import InputError, MissingDependency, check_choice

PHOTOS = {
    "train": ("astronaut", "china", "flower", "motorcycle", "rocket"),
    "test": ("chelsea",),
    "report": ("coffee", "grace_hopper"),
}
"""Whole photographs by split; those of `report` are for final numbers only and never in a training set."""

SPLITS = (*PHOTOS, "all")
LABELS = {name: i for i, name in enumerate(sorted(name for names in PHOTOS.values() for name in names))}


class PhotoTiles:
    """Square tiles of photographs, cut when asked for: `{"x": (B, C, size, size) in [-1, 1], "label": (B,)}`.

    The label is the photograph (`LABELS`). The order is: photograph, scale, row, column. `positions` (N, 4)
    int64 holds picture, top, left and label of each tile; `names` are the photographs.
    """

    def __init__(
        self, photos: dict[str, np.ndarray], size: int, stride: int, scales: Sequence[float], channels: int
    ) -> None:
        self.names = tuple(photos)
        self.shape = (channels, size, size)
        self.pictures: list[torch.Tensor] = []
        positions = []
        for name, photo in photos.items():
            for scale in scales:
                picture = _scaled(photo, scale, channels)
                height, width = picture.shape[1:]
                tops = torch.arange(0, max(0, height - size + 1), stride)
                lefts = torch.arange(0, max(0, width - size + 1), stride)
                corners = torch.cartesian_prod(tops, lefts)
                fixed = torch.tensor([len(self.pictures), LABELS[name]]).expand(len(corners), 2)
                positions.append(torch.cat([fixed[:, :1], corners, fixed[:, 1:]], dim=1))
                self.pictures.append(picture)
        self.positions = torch.cat(positions)
        if not len(self.positions):
            raise InputError(f"no tile of {size}×{size} fits into {', '.join(photos)} at scales {tuple(scales)}")

    def __len__(self) -> int:
        return len(self.positions)

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, torch.Tensor]:
        """The tiles at `indices`, stacked in that order."""
        rows = self.positions[check_indices(indices, len(self))]
        size = self.shape[-1]
        tiles = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        for tile, (picture, top, left, _) in zip(tiles, rows.tolist()):
            tile.copy_(self.pictures[picture][:, top : top + size, left : left + size])
        return {"x": to_unit(tiles), "label": rows[:, 3].clone()}

    def materialise(self) -> TensorDataset:
        """All tiles in memory: N·C·size²·4 bytes."""
        return TensorDataset(self.batch(torch.arange(len(self))))


def photos(
    split: str = "train",
    size: int = 32,
    stride: int | None = None,
    scales: Sequence[float] = (1.0,),
    channels: int = 3,
) -> PhotoTiles:
    """Tiles of size×size from real photographs, split by whole photograph, never by tile.

    Args:
        split: `train` (astronaut, china, flower, left motorcycle, rocket), `test` (chelsea), `all` (both), or
            `report` (coffee, grace_hopper), whose photographs are in no other split.
        size: side of a tile in pixels.
        stride: step between tiles; None: `size`, tiles side by side. Pixels beyond the last whole tile are unused.
        scales: each photograph is also tiled at these sizes, resized by an antialiased bicubic filter; at most 1.
        channels: 3, or 1 for grey (ITU-R 601 luma).

    Raises `UnknownChoiceError` for another split, `InputError` when a number is out of range or no tile fits,
    `MissingDependency` for `report` without matplotlib.
    """
    check_choice("split", split, SPLITS)
    size, channels = check_size(size), check_channels(channels)
    stride = size if stride is None else check_size(stride, "stride")
    if not isinstance(scales, Sequence) or not scales:
        raise InputError(f"scales must be a list such as (1.0, 0.5), got {scales!r}")
    if not all(0 < scale <= 1 for scale in scales):
        raise InputError(f"scales must lie in (0, 1], got {tuple(scales)}: photographs are never enlarged")
    names = (*PHOTOS["train"], *PHOTOS["test"]) if split == "all" else PHOTOS[split]
    return PhotoTiles({name: photograph(name) for name in names}, size, stride, scales, channels)


@cache
def photograph(name: str) -> np.ndarray:
    """One photograph by name, uint8 (H, W, 3)."""
    check_choice("photograph", name, _LOADERS)
    loaded = np.ascontiguousarray(_LOADERS[name]()[..., :3])
    loaded.setflags(write=False)
    return loaded


def _scikit_image(name: str) -> np.ndarray:
    from skimage import data  # imported late: it takes half a second

    loaders: dict[str, Callable[[], np.ndarray]] = {
        "astronaut": data.astronaut,
        "chelsea": data.chelsea,
        "coffee": data.coffee,
        "motorcycle": lambda: data.stereo_motorcycle()[0],
        "rocket": data.rocket,
    }
    return loaders[name]()


def _scikit_learn(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image(f"{name}.jpg")


def _matplotlib(name: str) -> np.ndarray:
    try:
        from matplotlib.cbook import get_sample_data
    except ImportError:
        raise MissingDependency(
            f"the photograph {name!r} ships with matplotlib, which is not installed: pip install matplotlib"
        ) from None
    with Image.open(get_sample_data(f"{name}.jpg", asfileobj=False)) as picture:
        return np.asarray(picture.convert("RGB"))


_LOADERS: dict[str, Callable[[], np.ndarray]] = {
    **{name: partial(_scikit_image, name) for name in ("astronaut", "chelsea", "coffee", "motorcycle", "rocket")},
    **{name: partial(_scikit_learn, name) for name in ("china", "flower")},
    "grace_hopper": partial(_matplotlib, "grace_hopper"),
}


def _scaled(photo: np.ndarray, scale: float, channels: int) -> torch.Tensor:
    picture = Image.fromarray(photo).convert("L" if channels == 1 else "RGB")
    if scale != 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture).reshape(picture.height, picture.width, channels)).permute(2, 0, 1)
