"""Pictures with captions, for fine-tuning: crops and flips by index, text as tokens, a second picture to steer by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageOps

from latentia.core.arguments import check_count
from latentia.core.rng import derive_seed
from latentia.data.dataset import check_indices, check_size
from latentia.data.decode import decode_all, prepare, to_unit
from latentia.data.folder import METADATA
from latentia.data.pictures import CONDITION_COLUMNS, Pictures
from latentia.errors import ArtifactError, InputError, check_choice

CROPS = ("center", "random")
UNSAID = " "


@dataclass(frozen=True)
class Views:
    """Which part of a picture an index shows: a function of the index alone, so that a resumed run sees the same.

    Index i + N·j is view j of picture i of N. Random crops and flips vary from view to view, not from epoch to
    epoch: the more views, the less is seen twice. With `flip` every view is there as it is and, behind all of
    those, mirrored.

    Attributes:
        crop: `center`, or `random`: anywhere along the longer side.
        views: crops of each picture; more than one needs `random`.
        flip: mirror images too. Not for writing, and nothing else that has a left and a right.
        seed: of random crops.

    Raises `InputError` for several views of the same centre.
    """

    crop: str = "center"
    views: int = 1
    flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("crop", self.crop, CROPS)
        check_count("views", self.views)
        if self.views > 1 and self.crop == "center":
            raise InputError(f"{self.views} views of the same centre: set crop='random', or views=1")

    def count(self, pictures: int) -> int:
        """How many indices so many pictures have."""
        return pictures * self.views * (2 if self.flip else 1)

    def place(self, index: int, pictures: int) -> tuple[int, tuple[float, float], bool]:
        """(picture, where its crop lies (across, down) in [0, 1], whether it is mirrored)."""
        mirrored, index = divmod(index, pictures * self.views)
        view, picture = divmod(index, pictures)
        if self.crop == "center":
            return picture, (0.5, 0.5), bool(mirrored)
        generator = torch.Generator().manual_seed(derive_seed("crop", self.seed, picture, view))
        across, down = torch.rand(2, generator=generator).tolist()
        return picture, (across, down), bool(mirrored)


class _Prepared:
    """Pictures decoded when they are asked for, cropped and flipped as `views` says."""

    def __init__(self, pictures: Pictures, size: int, views: Views) -> None:
        self.pictures, self.views = pictures, views
        self.shape = (3, check_size(size), size)

    def __len__(self) -> int:
        return self.views.count(len(self.pictures.captions))

    def rows(self, indices: Sequence[int] | torch.Tensor) -> list[int]:
        """The picture that each index shows."""
        count = len(self.pictures.captions)
        return [self.views.place(i, count)[0] for i in check_indices(indices, len(self)).tolist()]

    def pixels(self, indices: Sequence[int] | torch.Tensor, condition: bool = False) -> torch.Tensor:
        """uint8 (B, 3, size, size); `ArtifactError` names every picture that cannot be decoded."""
        count = len(self.pictures.captions)
        places = [self.views.place(i, count) for i in check_indices(indices, len(self)).tolist()]
        rows = [row for row, _, _ in places]
        firsts = self.pictures.cells(rows, condition=False)
        seconds = self.pictures.cells(rows, condition=True) if condition else [None] * len(rows)

        def decode(source: tuple[Any, Any, tuple[float, float], bool]) -> torch.Tensor:
            first, second, at, mirrored = source
            with self.pictures.open(first if second is None else second) as picture:
                if second is not None:
                    self._check_same_form(first, picture)
                made = prepare(picture, self.shape[1], 3, at)
            return made.flip(-1) if mirrored else made

        sources = [(a, b, at, mirrored) for a, b, (_, at, mirrored) in zip(firsts, seconds, places)]
        made, failures = decode_all(decode, sources)
        if failures:
            listed = "; ".join(f"{self.pictures.name(rows[i])} ({why})" for i, why in list(failures.items())[:10])
            raise ArtifactError(f"{len(failures)} pictures cannot be used: {listed}. Replace or remove them")
        return torch.stack([m for m in made if m is not None]) if rows else torch.empty(0, *self.shape).byte()

    def _check_same_form(self, first: Any, second: Image.Image) -> None:
        """Raise `ValueError` when the second picture's sides have another proportion: its crop would not fit."""
        with self.pictures.open(first) as picture:
            (w1, h1), (w2, h2) = (ImageOps.exif_transpose(each).size for each in (picture, second))
        if abs(w1 * h2 - w2 * h1) > max(w1, h1) + max(w2, h2):  # a pixel of rounding
            raise ValueError(f"its conditioning image is {w2}×{h2}, another form than {w1}×{h1}")


