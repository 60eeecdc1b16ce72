"""Editors for benchmarks: pictures that exist already, those of a published table, and the ones that need no model."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from latentia.core.files import write_text_atomic
from latentia.data.decode import flatten
from latentia.errors import ArtifactError, InputError
from latentia.methods.emu_edit.benchmarks.benchmark import Benchmark, Case, Editor
from latentia.methods.emu_edit.benchmarks.tables import Table

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
SHOWN = 5


BASELINES: dict[str, Editor] = {
    "copy": lambda cases, images: images,
    "grey": lambda cases, images: [np.full_like(image, 128) for image in images],
}
"""The inputs unchanged, and a flat grey: what no measure may like."""


def oracle(benchmark: Benchmark) -> Editor:
    """The editor that knows the right answers; raises `InputError` where there are none."""

    def answer(case: Case) -> np.ndarray:
        target = benchmark.pictures(case).target
        if target is None:
            raise InputError(f"{benchmark.name} has no right answers: there is no oracle")
        return target

    return lambda cases, images: [answer(case) for case in cases]


class FolderOfResults:
    """Pictures by name: an editor of what another program has edited.

    Each case says under which names its result may be kept; sub-folders count as part of the name.
    Raises `ArtifactError` for a folder without pictures.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = (file for file in sorted(folder.rglob("*")) if file.suffix.lower() in ENDINGS)
        self._files = {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}
        if not self._files:
            raise ArtifactError(f"{folder} holds no pictures ({', '.join(ENDINGS)})")

    def check(self, cases: Sequence[Case]) -> None:
        """Raise `ArtifactError` unless every counted case has a picture: means over fewer are other numbers."""
        wanted = [case for case in cases if case.counted]
        missing = [case for case in wanted if self._of(case) is None]
        if missing:
            named = "; ".join(f"{' or '.join(case.files)}" for case in missing[:SHOWN])
            raise ArtifactError(
                f"{self.folder} lacks {len(missing)} of {len(wanted)} results: {named}"
                f"{'; …' if len(missing) > SHOWN else ''} (.png, .jpg or .webp). Measure the first N with -n N"
            )

    def __call__(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The pictures of those cases."""
        return [self._read(case) for case in cases]

    def _read(self, case: Case) -> np.ndarray:
        path = self._of(case)
        if path is None:
            raise ArtifactError(f"{self.folder} has no {' or '.join(case.files)}")
        try:
            with Image.open(path) as picture:
                return np.asarray(flatten(picture, "RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise ArtifactError(f"{path} cannot be decoded: {error}") from error

    def _of(self, case: Case) -> Path | None:
        return next((self._files[name] for name in case.files if name in self._files), None)


class TableOfResults:
    """Results published as a table, such as `facebook/emu_edit_test_set_generations`: joined on task, idx and hash.

    Never on the name of its split, which is the other one's. `models` are the names in its column `model`.
    Raises `InputError` when columns are missing.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self._at: dict[tuple[str, ...], tuple[Table, int]] = {}
        self.models: set[str] = set()
        for table in tables:
            table.need("edited_image", "task", "idx", "hash")
            keys = zip(*(table.column(name) for name in ("task", "idx", "hash")), strict=True)
            for index, key in enumerate(keys):
                self._at.setdefault(tuple(map(str, key)), (table, index))
            if "model" in table.columns:
                self.models |= set(map(str, table.column("model")))
        if not self._at:
            raise InputError("the tables of results are empty")

    def check(self, cases: Sequence[Case]) -> None:
        """Raise `ArtifactError` unless every counted case has a result."""
        missing = [case.key for case in cases if case.counted and joint_key(case) not in self._at]
        if missing:
            raise ArtifactError(
                f"the table lacks {len(missing)} of {len(cases)} results: {', '.join(missing[:SHOWN])}. "
                "Its splits are swapped against the test set's: give the folder with both"
            )

    def __call__(self, cases: Sequence[Case], images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The pictures of those cases."""
        found = [self._at[joint_key(case)] for case in cases]
        return [table.picture(index, "edited_image") for table, index in found]


def write_inputs(benchmark: Benchmark, folder: Path) -> Path:
    """Write what another program needs to make results: `instructions.jsonl` and `inputs/`; returns the former.

    A line holds `key`, `instruction`, `task`, `input` (a file below `folder`; null where the input is the result of the
    line before) and `result`, the name that the result's PNG must have in the folder of results.
    """
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    lines = []
    for case in benchmark.cases:
        name = None if case.follows else f"inputs/{case.files[0]}.png"
        if name is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(benchmark.pictures(case).before).save(folder / name)
        told = {"key": case.key, "instruction": case.instruction, "task": case.task, "input": name}
        lines.append(json.dumps({**told, "result": f"{case.files[0]}.png"}))
    written = folder / "instructions.jsonl"
    write_text_atomic(written, "\n".join(lines) + "\n")
    return written


def joint_key(case: Case) -> tuple[str, ...]:
    """(task, idx, hash) of a case of the Emu Edit test set."""
    return tuple(map(str, case.at[1:])) if isinstance(case.at, tuple) else (case.key,)
