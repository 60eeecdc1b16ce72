"""Where rows come from: source → pairs → filters → rows. The world fills it here; a generative engine fills the same.

    source    what to do: an instruction and its captions and objects            (the grammar; a language model)
    pairs     before and after: candidate rows for it                            (the renderer; a text-to-image model)
    filters   keep, relabel or drop, each with its reason                        (exact checks; CLIP, depth, a detector)

Row i of a split is a function of (seed, split, i) alone: every attempt has its own random numbers, derived from them.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from latentia.core.rng import derive_seed
from latentia.errors import InputError, check_choice
from latentia.methods.emu_edit.rows import Row
from latentia.methods.emu_edit.tasks.registry import TASK_NAMES, TASKS
from latentia.methods.emu_edit.world.render import World
from latentia.methods.emu_edit.world.sampling import Rejected
from latentia.methods.emu_edit.world.vocabulary import SPLITS

MAX_ATTEMPTS = 200
"""Attempts at one row before it counts as impossible."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is to be done, before any picture: the language model's output keys, and the task.

    `original_object` and `edited_object` name what masks are cut around and detectors look for; either may be empty.
    `details` is for the source's own pair maker.
    """

    task: str
    instruction: str
    input_caption: str
    output_caption: str
    original_object: str = ""
    edited_object: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """Invents what to do."""

    def __call__(self, rng: Random, split: str) -> Proposal:
        """A proposal for `split`; raises `Rejected` with its reason."""
        ...


class Pairs(Protocol):
    """Makes before and after."""

    def __call__(self, proposal: Proposal, rng: Random) -> Iterable[Row]:
        """Candidate rows, best first (the article tries ten for most tasks); raises `Rejected` with its reason."""
        ...


class Filter(Protocol):
    """One gate. `name` is what its rejections are counted under, with the reason."""

    name: str

    def __call__(self, row: Row) -> Row:
        """The row, relabelled if need be; raises `Rejected` with its reason."""
        ...


class SceneSource:
    """The world as a source: a task drawn by weight, then a row of it, which the proposal carries along."""

    def __init__(self, size: int = 64, tasks: Sequence[str] | None = None, weights: Sequence[float] | None = None):
        self.world = World.of(size)
        self.tasks = tuple(TASK_NAMES if tasks is None else tasks)
        for name in self.tasks:
            check_choice("task", name, TASKS)
        if not self.tasks or (weights is not None and len(weights) != len(self.tasks)):
            raise InputError(f"give at least one task and one weight for each, got {self.tasks} and {weights}")
        if weights is not None and not (min(weights) >= 0 and sum(weights) > 0):
            raise InputError(f"weights must be at least 0 and not all 0, got {tuple(weights)}")
        self.weights = None if weights is None else tuple(float(weight) for weight in weights)

    def __call__(self, rng: Random, split: str) -> Proposal:
        """One drawn row as a proposal."""
        count = len(self.tasks)
        if self.weights is None:
            name = self.tasks[int(rng.random() * count)]
        else:
            name = rng.choices(self.tasks, self.weights)[0]
        row = TASKS[name].make(rng, self.world, split)
        objects = row.meta["original_object"], row.meta["edited_object"]
        return Proposal(name, row.instruction, row.input_caption, row.output_caption, *objects, {"row": row})


class ScenePairs:
    """The world's pairs: drawn with the proposal already."""

    def __call__(self, proposal: Proposal, rng: Random) -> Iterable[Row]:
        """The one exact row."""
        row: Row = proposal.details["row"]
        return (row,)


class Engine:
    """Rows by number. `counts` tells how many were kept and how many attempts were dropped, by reason.

    Raises `InputError` for an unknown split, a negative number, or a row that `MAX_ATTEMPTS` attempts do not give.
    """

    def __init__(self, source: Source, pairs: Pairs, filters: Sequence[Filter] = (), seed: int = 0) -> None:
        self.source, self.pairs, self.filters, self.seed = source, pairs, tuple(filters), seed
        self.counts: Counter[str] = Counter()

    def row(self, split: str, index: int) -> Row:
        """Row `index` of `split`."""
        check_choice("split", split, SPLITS)
        if index < 0:
            raise InputError(f"rows are numbered from 0, got {index}")
        for attempt in range(MAX_ATTEMPTS):
            rng = Random(derive_seed("row", self.seed, split, index, attempt))
            try:
                row = self._attempt(rng, split)
            except Rejected as reason:
                self.counts[str(reason)] += 1
                continue
            self.counts["kept"] += 1
            return row
        raise InputError(f"{MAX_ATTEMPTS} attempts gave no row {index} of {split}; dropped so far: {dict(self.counts)}")

    def rows(self, split: str, start: int, stop: int) -> Iterable[Row]:
        """Rows `start` … `stop − 1`, made as they are asked for."""
        return (self.row(split, index) for index in range(start, stop))

    def _attempt(self, rng: Random, split: str) -> Row:
        last: Rejected | None = None
        for candidate in self.pairs(self.source(rng, split), rng):
            try:
                row = candidate
                for gate in self.filters:
                    try:
                        row = gate(row)
                    except Rejected as reason:
                        raise Rejected(f"{gate.name}: {reason}") from None
                return row
            except Rejected as reason:
                last = reason
        raise last or Rejected("no candidate")


def scene_engine(
    size: int = 64, seed: int = 0, tasks: Sequence[str] | None = None, weights: Sequence[float] | None = None
) -> Engine:
    """The engine of the world, all its rows exact."""
    return Engine(SceneSource(size, tasks, weights), ScenePairs(), (), seed)


__all__ = [
    "Engine",
    "Filter",
    "Pairs",
    "Proposal",
    "Rejected",
    "ScenePairs",
    "SceneSource",
    "Source",
    "scene_engine",
]