class CaptionedImages(_Prepared):
    """`{"x": (B, 3, size, size) in [-1, 1], "input_ids": (B, L) int64}`, decoded when asked for.

    Args:
        pictures: where they lie.
        size: side in pixels; the shorter side is resized to it (bicubic, antialiased), then a square is cropped.
        views: crops and flips.
        caption: what a picture without a caption is called.
        every: `caption` is what every picture is called, whatever its own says.
        input_ids: tokens of `captions`, (N, L); see `with_tokens`. None leaves `input_ids` out.
        key: the pictures' name in a batch.

    Attribute `captions`: the text of each of the N pictures.
    Raises `InputError` naming pictures without a caption when `caption` is empty.
    """

    def __init__(
        self,
        pictures: Pictures,
        size: int,
        views: Views = Views(),
        caption: str = "",
        input_ids: torch.Tensor | None = None,
        key: str = "x",
        every: bool = False,
    ) -> None:
        super().__init__(pictures, size, views)
        self.captions = [caption if every else said or caption for said in pictures.captions]
        self.input_ids, self.key = input_ids, key
        silent = [pictures.name(i) for i, said in enumerate(self.captions) if not said]
        if silent:
            raise InputError(
                f"{len(silent)} of {len(self.captions)} pictures have no caption, e.g. {', '.join(silent[:3])}: write "
                f"NAME.txt beside NAME.png, or {METADATA} with file_name and text, or give caption='...' for them"
            )

    def with_tokens(self, input_ids: torch.Tensor) -> "CaptionedImages":
        """The same with the tokens of `captions`, (N, L) int64."""
        if input_ids.ndim != 2 or len(input_ids) != len(self.captions):
            raise InputError(f"input_ids {tuple(input_ids.shape)} do not fit {len(self.captions)} captions")
        return self._copy(input_ids, self.key)

    def alone(self, key: str) -> "CaptionedImages":
        """The same pictures without their text, called `key` in a batch."""
        return self._copy(None, key)

    def called(self, key: str) -> "CaptionedImages":
        """The same, with the pictures called `key` in a batch."""
        return self._copy(self.input_ids, key)

    def _copy(self, input_ids: torch.Tensor | None, key: str) -> "CaptionedImages":
        copied = CaptionedImages(self.pictures, self.shape[1], self.views, UNSAID, input_ids, key)
        copied.captions = self.captions
        return copied

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, torch.Tensor]:
        """See the class."""
        batch = {self.key: to_unit(self.pixels(indices))}
        if self.input_ids is not None:
            batch["input_ids"] = self.input_ids[self.rows(indices)]
        return batch


class ConditionImages(_Prepared):
    """`{"condition": uint8 (B, 3, size, size)}`: the picture that belongs to each, with the same crop and flip.

    Raises `InputError` when there are none.
    """

    def __init__(self, pictures: Pictures, size: int, views: Views = Views()) -> None:
        super().__init__(pictures, size, views)
        if not pictures.conditioned:
            raise InputError(
                f"not every picture has one to steer by: name it as 'conditioning_image' in {METADATA}, or as a "
                f"column of the data set ({', '.join(CONDITION_COLUMNS)})"
            )

    def batch(self, indices: Sequence[int] | torch.Tensor) -> dict[str, torch.Tensor]:
        """See the class."""
        return {"condition": self.pixels(indices, condition=True)}
