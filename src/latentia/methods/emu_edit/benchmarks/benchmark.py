"""A set of edits to be judged on, whoever collected it: cases without pictures first, pictures when asked for."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from latentia.errors import InputError
from latentia.methods.emu_edit.measures.measure import Edit


class Case(NamedTuple):
    """One edit to be made, without its pictures.

    Attributes:
        key: names it in messages, unique in its set.
        instruction: what to do.
        files: names (without ending) under which a folder of results may hold its picture, the first found counts.
        task: the set's own name of the kind of edit, if it has one.
        group: what means are taken over beside all: the task, or the turn.
        input_caption, output_caption, local_caption: as `Edit` has them.
        follows: the input is the result of the case before: a further turn of one session.
        counted: whether its result is measured, or only continued from.
        at: where its pictures are; for the set's own use.
    """

    key: str
    instruction: str
    files: tuple[str, ...]
    task: str | None = None
    group: str = ""
    input_caption: str | None = None
    output_caption: str | None = None
    local_caption: str | None = None
    follows: bool = False
    counted: bool = True
    at: Any = None


class Pictures(NamedTuple):
    """Of one case: what the result is compared with, uint8 (H, W, 3); `target` where a right answer is known."""

    before: np.ndarray
    target: np.ndarray | None = None


Editor = Callable[[Sequence[Case], Sequence[np.ndarray]], Sequence[np.ndarray]]
"""(cases, their pictures to edit) → the edited pictures, all uint8 (H, W, 3). Captions are not for it to see."""


class Benchmark(ABC):
    """Abstract base. `name` and `split` say what it is, `protocol` how it is gone through, "" where there is one way.

    `skipped` counts what was left out, by reason; `notes` say what was found in the files that a reader must know.
    """

    name: str = ""
    split: str = ""
    protocol: str = ""

    def __init__(self) -> None:
        self.cases: list[Case] = []
        self.skipped: Counter[str] = Counter()
        self.notes: list[str] = []

    @abstractmethod
    def pictures(self, case: Case) -> Pictures:
        """The pictures of a case; raises `ArtifactError` for one that is missing or broken."""

    def score(self, case: Case, result: np.ndarray) -> Mapping[str, float]:
        """Further measures, where the right answer is known exactly; none by default."""
        return {}

    def first(self, count: int | None) -> None:
        """Keep the first `count` counted cases (and the turns before them) only; None keeps all."""
        if count is None:
            return
        if count < 1:
            raise InputError(f"n must be at least 1, got {count}")
        kept: list[Case] = []
        for case in self.cases:
            if sum(each.counted for each in kept) == count:
                break
            kept.append(case)
        self.skipped["not asked for (-n)"] += sum(case.counted for case in self.cases[len(kept) :])
        self.skipped = +self.skipped
        self.cases = kept


def carry_out(
    benchmark: Benchmark,
    editor: Editor,
    batch_size: int = 16,
    continued: bool = True,
    done: Callable[[Case, np.ndarray], None] | None = None,
) -> Iterator[Edit]:
    """Every counted case edited, in order.

    Args:
        benchmark: what to edit.
        editor: what edits.
        batch_size: cases that the editor is given together, at most.
        continued: False for results that exist already: cases that are not counted are passed over.
        done: called with every counted case and its result.

    Raises `InputError` when the editor returns anything but one picture uint8 (H, W, 3) for each.
    """
    last: np.ndarray | None = None
    for some in _chunks([case for case in benchmark.cases if case.counted or continued], batch_size):
        pictures = [benchmark.pictures(case) for case in some]
        images = [each.before for each in pictures]
        if some[0].follows and continued and last is not None:
            images[0] = last
        results = [np.asarray(result) for result in editor(some, images)]
        _check(results, some)
        last = results[-1]
        for case, (before, target), result in zip(some, pictures, results, strict=True):
            if case.counted:
                if done is not None:
                    done(case, result)
                captions = case.input_caption, case.output_caption
                yield Edit(before, result, *captions, target, case.local_caption, case.group)


def _chunks(cases: Sequence[Case], size: int) -> Iterator[list[Case]]:
    """Cases together, at most `size`; one that follows begins anew, for it needs the result before it."""
    some: list[Case] = []
    for case in cases:
        if some and (case.follows or len(some) == size):
            yield some
            some = []
        some.append(case)
    if some:
        yield some


def _check(results: Sequence[np.ndarray], cases: Sequence[Case]) -> None:
    if len(results) != len(cases):
        raise InputError(f"the editor returned {len(results)} pictures for {len(cases)}")
    for case, result in zip(cases, results, strict=True):
        if result.dtype != np.uint8 or result.ndim != 3 or result.shape[2] != 3:
            raise InputError(
                f"the editor must return pictures uint8 (H, W, 3), got {result.dtype} {result.shape} for {case.key}"
            )


def check_unique(names: Sequence[str]) -> set[str]:
    """The names that occur once."""
    return {name for name, count in Counter(names).items() if count == 1}
