"""Edits measured, a batch at a time: what the papers' tables hold, each number with its extractor in its name.

| measure | between | says |
|---|---|---|
| `clip_dir` | change of the pictures, change of the captions | the edit that was asked for |
| `clip_im` | result, input | preservation |
| `clip_out` | result, caption of the result | what was asked for is there |
| `l1_input`, `l2_input`, `dino_input` | result, input | preservation |
| `clip_i`, `l1_target`, `l2_target`, `dino_target` | result, right answer | MagicBrush's own evaluation |
| `clip_t` | result, local caption | MagicBrush's; `clip_t_of_target` is the right answer's, to read it by |

The first five rows of Emu Edit's table compare with the *input*, MagicBrush's with the *right answer*: they are not the
same measures, whatever the tables call them, and here they have different names.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from latentia.core.arguments import check_count
from latentia.core.evaluating import evaluating
from latentia.methods.emu_edit.measures.cosines import cosine, direction, pixel_distance, sized
from latentia.methods.emu_edit.measures.extractors import PictureFeatures, PicturesAndTexts
from latentia.metrics.measurement import Measurement


class Edit(NamedTuple):
    """One edit that was made.

    Attributes:
        before, after: the input and the result, uint8 (H, W, 3); the result is resized to what it is compared with.
        input_caption, output_caption: what the input shows, what the result should show; None: no caption is known.
        target: the right answer, uint8 (H, W, 3), where there is one.
        local_caption: MagicBrush's caption of the right answer.
        group: a task or a turn; means are taken over each group too.
    """

    before: np.ndarray
    after: np.ndarray
    input_caption: str | None = None
    output_caption: str | None = None
    target: np.ndarray | None = None
    local_caption: str | None = None
    group: str = ""


@dataclass(frozen=True)
class Extractors:
    """What is measured with. Either may be None: its measures are then left out.

    Attributes:
        joint: pictures and texts, CLIP say; names `clip_…`.
        alike: pictures, DINO say; names `dino_…`.
    """

    joint: PicturesAndTexts | None = None
    alike: PictureFeatures | None = None

    def names(self) -> tuple[str | None, str | None]:
        """Of both extractors."""
        joint, alike = self.joint, self.alike
        return (None if joint is None else joint.name, None if alike is None else alike.name)


class EditMeter:
    """Adds edits up; `values` holds every measure of every edit, by measure and in order, `groups` their groups.

    Args:
        extractors: what is measured with.
        batch_size: edits whose features are computed together.
    """

    def __init__(self, extractors: Extractors, batch_size: int = 32) -> None:
        self.extractors = extractors
        self.batch_size = check_count("batch_size", batch_size)
        self.values: dict[str, list[float]] = defaultdict(list)
        self.groups: dict[str, list[str]] = defaultdict(list)
        self.edits = 0
        self.unchanged = 0
        self.captions_cut = 0

    def add(self, edits: Iterable[Edit]) -> "EditMeter":
        """Measure some edits; returns itself."""
        coming = iter(edits)
        while some := list(islice(coming, self.batch_size)):
            with evaluating([self.extractors.joint, self.extractors.alike]), torch.no_grad():
                self._batch(some)
            self.edits += len(some)
            self.unchanged += sum(np.array_equal(edit.before, edit.after) for edit in some)
        return self

    def measurements(self, group: str | None = None) -> list[Measurement]:
        """The mean of every measure, over all edits or over one group, named `<measure>[<extractor>]`.

        An edit that a measure is not defined for (NaN) does not count in it; `details` say how many did not
        (`undefined`), the standard error of the mean, and the digest of a published network's weights.
        """
        rows = []
        for name, values in self.values.items():
            chosen = [v for v, g in zip(values, self.groups[name], strict=True) if group is None or g == group]
            defined = np.array([v for v in chosen if not np.isnan(v)])
            if not len(defined):
                continue
            details: dict[str, float | int | str | bool] = {"undefined": len(chosen) - len(defined)}
            if len(defined) > 1:
                details["standard_error"] = float(defined.std(ddof=1) / np.sqrt(len(defined)))
            full, digest = self._extractor(name)
            details |= {} if digest is None else {"weights": digest}
            rows.append(Measurement(f"{name}[{full}]", float(defined.mean()), len(defined), details=details))
        return rows

    def group_names(self) -> list[str]:
        """All groups, sorted."""
        return sorted({group for groups in self.groups.values() for group in groups})

    def _extractor(self, measure: str) -> tuple[str, str | None]:
        if measure.startswith(("l1", "l2")):
            return "pixels", None
        chosen = self.extractors.alike if measure.startswith("dino") else self.extractors.joint
        assert chosen is not None
        return chosen.name, chosen.digest

    def _record(self, measure: str, edits: Sequence[Edit], values: Iterable[float]) -> None:
        self.values[measure].extend(values)
        self.groups[measure].extend(edit.group for edit in edits)

    def _batch(self, edits: Sequence[Edit]) -> None:
        aimed = [edit for edit in edits if edit.target is not None]
        self._pixels(edits, aimed)
        if self.extractors.alike is not None:
            self._alike(self.extractors.alike, edits, aimed)
        if self.extractors.joint is not None:
            self._joint(self.extractors.joint, edits, aimed)

    def _pixels(self, edits: Sequence[Edit], aimed: Sequence[Edit]) -> None:
        for power in (1, 2):
            self._record(
                f"l{power}_input",
                edits,
                (pixel_distance(sized(e.after, e.before), e.before, power) for e in edits),
            )
            self._record(
                f"l{power}_target",
                aimed,
                (pixel_distance(sized(e.after, e.target), e.target, power) for e in aimed if e.target is not None),
            )

    def _alike(self, network: PictureFeatures, edits: Sequence[Edit], aimed: Sequence[Edit]) -> None:
        after = network.pictures([e.after for e in edits])
        before = network.pictures([e.before for e in edits])
        self._record("dino_input", edits, cosine(after, before).tolist())
        if aimed:
            target = network.pictures([e.target for e in aimed if e.target is not None])
            self._record("dino_target", aimed, cosine(after[_rows(edits, aimed)], target).tolist())

    def _joint(self, network: PicturesAndTexts, edits: Sequence[Edit], aimed: Sequence[Edit]) -> None:
        after = network.pictures([e.after for e in edits])
        before = network.pictures([e.before for e in edits])
        told = [e for e in edits if e.input_caption is not None and e.output_caption is not None]
        if told:
            rows = _rows(edits, told)
            captions_in = self._texts(network, [e.input_caption or "" for e in told])
            captions_out = self._texts(network, [e.output_caption or "" for e in told])
            self._record("clip_dir", told, direction(before[rows], after[rows], captions_in, captions_out).tolist())
            self._record("clip_out", told, cosine(after[rows], captions_out).tolist())
        self._record("clip_im", edits, cosine(after, before).tolist())
        if aimed:
            rows = _rows(edits, aimed)
            target = network.pictures([e.target for e in aimed if e.target is not None])
            self._record("clip_i", aimed, cosine(after[rows], target).tolist())
            local = [e for e in aimed if e.local_caption is not None]
            if local:
                texts = self._texts(network, [e.local_caption or "" for e in local])
                self._record("clip_t", local, cosine(after[_rows(edits, local)], texts).tolist())
                own = target[_rows(aimed, local)]
                self._record("clip_t_of_target", local, cosine(own, texts).tolist())

    def _texts(self, network: PicturesAndTexts, texts: Sequence[str]) -> torch.Tensor:
        self.captions_cut += sum(network.too_long(text) for text in texts)
        return network.texts(texts)


def _rows(edits: Sequence[Edit], chosen: Sequence[Edit]) -> list[int]:
    """Places of the chosen edits, which are in the same order, among all."""
    wanted = {id(edit) for edit in chosen}
    return [i for i, edit in enumerate(edits) if id(edit) in wanted]
