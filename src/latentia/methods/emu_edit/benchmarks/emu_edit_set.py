"""The Emu Edit test set (Sheynin et al. 2023, `facebook/emu_edit_test_set`), with what is wrong in it.

1. The split names of the published generations are swapped against the test set's. A table's split is taken from what
   it holds, and said when it is not what it is called.
2. `idx` is not unique; (split, task, idx) is. A further row of the same id is skipped and counted.
3. Some rows have the same caption before and after, some a placeholder. Scale C leaves them out, A and B keep them.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from latentia.errors import UnknownChoiceError, check_choice
from latentia.methods.emu_edit.benchmarks.benchmark import Benchmark, Case, Pictures, check_unique
from latentia.methods.emu_edit.benchmarks.tables import Table, open_table, open_tables

SPLITS = ("validation", "test")
COUNTS = {"validation": 2022, "test": 3589}
"""Rows as the data set's card states them."""

PLACEHOLDERS = ("a train station in city",)
"""Captions known to stand in for missing ones, in plain letters."""

CAPTIONS = ("raw", "clean")
COLUMNS = ("instruction", "image", "task", "split", "idx", "hash", "input_caption", "output_caption")

REPEATED = 10
"""A caption of at least so many ids (of one split) is pointed out, being a placeholder perhaps."""


class EmuEditSet(Benchmark):
    """Rows of one split: 2,022 of `validation`, 3,589 of `test`; the means are also taken over each task.

    Args:
        source: a folder in one of the layouts of `tables`, or a Hub id.
        split: by content, whatever the files are called.
        captions: `raw` keeps rows with identical, empty or placeholder captions, `clean` skips them.
        placeholders: captions counted as such beside `PLACEHOLDERS`.

    A result's file is `<split>/<task>/<idx>`, `<split>_<task>_<idx>`, `<task>/<idx>`, `<task>_<idx>`, or, where that is
    unique, `<hash>` or `<idx>`.

    Raises `InputError` for missing columns, `UnknownChoiceError` for a split that is not there.
    """

    name = "emu-edit"

    def __init__(
        self, source: str, split: str = "test", captions: str = "clean", placeholders: Iterable[str] = ()
    ) -> None:
        super().__init__()
        check_choice("split of the Emu Edit test set", split, SPLITS)
        check_choice("captions", captions, CAPTIONS)
        self.split, self.captions = split, captions
        self.table = self._table(source)
        self._placeholders = {plain(each) for each in (*PLACEHOLDERS, *placeholders)}
        self._read()

    def pictures(self, case: Case) -> Pictures:
        """See the base; there are no right answers."""
        return Pictures(self.table.picture(case.at[0], "image"))

    def _table(self, source: str) -> Table:
        """The table that holds the wanted split, under whichever name."""
        try:
            named = open_table(source, self.split)
        except UnknownChoiceError:
            named = None
        if named is not None:
            named.need(*COLUMNS)
            if holds(named, self.split) == self.split:
                return named
        tables = open_tables(source)
        others = [each for each in SPLITS if each != self.split]
        if not tables and not Path(source).expanduser().is_dir():
            tables = {each: open_table(source, each) for each in others}
        for name, table in tables.items():
            table.need(*COLUMNS)
            if name != self.split and holds(table, name) == self.split:
                self.notes.append(
                    f"swapped splits: {name!r} holds the {self.split} rows ({len(table)}), and was read as such"
                )
                return table
        held = ", ".join(f"{name!r} holds {holds(table, name)} rows" for name, table in tables.items())
        raise UnknownChoiceError(f"{source} has no {self.split} rows: {held}")

    def _read(self) -> None:
        table = self.table
        columns = {name: _texts(table.column(name)) for name in COLUMNS if name != "image"}
        names = file_names(columns, self.split)
        seen: dict[tuple[str, str], str] = {}
        for index, names_here in enumerate(names):
            row = {name: values[index] for name, values in columns.items()}
            key, instruction = (row["task"], row["idx"]), row["instruction"].strip()
            if key in seen:
                same = "" if seen[key] == instruction else ", with another instruction"
                self.skipped[f"duplicate id{same}"] += 1
                continue
            seen[key] = instruction
            fault = caption_fault(row["input_caption"], row["output_caption"], self._placeholders)
            if not instruction:
                self.skipped["empty instruction"] += 1
            elif fault and self.captions == "clean":
                self.skipped[fault] += 1
            else:
                self.cases.append(
                    Case(
                        key=f"{self.split}/{row['task']}/{row['idx']}",
                        instruction=instruction,
                        files=names_here,
                        task=row["task"],
                        group=row["task"],
                        input_caption=row["input_caption"],
                        output_caption=row["output_caption"],
                        at=(index, row["task"], row["idx"], row["hash"]),
                    )
                )
        self._note(columns)

    def _note(self, columns: dict[str, list[str]]) -> None:
        if len(self.table) != COUNTS[self.split]:
            self.notes.append(f"{len(self.table)} rows, the published {self.split} split has {COUNTS[self.split]}")
        if self.captions == "raw":
            pairs = zip(columns["input_caption"], columns["output_caption"], strict=True)
            faults = Counter(fault for pair in pairs if (fault := caption_fault(*pair, self._placeholders)))
            self.notes += [f"kept with {fault}: {count}" for fault, count in sorted(faults.items())]
        uses: dict[str, set[str]] = {}
        for caption, idx in zip(columns["input_caption"], columns["idx"], strict=True):
            uses.setdefault(plain(caption), set()).add(idx)
        caption, ids = max(uses.items(), key=lambda item: len(item[1]), default=("", set()))
        if caption and caption not in self._placeholders and len(ids) >= REPEATED:
            self.notes.append(f"the caption {caption!r} stands at {len(ids)} different ids: a placeholder?")


def holds(table: Table, name: str) -> str:
    """Which split a table called `name` really holds: as its rows say, else as its length tells, else its name."""
    said = set(map(str, table.column("split")))
    if len(said) == 1 and (only := said.pop()) in SPLITS and only != name:
        return only
    return next((split for split, count in COUNTS.items() if len(table) == count), name)


def caption_fault(before: str, after: str, placeholders: Iterable[str]) -> str | None:
    """What is wrong with a pair of captions: `empty caption`, `placeholder caption`, `identical captions`, or None."""
    two = plain(before), plain(after)
    if not all(two):
        return "empty caption"
    if any(each in placeholders for each in two):
        return "placeholder caption"
    return "identical captions" if two[0] == two[1] else None


def _texts(values: Iterable[object]) -> list[str]:
    return ["" if value is None else str(value) for value in values]


def plain(text: str) -> str:
    """Lower case, letters and digits only, one space between words."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def file_names(columns: dict[str, list[str]], split: str) -> list[tuple[str, ...]]:
    """Under which names each row's result may be kept, best first."""
    alone = {name: check_unique(columns[name]) for name in ("hash", "idx")}
    return [_names(split, *row, alone) for row in zip(columns["task"], columns["idx"], columns["hash"], strict=True)]


def _names(split: str, task: str, idx: str, digest: str, alone: dict[str, set[str]]) -> tuple[str, ...]:
    found: Sequence[str] = (f"{split}/{task}/{idx}", f"{split}_{task}_{idx}", f"{task}/{idx}", f"{task}_{idx}")
    own = [name for kind, name in (("hash", digest), ("idx", idx)) if name and name in alone[kind]]
    return (*found, *own)
