"""The article's four gates, for rows whose pictures were generated; the world's own rows need none of them.

1. The task predictor re-labels a row whose instruction belongs to another task.
2. CLIP: the pictures fit their captions, the change between them fits the change of captions, and they stay alike.
3. Structure: the depths of the two pictures differ little.
4. The detector: what was added is there, what was removed is gone, what was replaced is replaced.

Each takes the network as an argument. The article's own thresholds are not published: those of InstructPix2Pix are the
default of the second gate, those of AnyEdit's released filter are in `ANYEDIT`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from latentia.data.decode import to_unit
from latentia.errors import InputError, check_choice
from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.tasks.registry import TASKS
from latentia.methods.emu_edit.world.sampling import Rejected


class JointFeatures(Protocol):
    """A network that puts pictures and texts in one space, such as CLIP."""

    name: str

    def images(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, 3, H, W) in [−1, 1] → (B, D)."""
        ...

    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """B texts → (B, D)."""
        ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Least cosines; None: not asked for.

    Attributes:
        before, after: of a picture with its caption.
        direction: of the change of the pictures with the change of the captions.
        alike: of the two pictures.
    """

    before: float | None = None
    after: float | None = None
    direction: float | None = None
    alike: float | None = None


INSTRUCT_PIX2PIX = Limits(0.2, 0.2, 0.2, 0.75)
"""InstructPix2Pix's rule, CLIP ViT-L/14; its code keeps pictures alike from 0.7."""

INSTRUCT_PIX2PIX_LOOSE = replace(INSTRUCT_PIX2PIX, alike=0.7)

ANYEDIT = {
    "add": Limits(after=0.20),
    "remove": Limits(after=0.15),
    "local": Limits(after=0.20, direction=0.08),
    "texture": Limits(after=0.25, direction=0.06),
    "background": Limits(after=0.15),
    "global": Limits(after=0.25),
    "color": Limits(after=0.20),
}
"""AnyEdit's rules by task (its `replace` as local, `appearance` as texture, `tone` as global), CLIP ViT-H/14. Its L1
limits are left out: they were computed with bytes that wrap around."""


class TaskGate:
    """Gate 1. `predict(instruction)` names a task; a row of another is re-labelled, or dropped without `relabel`."""

    name = "task"

    def __init__(self, predict: Callable[[str], str], relabel: bool = True) -> None:
        self.predict, self.relabel = predict, relabel

    def __call__(self, row: Row) -> Row:
        """The row with the predicted task; raises `UnknownChoiceError` when the predictor names none."""
        predicted = self.predict(row.instruction)
        if predicted == row.task:
            return row
        check_choice("task", predicted, TASKS)
        if not self.relabel:
            raise Rejected(f"{row.task} reads as {predicted}")
        return replace(row, task=predicted, meta={**row.meta, "task_before": row.task})


class ClipGate:
    """Gate 2. `limits` for every task, or a mapping by task; tasks that it lacks pass."""

    name = "clip"

    def __init__(self, features: JointFeatures, limits: Limits | Mapping[str, Limits] = INSTRUCT_PIX2PIX) -> None:
        self.features, self.limits = features, limits

    def __call__(self, row: Row) -> Row:
        """The row; raises `Rejected` with the measure that is too low."""
        limits = self.limits if isinstance(self.limits, Limits) else self.limits.get(row.task)
        if limits is None:
            return row
        cosines = self.cosines(row)
        for name in ("before", "after", "direction", "alike"):
            least = getattr(limits, name)
            if least is not None and not cosines[name] >= least:  # a direction of nothing is NaN, and dropped
                raise Rejected(name)
        return row

    def cosines(self, row: Row) -> dict[str, float]:
        """The four cosines of `Limits`; `direction` is NaN when pictures or captions are the same."""
        with torch.no_grad():
            images = self.features.images(_batch([row.image, row.target])).double()
            texts = self.features.texts([row.input_caption, row.output_caption]).double()
        images, texts = (torch.nn.functional.normalize(each, dim=-1) for each in (images, texts))
        moved, told = images[1] - images[0], texts[1] - texts[0]
        length = float(moved.norm() * told.norm())
        return {
            "before": float(images[0] @ texts[0]),
            "after": float(images[1] @ texts[1]),
            "direction": float(moved @ told) / length if length > 0 else float("nan"),
            "alike": float(images[0] @ images[1]),
        }


class StructureGate:
    """Gate 3. Mean absolute difference of the two pictures' depths, each brought to [0, 1], at most a limit by task.

    The article gives no limit; `calibrate` takes it from rows as a quantile, task by task. Tasks without a limit pass.
    """

    name = "structure"

    def __init__(self, depth: Callable[[np.ndarray], np.ndarray], limits: Mapping[str, float] | None = None) -> None:
        self.depth, self.limits = depth, dict(limits or {})

    def __call__(self, row: Row) -> Row:
        """The row; raises `Rejected`."""
        limit = self.limits.get(row.task)
        if limit is not None and self.distance(row) > limit:
            raise Rejected("depth")
        return row

    def distance(self, row: Row) -> float:
        """Mean |depth − depth'| of the two pictures, in [0, 1]."""
        before, after = (_to_unit_range(self.depth(picture)) for picture in (row.image, row.target))
        return float(np.abs(before - after).mean())

    def calibrate(self, rows: Sequence[Row], quantile: float = 0.8) -> dict[str, float]:
        """Set each task's limit to a quantile of its rows' distances, and return the limits."""
        if not 0 < quantile <= 1:
            raise InputError(f"quantile must lie in (0, 1], got {quantile}")
        distances: dict[str, list[float]] = {}
        for row in rows:
            distances.setdefault(row.task, []).append(self.distance(row))
        self.limits |= {task: float(np.quantile(found, quantile)) for task, found in distances.items()}
        return self.limits


class DetectorGate:
    """Gate 4. `detect(picture, noun phrase)` → boxes. Add: there; remove: gone; local: the new there, the old gone."""

    name = "detector"

    def __init__(self, detect: Callable[[np.ndarray, str], Sequence[object]]) -> None:
        self.detect = detect

    def __call__(self, row: Row) -> Row:
        """The row; raises `Rejected`."""
        old, new = (str(row.meta.get(key) or "") for key in ("original_object", "edited_object"))
        if row.task in ("remove", "local"):
            self._expect(row.image, old, True, "not there before")
        if row.task in ("add", "local"):
            self._expect(row.target, new, True, "not there")
        if row.task in ("remove", "local") and old != new:
            self._expect(row.target, old, False, "still there")
        return row

    def _expect(self, picture: np.ndarray, phrase: str, there: bool, reason: str) -> None:
        if phrase and (len(self.detect(picture, phrase)) > 0) != there:
            raise Rejected(reason)


def _batch(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    return to_unit(torch.from_numpy(np.stack(pictures)).movedim(-1, 1).contiguous())


def _to_unit_range(depth: np.ndarray) -> np.ndarray:
    low, high = float(depth.min()), float(depth.max())
    return (depth - low) / (high - low) if high > low else np.zeros_like(depth, dtype=np.float64)
